"""Times each scheduler's step against diffusers' `AmusedScheduler.step` on the same logits, as ratios in one run.

    python benchmarks/scheduler_step.py --output_dir out/scheduler_step
    python benchmarks/scheduler_step.py --shapes 16x256x1024 --device cuda

A measurement is the total over all steps of one cosine run from an all-masked sample, by default on one thread. The
schedulers take turns in an order that changes with each repeat, so that a busy machine slows all of them; a ratio is
the median over repeats of aMUSEd's time over ours in that repeat. "reads" is the run's time over that of reading
all logits once per step (`logits.amax(-1)`): how far it is from the least a step could do if nothing were skipped.
"extra" is the peak memory that a run allocates beside the logits, over the logits' own.

Prints a table, writes `scheduler_step.json` and the plot `scheduler_step.png`.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import AmusedScheduler
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm

from hf_maskdiff import (
    ConfidenceScheduler,
    EntropyBoundedScheduler,
    HaltonScheduler,
    HybridScheduler,
    MaskGITScheduler,
    MomentScheduler,
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
    # Its counts adapt, but flat logits such as these let no position in beyond the schedule's.
    "EntropyBoundedScheduler": lambda **shared: EntropyBoundedScheduler(**shared, follow_schedule=True),
    "UniformScheduler": UniformScheduler,
    "HaltonScheduler": HaltonScheduler,
}
SHAPES = ("1x256x1024", "16x256x1024", "4x256x16384", "1x1024x50257")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="batch x length x vocabulary; square lengths")
    parser.add_argument("--schedulers", nargs="+", choices=list(SCHEDULERS)[1:], default=list(SCHEDULERS)[1:])
    parser.add_argument("--num_inference_steps", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each shape, about")
    parser.add_argument("--num_threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output_dir", type=Path)
    return parser.parse_args(argv)


class CountMemory(TorchDispatchMode):
    """Peak bytes of storages that operations allocate while this is on, for a CPU, which keeps no such count."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self.seen.add(tensor.untyped_storage()._cdata)
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def run(scheduler: Any, logits: Tensor, num_inference_steps: int) -> None:
    """One whole run on fixed logits, in the layout diffusers' pipeline sends: `(batch_size, V, height, width)`."""
    batch_size, length, vocabulary = logits.shape
    side = round(length**0.5)
    sample = torch.full((batch_size, side, side), scheduler.config.mask_token_id, device=logits.device)
    model_output = logits.view(batch_size, side, side, vocabulary).permute(0, 3, 1, 2)  # a view: no copy for either
    generator = torch.Generator(logits.device).manual_seed(0)
    scheduler.set_timesteps(num_inference_steps, (2, 0), logits.device)
    for t in scheduler.timesteps:
        sample = scheduler.step(model_output, t, sample, generator=generator).prev_sample


def seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def extra_memory(work: Callable[[], object], device: torch.device) -> int:
    """Peak bytes that `work` allocates."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with CountMemory() as memory:
        work()
    return memory.peak


@torch.no_grad()
def measure(shape: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per scheduler."""
    batch_size, length, vocabulary = (int(number) for number in shape.split("x"))
    device = torch.device(args.device)
    generator = torch.Generator(device).manual_seed(0)
    logits = 3 * torch.randn(batch_size, length, vocabulary, generator=generator, device=device)
    logits = logits.to(getattr(torch, args.dtype))
    steps = args.num_inference_steps
    schedulers = {name: SCHEDULERS[name](mask_token_id=vocabulary) for name in (BASELINE, *args.schedulers)}
    works = {name: lambda s=scheduler: run(s, logits, steps) for name, scheduler in schedulers.items()}
    works["read"] = lambda: [logits.amax(-1) for _ in range(steps)]

    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    order, shuffle, started = list(works), random.Random(0), time.perf_counter()
    while len(times["read"]) < 3 or time.perf_counter() - started < args.seconds:
        shuffle.shuffle(order)
        for name in order:
            times[name].append(seconds(works[name], device))
    size = logits.numel() * logits.element_size()
    rows = []
    for name in schedulers:
        ratios = [ours and theirs / ours for theirs, ours in zip(times[BASELINE], times[name], strict=True)]
        reads = [ours / read for ours, read in zip(times[name], times["read"], strict=True)]
        extra = extra_memory(works[name], device)
        rows.append(
            {
                "shape": shape,
                "scheduler": name,
                "milliseconds": 1000 * median(times[name]),
                "times faster": median(ratios),
                "reads": median(reads),
                "extra bytes": extra,
                "extra share": extra / size,
                "repeats": len(ratios),
            }
        )
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    print("| logits (B, L, V) | scheduler | ms a run | times faster | reads of the logits | extra memory |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        print(
            f"| {row['shape'].replace('x', ' x ')} | {row['scheduler']} | {row['milliseconds']:.1f} "
            f"| {row['times faster']:.1f} | {row['reads']:.0f} "
            f"| {row['extra bytes'] / 2**20:.1f} MiB = {row['extra share']:.2f} of the logits |"
        )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["scheduler"] for row in rows if row["scheduler"] != BASELINE))
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for place, shape in enumerate(shapes):
        ratios = {row["scheduler"]: row["times faster"] for row in rows if row["shape"] == shape}
        offsets = [i + (place - (len(shapes) - 1) / 2) * 0.8 / len(shapes) for i in range(len(names))]
        axes.barh(offsets, [ratios[name] for name in names], 0.8 / len(shapes), label=shape.replace("x", " x "))
    axes.axvline(1, color="grey", linewidth=1)
    axes.set(xscale="log", xlabel=f"times faster than {BASELINE}, whole cosine run")
    axes.set_yticks(range(len(names)), labels=names)
    axes.invert_yaxis()
    axes.legend(title="logits (B, L, V)", fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    args = parse_args(argv)
    torch.set_num_threads(args.num_threads)
    rows = [row for shape in tqdm(args.shapes, desc="shapes") for row in measure(shape, args)]
    print(f"{args.num_inference_steps} steps, {args.dtype}, {args.device}, {args.num_threads} thread(s)\n")
    print_table(rows)
    if args.output_dir is not None:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        (args.output_dir / "scheduler_step.json").write_text(json.dumps(rows, indent=1))
        plot(rows, args.output_dir / "scheduler_step.png")
    return rows


if __name__ == "__main__":
    main()
