"""Draws the pictures of docs/ anew, in seconds, from the results in benchmarks/results.

    python benchmarks/pictures.py
    python benchmarks/pictures.py --names text chain --output_dir out/pictures

Each file of results says by which command its numbers came about. They are those of the tables in docs/, and the
picture is drawn by the program of that command; only its title, which says what these numbers show, is written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import antibody_report
import entropy_bound
import equal_passes_report
import equivalence
import letters_plot
import markov_chain
import second_order
import text
from arguments import new_parser
from cells import Summary
from partial_caching_plot import draw_moment, draw_others
from samplers import in_groups

from hf_maskdiff_cli.results import Value, read_results

RESULTS = Path(__file__).parent / "results"
PASSES = ("passes", "pass equivalents")  # these files count a partial pass as the share that it computes
IMAGES = Path(__file__).parents[1] / "docs" / "images"


def read_rows(name: str) -> list[dict[str, Any]]:
    """The rows of a file of results; a mean whose error is not known has NaN. "moment, 2 groups" has two groups."""
    return [
        {
            "sampler": in_groups(record.sampler, record.num_substeps),
            "steps": record.steps,
            **({} if record.model is None else {"model": record.model}),
            **({} if record.data is None else {"data": record.data}),
            **({} if record.passes is None else dict.fromkeys(PASSES, (record.passes, math.nan))),
            **{measure: _value(value) for measure, value in record.measures.items()},
        }
        for record in read_results(RESULTS / f"{name}.json").records
    ]


def _value(value: Value) -> tuple[float, float]:
    assert value.value is not None
    return value.value, math.nan if value.error is None else value.error


def read_summary(name: str) -> Summary:
    """Means and errors of every measure, by sampler and steps."""
    return {(row.pop("sampler"), row.pop("steps")): row for row in read_rows(name)}


def draw_chain(path: Path) -> None:
    title = "A spread-out order (Halton) is nearly exact from 4 steps; a low temperature never is"
    markov_chain.plot(read_summary("chain"), path, title)


def draw_text(path: Path) -> None:
    title = "Text: with few steps, Halton with a choice temperature scores best"
    text.plot(read_summary("text_to_64_steps"), path, title)


def draw_entropy_bound(path: Path) -> None:
    title = "A bound of 8 nats does in 15 passes what a pass for each code does in 49"
    entropy_bound.plot(read_summary("entropy_bound"), path, title)


def draw_equivalence(path: Path) -> None:
    title = "MaskGIT and moment are provably close only at a high choice temperature"
    rows = [row | {"alpha": float(row["sampler"].removeprefix("moment "))} for row in read_rows("equivalence")]
    equivalence.plot(rows, path, title)


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
    rows = [
        row | {"passes": row["steps"], "dependence": float(row["data"].removeprefix("dependence "))}
        for row in read_rows("second_order")
    ]
    second_order.plot(rows, path, title)


def draw_samplers_at_equal_passes(path: Path) -> None:
    beds: dict[str, Summary] = {}
    for row in read_rows("samplers_at_equal_passes"):
        beds.setdefault(row.pop("model"), {})[row.pop("sampler"), row.pop("steps")] = row
    title = "Taking tokens back wins on AntiBERTy and on digits, an order that spreads them on text"
    equal_passes_report.plot(beds, path, title)


def draw_letters(path: Path) -> None:
    title = "Letters: from 16 passes on guidance is worth most, and then the temperature"
    names = ("letters", "letters_in_groups", "letters_guided", "letters_more")
    letters_plot.plot({key: row for name in names for key, row in read_summary(name).items()}, path, title)


def draw_antibodies(path: Path) -> None:
    title = "AntiBERTy: what takes residues back lies far below any temperature"
    antibody_report.plot(read_summary("antibodies_chain"), 118, path, title)


PICTURES: dict[str, Callable[[Path], None]] = {
    "chain": draw_chain,
    "text": draw_text,
    "entropy_bound": draw_entropy_bound,
    "equivalence": draw_equivalence,
    "partial_caching": draw_partial_caching,
    "samplers_images": draw_samplers_images,
    "second_order": draw_second_order,
    "samplers_at_equal_passes": draw_samplers_at_equal_passes,
    "letters_passes": draw_letters,
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
