r"""Where the hybrid order pays: exploration orders x ratios against their two ends, on image grids of any size.

    python benchmarks/hybrid.py --pipeline PIPELINE --classifier pipelines/maskgit-mnist/digit_classifier \
        --dataset ylecun/mnist --output_dir out/hybrid

For a finer grid than the shipped 7 x 7 train one of 14 x 14 codes first:

    accelerate launch examples/train_vq.py --dataset ylecun/mnist --block_out_channels 16 32 --max_train_steps 1500 \
        --output_dir runs/vq14
    accelerate launch examples/train_maskgit.py --dataset ylecun/mnist --tokenizer runs/vq14 --batch_size 64 \
        --hidden_size 96 --intermediate_size 192 --num_layers 5 --max_train_steps 2200 --output_dir runs/maskgit14

Cells and measures are those of `images.py`. All samplers of a table draw tokens at the same choice temperature, so that
they differ in the order alone: the ends are "halton" and "uniform" (explore only) and "moment" (exploit only), and
"halton 0.5" explores with half of each step's positions; "halton 1>0" with all of them at first and none in the end.
After the table come the differences to the better end, seed by seed, with standard errors. Text has its own table in
`text.py`, exact conditionals in `markov_chain.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import images
from cells import differences, summarise, with_error
from images import Samplers, make_parser, print_table, run

from hf_maskdiff import HaltonScheduler, HybridScheduler, MomentScheduler, UniformScheduler

RATIOS: dict[str, float | tuple[float, float]] = {"0.25": 0.25, "0.5": 0.5, "0.75": 0.75, "1>0": (1.0, 0.0)}
ENDS: Samplers = {
    "moment": lambda shared, alpha: MomentScheduler(**shared, choice_temperature=alpha),
    "halton": lambda shared, alpha: HaltonScheduler(**shared, choice_temperature=alpha),
    "uniform": lambda shared, alpha: UniformScheduler(**shared, choice_temperature=alpha),
}
MIXTURES: Samplers = {
    f"{order} {name}": lambda shared, alpha, order=order, ratio=ratio: HybridScheduler(
        **shared, exploration=order, exploration_ratio=ratio, choice_temperature=alpha
    )
    for order in ("halton", "uniform")
    for name, ratio in RATIOS.items()
}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser(__doc__)
    parser.add_argument("--samplers", nargs="+", choices=[*ENDS, *MIXTURES], default=[*ENDS, *MIXTURES])
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8])
    args = parser.parse_args(argv)
    names = [name for name in args.samplers if name in ENDS] + [name for name in args.samplers if name in MIXTURES]
    wanted = [(name, 0, seed) for seed in range(args.num_seeds) for name in images.REFERENCES]
    wanted += [(name, steps, seed) for seed in range(args.num_seeds) for steps in args.steps for name in names]
    results = run(args, ENDS | MIXTURES, wanted)
    print_table(results["cells"])
    print_gains(results["cells"])
    return results


def print_gains(cells: list[dict[str, Any]]) -> None:
    """What each mixture gains in Frechet distance on the better of its two ends; negative is nearer to real images."""
    means = {key: row["frechet"][0] for key, row in summarise(cells).items()}
    print("\n| hybrid | steps | better end | Frechet distance, hybrid minus end |\n| --- | ---: | --- | ---: |")
    for name, steps in [key for key in means if key[0] in MIXTURES]:
        ends = [end for end in ("moment", name.split()[0]) if (end, steps) in means]
        if ends:
            better = min(ends, key=lambda end: means[end, steps])
            row = summarise(differences([cell for cell in cells if cell["steps"] == steps], {name: better}))
            print(f"| {name} | {steps} | {better} | {with_error(row[name, steps]['frechet'])} |")


if __name__ == "__main__":
    main()
