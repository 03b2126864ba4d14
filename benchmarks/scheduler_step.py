"""Times each scheduler's step against diffusers' `AmusedScheduler.step` on the same logits, as ratios in one run.

    python benchmarks/scheduler_step.py --output_dir out/scheduler_step
    python benchmarks/scheduler_step.py --shapes 16x256x1024 --device cuda

A measurement is the total over all steps of one cosine run from an all-masked sample, by default on one thread. The
schedulers take turns in an order that changes with each repeat, so that a busy machine slows all of them. The ratio
"times faster" is aMUSEd's time divided by ours in the same repeat, median over repeats. "reads" is the run's time
divided by the time to read all logits once per step (`logits.amax(-1)`), which is the least that a step needs if it
skips no logits. "extra" is the peak memory that a run allocates in addition to the logits, relative to their size.

Prints a table, writes `scheduler_step.json` and the plot `scheduler_step.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from arguments import add_machine_arguments, new_parser
from diffusers import AmusedScheduler
from memory import extra_memory
from plots import figure
from tables import print_table, write_json
from timing import median_ratio, take_turns
from torch import Tensor
from tqdm.auto import tqdm

from hf_maskdiff import (
    AncestralScheduler,
    ConfidenceScheduler,
    EditingScheduler,
    EntropyBoundedScheduler,
    ExtrapolatingScheduler,
    FreeCorrectionScheduler,
    HaltonScheduler,
    HybridScheduler,
    MaskGITScheduler,
    MomentScheduler,
    PathPlanningScheduler,
    ReMDMScheduler,
    TrapezoidalScheduler,
    UniformScheduler,
)

BASELINE = "AmusedScheduler"
SCHEDULERS: dict[str, Callable[..., Any]] = {
    BASELINE: AmusedScheduler,
    "MaskGITScheduler": MaskGITScheduler,
    "MomentScheduler": MomentScheduler,
    "HybridScheduler": HybridScheduler,
    "ConfidenceScheduler": ConfidenceScheduler,
    "ConfidenceScheduler, margin": lambda **shared: ConfidenceScheduler(**shared, measure="margin"),
    "ConfidenceScheduler, entropy": lambda **shared: ConfidenceScheduler(**shared, measure="entropy"),
    # Its counts adapt to the logits, but with logits as flat as these they are the schedule's.
    "EntropyBoundedScheduler": lambda **shared: EntropyBoundedScheduler(**shared, follow_schedule=True),
    "UniformScheduler": UniformScheduler,
    "HaltonScheduler": HaltonScheduler,
    # In this layout nothing is said of what is given, so what they take back is timed with a memory.
    "ReMDMScheduler": lambda **shared: ReMDMScheduler(**shared, eta=0.05),
    "ReMDMScheduler, moment": lambda **shared: ReMDMScheduler(
        **shared, eta=0.05, exact_order="moment", choice_temperature=6.0
    ),
    "EditingScheduler": EditingScheduler,
    "EditingScheduler, doubt": lambda **shared: EditingScheduler(**shared, edits="mask", doubt="changed"),
    "FreeCorrectionScheduler": FreeCorrectionScheduler,
    "PathPlanningScheduler": PathPlanningScheduler,
    "PathPlanningScheduler, moment": lambda **shared: PathPlanningScheduler(
        **shared, measure="moment", choice_temperature=6.0
    ),
}
# Not measured by default.
MORE: dict[str, Callable[..., Any]] = {
    "AncestralScheduler": AncestralScheduler,
    "TrapezoidalScheduler": TrapezoidalScheduler,
    "ExtrapolatingScheduler": ExtrapolatingScheduler,
}
SHAPES = ("1x256x1024", "16x256x1024", "4x256x16384", "1x1024x50257")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="batch x length x vocabulary; square lengths")
    parser.add_argument("--schedulers", nargs="+", choices=list(SCHEDULERS | MORE)[1:], default=list(SCHEDULERS)[1:])
    parser.add_argument("--num_inference_steps", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0, help="approximate time for each shape")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add_machine_arguments(parser)
    parser.add_argument("--output_dir", type=Path)
    return parser.parse_args(argv)


def run(scheduler: Any, logits: Tensor, num_inference_steps: int) -> None:
    """One whole run on fixed logits, in the layout diffusers' pipeline sends: `(batch_size, V, height, width)`."""
    batch_size, length, vocabulary = logits.shape
    side = round(length**0.5)
    sample = torch.full((batch_size, side, side), scheduler.config.mask_token_id, device=logits.device)
    model_output = logits.view(batch_size, side, side, vocabulary).permute(0, 3, 1, 2)  # a view: nothing is copied
    generator = torch.Generator(logits.device).manual_seed(0)
    scheduler.set_timesteps(num_inference_steps, (2, 0), logits.device)
    memory = {"memory": scheduler.new_memory()} if hasattr(scheduler, "new_memory") else {}  # theirs has none
    for t in scheduler.timesteps:
        sample = scheduler.step(model_output, t, sample, generator=generator, **memory).prev_sample


