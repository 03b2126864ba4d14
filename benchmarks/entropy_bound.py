"""Entropy-bounded unmasking: passes and quality against the bound, beside the entropy order at fixed steps.

    python benchmarks/entropy_bound.py --dataset ylecun/mnist --output_dir out/entropy_bound
    python benchmarks/entropy_bound.py --dataset ylecun/mnist --output_dir out/entropy_bound --resume   # after a stop

Cells, images and measures are those of `images.py`. The samplers: "bound B" may take as many steps as an image has
positions, so that the bound alone decides; "bound B, on schedule" takes at most `--steps`, and reveals in each at least
as many positions as the cosine schedule plans; "bound B, cut off" takes at most `--steps`, and the last reveals all
remaining positions; "entropy order" and "uniform order" follow the schedule. All draw from the model's own marginals.

Prints a table, and writes `results.json` (after every cell) and `entropy_bound.png`. "Passes" is a mean over images,
where an image needs passes until it has no masks; "calls" counts those of a batch, which ends with its slowest image.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cells import Row, Summary, summarise
from images import QUALITY, make_parser, run
from looks import look
from plots import PAPER, End, draw_curve, draw_references, figure, label_ends, set_ticks
from samplers import Samplers, plain
from tables import print_cells

from hf_maskdiff import ConfidenceScheduler, EntropyBoundedScheduler, UniformScheduler

BASELINES: Samplers = {
    "entropy order": plain(ConfidenceScheduler, measure="entropy"),
    "uniform order": plain(UniformScheduler),
}
COLUMNS: dict[str, Callable[[Row], str]] = {
    "passes per image": lambda row: f"{row['passes'][0]:.1f}",
    "calls per batch": lambda row: f"{row['calls'][0]:.1f}",
    **QUALITY,
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--bounds", type=float, nargs="+", default=[0.5, 2, 4, 8, 16, 32, 64], help="in nats")
    parser.add_argument("--steps", type=int, nargs="*", default=[8], help="for the samplers on schedule or cut off")
    parser.add_argument("--baseline_steps", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--num_positions", type=int, default=49, help="per image: the most steps a bound may take")
    return parser.parse_args(argv)


def plot(summary: Summary, path: Path, title: str = "Passes and quality, by entropy bound") -> None:
    """Plot quality against passes: lines for fixed orders and the bound alone, points for bounds within few steps."""
    lines: dict[str, list[tuple[float, float, float, str]]] = {}
    for (sampler, steps), row in summary.items():
        if steps:
            bound, _, mode = sampler.removeprefix("bound ").partition(", ")
            words = f"{bound} nats,\n{mode}" if mode == "on schedule" else f"{bound} nats,\n{mode} at {steps}"
            line, label = (
                (sampler, "") if sampler in BASELINES else (f"bounded {mode}", words if mode else f"{bound} nats")
            )
            lines.setdefault(line, []).append((row["passes"][0], *row["frechet"], label))
    with figure(path, title=title, figsize=(9, 5.4)) as page:
        axes = page.subplots()
        ends = draw_references(axes, summary, "frechet")
        for line, points in lines.items():
            style = look(line) | {"linestyle": "-" if line in ("bounded ", *BASELINES) else "", "zorder": 3}
            style |= {} if line in BASELINES else {"marker": "D", "markersize": 8}
            draw_curve(axes, [point[:3] for point in points], line, **style)
            if line in BASELINES:
                ends.append(End(line, *max(points)[:2], style["color"]))
            for x, y, _, label in points:
                place = {"xytext": (10, 3), "textcoords": "offset points", "va": "top", "color": style["color"]}
                axes.annotate(label, (x, y), bbox=PAPER, **place)
        axes.set(xscale="log", yscale="log", xlabel="model passes an image needs, mean")
        axes.set_ylabel("Frechet distance, lower is better")
        set_ticks(axes.xaxis, (2, 4, 8, 16, 32, 64))
        set_ticks(axes.yaxis, (6, 8, 10, 15, 20, 30, 40, 60, 80))
        label_ends(page, {axes: ends})


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    samplers, pairs = dict(BASELINES), []
    for bound in args.bounds:
        names = f"bound {bound:g}", f"bound {bound:g}, on schedule", f"bound {bound:g}, cut off"
        for name in names:
            follow = name.endswith("on schedule")
            samplers[name] = plain(EntropyBoundedScheduler, entropy_bound=bound, follow_schedule=follow)
        pairs += [(names[0], args.num_positions), *((name, steps) for name in names[1:] for steps in args.steps)]
    pairs += [(name, steps) for name in BASELINES for steps in args.baseline_steps]
    results = run(args, samplers, pairs)
    print_cells(results["cells"], COLUMNS, "most steps")
    plot(summarise(results["cells"]), args.output_dir / "entropy_bound.png")
    return results


if __name__ == "__main__":
    main()
