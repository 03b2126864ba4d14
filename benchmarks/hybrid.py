r"""Whether the hybrid order pays: exploration orders and ratios, against the two pure orders, on image grids.

    python benchmarks/hybrid.py --pipeline PIPELINE --classifier pipelines/maskgit-mnist/digit_classifier \
        --dataset ylecun/mnist --output_dir out/hybrid

For a finer grid than the shipped 7 x 7, train a model of 14 x 14 codes first:

    accelerate launch examples/train_vq.py --dataset ylecun/mnist --block_out_channels 16 32 --max_train_steps 1500 \
        --output_dir runs/vq14
    accelerate launch examples/train_maskgit.py --dataset ylecun/mnist --tokenizer runs/vq14 --batch_size 64 \
        --hidden_size 96 --intermediate_size 192 --num_layers 5 --max_train_steps 2200 --output_dir runs/maskgit14

Cells and measures are those of `images.py`. All samplers of a table draw tokens at the same choice temperature, so that
they differ only in the order of positions. The pure orders are "halton" and "uniform", which only explore, and
"moment", which only exploits. "halton 0.5" explores with half of each step's positions; "halton 1>0" starts with all of
them and falls to none. After the table come the differences from the better pure order, paired by seed, with standard
errors. `text.py` does the same for text, and `markov_chain.py` for exact conditionals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cells import Cells, differences, summarise
from images import COLUMNS, make_parser, run
from samplers import HYBRIDS, Samplers
from tables import print_cells, print_table, with_error

from hf_maskdiff import HaltonScheduler, MomentScheduler, UniformScheduler

ENDS: Samplers = {"moment": MomentScheduler, "halton": HaltonScheduler, "uniform": UniformScheduler}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__)
    parser.add_argument("--samplers", nargs="+", choices=[*ENDS, *HYBRIDS], default=[*ENDS, *HYBRIDS])
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8])
    args = parser.parse_args(argv)
    names = sorted(args.samplers, key=lambda name: name in HYBRIDS)  # the pure orders first
    results = run(args, ENDS | HYBRIDS, [(name, steps) for steps in args.steps for name in names])
    print_cells(results["cells"], COLUMNS)
    print_gains(results["cells"])
    return results


def print_gains(cells: Cells) -> None:
    """Print each hybrid's Frechet distance minus that of the better of its two pure orders; negative is better."""
    means = {key: row["frechet"][0] for key, row in summarise(cells).items()}
    rows = []
    for name, steps in [key for key in means if key[0] in HYBRIDS]:
        ends = [end for end in ("moment", name.split()[0]) if (end, steps) in means]
        if ends:
            better = min(ends, key=lambda end: means[end, steps])
            gain = summarise(differences([cell for cell in cells if cell["steps"] == steps], {name: better}))
            rows.append((name, steps, better, with_error(gain[name, steps]["frechet"])))
    print()
    print_table(["hybrid", "steps", "better end", "Frechet distance, hybrid minus end"], rows, left=(0, 2))


if __name__ == "__main__":
    main()