@torch.no_grad()
def measure(shape: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per scheduler."""
    batch_size, length, vocabulary = (int(number) for number in shape.split("x"))
    device = torch.device(args.device)
    generator = torch.Generator(device).manual_seed(0)
    logits = 3 * torch.randn(batch_size, length, vocabulary, generator=generator, device=device)
    logits = logits.to(getattr(torch, args.dtype))
    steps = args.num_inference_steps
    schedulers = {name: (SCHEDULERS | MORE)[name](mask_token_id=vocabulary) for name in (BASELINE, *args.schedulers)}
    works = {name: lambda s=scheduler: run(s, logits, steps) for name, scheduler in schedulers.items()}
    works["read"] = lambda: [logits.amax(-1) for _ in range(steps)]

    times = take_turns(works, repeats=3, at_least=args.seconds)
    size = logits.numel() * logits.element_size()
    rows = []
    for name in schedulers:
        extra = extra_memory(works[name], device)
        rows.append(
            {
                "shape": shape,
                "scheduler": name,
                "milliseconds": 1000 * median(times[name]),
                "times faster": median_ratio(times, BASELINE, name),
                "reads": median_ratio(times, name, "read"),
                "extra bytes": extra,
                "extra share": extra / size,
                "repeats": len(times[name]),
            }
        )
    return rows


def table_row(row: dict[str, Any]) -> list[str]:
    numbers = [f"{row['milliseconds']:.1f}", f"{row['times faster']:.1f}", f"{row['reads']:.0f}"]
    memory = f"{row['extra bytes'] / 2**20:.1f} MiB = {row['extra share']:.2f} of the logits"
    return [row["shape"].replace("x", " x "), row["scheduler"], *numbers, memory]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    names = list(dict.fromkeys(row["scheduler"] for row in rows if row["scheduler"] != BASELINE))
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    with figure(path, figsize=(7, 4)) as page:
        axes = page.subplots()
        for place, shape in enumerate(shapes):
            ratios = {row["scheduler"]: row["times faster"] for row in rows if row["shape"] == shape}
            offsets = [i + (place - (len(shapes) - 1) / 2) * 0.8 / len(shapes) for i in range(len(names))]
            axes.barh(offsets, [ratios[name] for name in names], 0.8 / len(shapes), label=shape.replace("x", " x "))
        axes.axvline(1, color="grey", linewidth=1)
        axes.set(xscale="log", xlabel=f"times faster than {BASELINE}, whole cosine run")
        axes.set_yticks(range(len(names)), labels=names)
        axes.invert_yaxis()
        axes.legend(title="logits (B, L, V)", fontsize="small")


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    args = parse_args(argv)
    torch.set_num_threads(args.num_threads)
    rows = [row for shape in tqdm(args.shapes, desc="shapes") for row in measure(shape, args)]
    print(f"{args.num_inference_steps} steps, {args.dtype}, {args.device}, {args.num_threads} thread(s)\n")
    headings = ["logits (B, L, V)", "scheduler", "ms a run", "times faster", "reads of the logits", "extra memory"]
    print_table(headings, map(table_row, rows), left=(0, 1))
    if args.output_dir is not None:
        write_json(rows, args.output_dir / "scheduler_step.json")
        plot(rows, args.output_dir / "scheduler_step.png")
    return rows


if __name__ == "__main__":
    main()
