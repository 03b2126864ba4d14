"""Entropy-bounded unmasking: passes and quality against the bound, beside the entropy order at fixed steps.

    python benchmarks/entropy_bound.py --dataset ylecun/mnist --output_dir out/entropy_bound
    python benchmarks/entropy_bound.py --dataset ylecun/mnist --output_dir out/entropy_bound --resume   # after a stop

Cells, images and measures are those of `images.py`. The samplers: "bound B" may take as many steps as an image has
positions, so that the bound alone decides; "bound B, on schedule" takes `--steps` at most, and reveals at least what
the cosine schedule plans; "bound B, cut off" takes `--steps` at most, the last of which reveals all that is left;
"entropy order" and "uniform order" reveal what the schedule plans. All draw plainly from the model's marginals.

Prints a table, and writes `results.json` (after every cell) and `entropy_bound.png`. Passes are a mean over images, one
being done when it has no mask left; calls are those of a batch, which ends with its slowest image.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cells import Cell, summarise, with_error
from images import REFERENCES, Samplers, make_parser, run

from hf_maskdiff import ConfidenceScheduler, EntropyBoundedScheduler, UniformScheduler

BASELINES: Samplers = {
    "entropy order": lambda shared, _: ConfidenceScheduler(**shared, measure="entropy"),
    "uniform order": lambda shared, _: UniformScheduler(**shared),
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--bounds", type=float, nargs="+", default=[0.5, 2, 4, 8, 16, 32, 64], help="in nats")
    parser.add_argument("--steps", type=int, nargs="+", default=[8], help="of the samplers on schedule or cut off")
    parser.add_argument("--baseline_steps", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--num_positions", type=int, default=49, help="of an image: the steps that a bound may take")
    return parser.parse_args(argv)


def bounded(bound: float, follow_schedule: bool) -> Any:
    return lambda shared, _: EntropyBoundedScheduler(**shared, entropy_bound=bound, follow_schedule=follow_schedule)


def print_table(cells: list[dict[str, Any]]) -> None:
    print("| sampler | most steps | passes an image | calls a batch | Frechet distance | class accuracy |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for (sampler, steps), row in summarise(cells).items():
        accuracy = tuple(100 * value for value in row["accuracy"])
        print(
            f"| {sampler} | {steps or ''} | {row['passes'][0]:.1f} | {row['calls'][0]:.1f} "
            f"| {with_error(row['frechet'])} | {with_error(accuracy)} % |"
        )


def plot(cells: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    summary = summarise(cells)
    for name, style in zip(REFERENCES, (":", "--"), strict=True):
        axes.axhline(summary[name, 0]["frechet"][0], color="grey", linestyle=style, linewidth=1, label=name)
    curves: dict[str, list[tuple[float, float, float, str]]] = {}
    for (sampler, steps), row in summary.items():
        if steps:
            bound, _, mode = sampler.removeprefix("bound ").partition(", ")
            curve = sampler if sampler in BASELINES else f"bounded, {mode}, {steps} steps" if mode else "bounded"
            label = "" if sampler in BASELINES else bound
            curves.setdefault(curve, []).append((row["passes"][0], *row["frechet"], label))
    for curve, points in curves.items():
        x, y, error, labels = zip(*sorted(points), strict=True)
        bars = axes.errorbar(x, y, error, marker="o", markersize=3, capsize=3, label=curve)
        for place in zip(x, y, labels, strict=True):
            axes.annotate(
                place[2], place[:2], (3, 3), textcoords="offset points", fontsize=6, color=bars[0].get_color()
            )
    axes.set(xscale="log", yscale="log", xlabel="model passes an image (mean)")
    axes.set_ylabel("Frechet distance, mean and standard error")
    for axis, ticks in ((axes.xaxis, (2, 4, 8, 16, 32, 64)), (axes.yaxis, (5, 10, 20, 40, 80))):
        axis.set_ticks(ticks, labels=ticks)
        axis.set_ticks([], minor=True)
    figure.legend(fontsize="small", loc="outside right upper", title="numbers: bound in nats")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    samplers, pairs = dict(BASELINES), [(name, 0) for name in REFERENCES]
    for bound in args.bounds:
        names = f"bound {bound:g}", f"bound {bound:g}, on schedule", f"bound {bound:g}, cut off"
        samplers |= {name: bounded(bound, follow) for name, follow in zip(names, (False, True, False), strict=True)}
        pairs += [(names[0], args.num_positions), *((name, steps) for name in names[1:] for steps in args.steps)]
    pairs += [(name, steps) for name in BASELINES for steps in args.baseline_steps]
    # Seed by seed, so that a run that was stopped has a table with one seed less, not one with fewer rows.
    wanted: list[Cell] = [(name, steps, seed) for seed in range(args.num_seeds) for name, steps in pairs]
    results = run(args, samplers, wanted)
    print_table(results["cells"])
    plot(results["cells"], args.output_dir / "entropy_bound.png")
    return results


if __name__ == "__main__":
    main()
