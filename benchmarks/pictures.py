"""Draws the pictures of docs/ anew, in seconds, from the results in benchmarks/results.

    python benchmarks/pictures.py
    python benchmarks/pictures.py --names text chain --output_dir out/pictures

Each file of results says by which command its numbers came about. They are those of the tables in docs/, and the
picture is drawn by the program of that command; only its title, which says what these numbers show, is written here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import antibody_report
import entropy_bound
import equal_passes_report
import equivalence
import markov_chain
import second_order
import text
from arguments import new_parser
from cells import Summary
from partial_caching_plot import draw_moment, draw_others

RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parents[1] / "docs" / "images"


def read_rows(name: str) -> list[dict[str, Any]]:
    """The rows of a file of results; a mean whose error is not known has NaN."""
    rows = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    return [{key: _value(value) for key, value in row.items()} for row in rows]


def _value(value: Any) -> Any:
    return (value[0], math.nan if value[1] is None else value[1]) if isinstance(value, list) else value


def read_summary(name: str) -> Summary:
    """Means and errors of every measure, by sampler and steps."""
    return {(row.pop("sampler"), row.pop("steps")): row for row in read_rows(name)}


def draw_chain(path: Path) -> None:
    title = "A spread-out order (Halton) is nearly exact from 4 steps; a low temperature never is"
    markov_chain.plot(read_summary("chain"), path, title)


def draw_text(path: Path) -> None:
    title = "Text: with few steps, Halton with a choice temperature scores best"
    text.plot(read_summary("text"), path, title)


def draw_entropy_bound(path: Path) -> None:
    title = "A bound of 8 nats does in 15 passes what a pass for each code does in 49"
    entropy_bound.plot(read_summary("entropy_bound"), path, title)


def draw_equivalence(path: Path) -> None:
    title = "MaskGIT and moment are provably close only at a high choice temperature"
    equivalence.plot(read_rows("equivalence"), path, title)


def draw_partial_caching(path: Path) -> None:
    panels = [
        (read_summary("partial_caching_text"), "nats", "moment 4", "maskgit 4"),
        (read_summary("images"), "frechet", "moment 6", "maskgit 6"),
    ]
    titles = ("moment sampler, text of 64 tokens", "moment sampler, digits of 49 codes (numbers: steps)")
    title = "For equal passes, groups win on text, but not on small images"
    draw_moment(panels, (1, 2, 4), path, title, titles)


def draw_samplers_images(path: Path) -> None:
    names = ("uniform", "halton", "confidence", "uniform 6", "hybrid 6")
    title = "Two groups per step against none, by passes (numbers: steps)"
    draw_others([(read_summary("images"), "frechet", names)], (1, 2), path, title)


def draw_second_order(path: Path) -> None:
    title = "Second order where nothing is cut off; where much is, a smaller error of the same order"
    second_order.plot(read_rows("second_order"), path, title)


def draw_samplers_at_equal_passes(path: Path) -> None:
    beds: dict[str, Summary] = {}
    for row in read_rows("samplers_at_equal_passes"):
        beds.setdefault(row.pop("bed"), {})[row.pop("sampler"), row.pop("steps")] = row
    title = "Taking tokens back wins where the model judges known ones too (AntiBERTy), and nowhere else"
    equal_passes_report.plot(beds, path, title)


def draw_antibodies(path: Path) -> None:
    found = json.loads((RESULTS / "runs" / "antibodies_chain.json").read_text())
    length = found["settings"]["length"]
    title = "AntiBERTy: only taking residues back is better than a lower temperature"
    antibody_report.plot(antibody_report.summary_of(found["cells"], "chain", length), length, path, title)


PICTURES: dict[str, Callable[[Path], None]] = {
    "chain": draw_chain,
    "text": draw_text,
    "entropy_bound": draw_entropy_bound,
    "equivalence": draw_equivalence,
    "partial_caching": draw_partial_caching,
    "samplers_images": draw_samplers_images,
    "second_order": draw_second_order,
    "samplers_at_equal_passes": draw_samplers_at_equal_passes,
    "antibodies": draw_antibodies,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--names", nargs="+", choices=PICTURES, default=list(PICTURES))
    parser.add_argument("--output_dir", type=Path, default=IMAGES)
    args = parser.parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        PICTURES[name](args.output_dir / f"{name}.png")


if __name__ == "__main__":
    main()
