"""Is it worth more to look ahead, or to take more steps? Samplers at equal passes, with error bars over seeds.

    python benchmarks/lookahead.py --text_dir FOLDER_OF_TXT --output_dir out/lookahead
    python benchmarks/lookahead.py --image_dir FOLDER_OF_MNIST --output_dir out/lookahead

A sampler that tries n candidates of each step spends `1 + n (T - 1)` passes on T steps, since the pass of the candidate
that it takes is the next step's. So with P passes it takes `1 + (P - 1) / n` steps, and the plain sampler P; candidates
that are the same are one pass. "moment-ahead-4" tries four of the moment sampler and takes the one with the largest
information gain less the entropy of what it reveals; "-left" takes the one that leaves least entropy. The measures are
those of `text.py` and `images.py`, and so are the seeds of a sample. Prints a table for each model, and writes
`text/results.json` and `images/results.json`, after every cell.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import images
import text
from arguments import new_parser
from cells import Row, run_cells, seed_by_seed
from samplers import AHEAD, ORDERS
from tables import print_cells

NAMES = (*ORDERS, *AHEAD)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--text_dir", help="folder of .txt files")
    parser.add_argument("--image_dir", help="folder with IDX files")
    parser.add_argument("--samplers", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--passes", type=int, nargs="+", default=[9, 17, 33])
    parser.add_argument("--num_seeds", type=int, default=3)
    parser.add_argument("--num_samples", type=int, help="per seed; by default 64 texts and 1000 images")
    parser.add_argument("--output_dir", type=Path, required=True)
    return parser.parse_args(argv)


def steps_for(sampler: str, passes: int) -> int:
    """How many steps a sampler takes with so many passes."""
    if sampler not in AHEAD:
        return passes
    return 1 + (passes - 1) // AHEAD[sampler].keywords["num_candidates"]


def measure(
    args: argparse.Namespace,
    bench: Callable[[argparse.Namespace], Any],
    settings: Sequence[str],
    pairs: Iterable[tuple[str, int]],
    columns: Mapping[str, Callable[[Row], str]],
) -> dict[str, Any]:
    """The cells of one model, those of an earlier run among them."""
    wanted = seed_by_seed([(name, steps) for name, steps in dict.fromkeys(pairs) if steps != 1], args.num_seeds)
    results = run_cells(args, settings, wanted, lambda: bench(args).measure)
    print_cells(results["cells"], columns)
    return results


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    args, results = parse_args(argv), {}
    shared = ["--num_seeds", str(args.num_seeds), "--resume", "--output_dir"]
    pairs = [(name, steps_for(name, passes)) for passes in args.passes for name in args.samplers]
    if args.text_dir:
        number = str(args.num_samples or 64)
        options = text.parse_args(
            ["--data_dir", args.text_dir, "--num_sequences", number, *shared, f"{args.output_dir}/text"]
        )
        named = [(text.REFERENCE, 0), *((f"{name} 4", steps) for name, steps in pairs)]
        results["text"] = measure(options, text.Bench, text.SETTINGS, named, text.COLUMNS)
    if args.image_dir:
        number = str(args.num_samples or 1000)
        options = images.parse_args(
            ["--data_dir", args.image_dir, "--num_images", number, *shared, f"{args.output_dir}/images"]
        )
        samplers = ORDERS | AHEAD
        make = lambda options: images.Bench(options, samplers)  # noqa: E731
        results["images"] = measure(options, make, images.SETTINGS, pairs, images.COLUMNS)
    return results


if __name__ == "__main__":
    main()
