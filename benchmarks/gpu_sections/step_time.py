"""A step of each scheduler against reading the logits once, and against diffusers' `AmusedScheduler.step`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import AmusedScheduler
from torch import Tensor

from hf_maskdiff import (
    AncestralScheduler,
    ConfidenceScheduler,
    EntropyBoundedScheduler,
    HaltonScheduler,
    HybridScheduler,
    MaskGITScheduler,
    MomentScheduler,
    UniformScheduler,
)

from .measures import Bench, Case, Row, free_bytes, in_a_way, milliseconds, milliseconds_to_issue, ways

# Shapes and dtypes: each pair of a vocabulary and a dtype takes some seconds to compile kernels for.
KINDS = (
    ((1, 256, 1024), torch.float32),
    ((16, 256, 1024), torch.float32),
    ((1, 1024, 50257), torch.bfloat16),
    ((32, 1024, 50257), torch.bfloat16),
    ((32, 1024, 50257), torch.float32),
)
TINY_KINDS = (((2, 16, 40), torch.float32), ((2, 16, 40), torch.bfloat16))
STEPS = 8
GOAL = 1.5  # reads of the logits
# diffusers' step holds probabilities, noise and copies of the logits; this is a generous multiple of their size.
AMUSED_COPIES = 5

SCHEDULERS: dict[str, Callable[..., Any]] = {
    "moment": MomentScheduler,
    "hybrid": HybridScheduler,
    "MaskGIT": MaskGITScheduler,
    "confidence": ConfidenceScheduler,
    "confidence, margin": partial(ConfidenceScheduler, measure="margin"),
    "confidence, entropy": partial(ConfidenceScheduler, measure="entropy"),
    # Its counts adapt to the logits, but with logits as flat as these they are the schedule's.
    "entropy-bounded": partial(EntropyBoundedScheduler, follow_schedule=True),
    "uniform": UniformScheduler,
    "Halton": HaltonScheduler,
    "ancestral": AncestralScheduler,
}
# Those that torch alone computes too where it is not what the package takes.
COMPARED = ("moment", "MaskGIT", "confidence", "uniform")


@dataclass(frozen=True)
class Logits:
    """The input that all schedulers of a table get."""

    shape: tuple[int, int, int]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{' x '.join(map(str, self.shape))}, {str(self.dtype).removeprefix('torch.')}"

    def make(self, device: torch.device) -> Tensor:
        generator = torch.Generator(device).manual_seed(0)
        return torch.randn(self.shape, generator=generator, device=device, dtype=self.dtype).mul_(3)


def cases(bench: Bench) -> Iterator[Case]:
    baselines: dict[Logits, float] = {}
    for shape, dtype in bench.pick(KINDS, TINY_KINDS):
        kind = Logits(shape, dtype)
        yield f"{kind}, AmusedScheduler", partial(amused, kind, bench, baselines)
        *slower, fastest = ways(bench)
        for way in slower:
            yield f"{kind}, ours by {way}", partial(in_a_way, way, partial(ours, kind, bench, baselines, COMPARED))
        yield f"{kind}, ours by {fastest}", partial(in_a_way, fastest, partial(ours, kind, bench, baselines))


@torch.no_grad()
def amused(kind: Logits, bench: Bench, baselines: dict[Logits, float]) -> Iterator[Row]:
    """Records diffusers' time per step in `baselines`, if its step fits into the memory."""
    logits = kind.make(bench.device)
    if AMUSED_COPIES * logits.numel() * logits.element_size() < free_bytes(bench.device):
        scheduler = AmusedScheduler(mask_token_id=kind.shape[2])
        work = partial(amused_run, scheduler, logits)
        baselines[kind] = milliseconds(work, bench.device, repeats=3, warm_up=1) / STEPS
    yield {"logits (B, L, V)": str(kind), "ms a step of AmusedScheduler": baselines.get(kind, "does not fit")}


@torch.no_grad()
def ours(
    kind: Logits, bench: Bench, baselines: dict[Logits, float], names: Iterable[str] = SCHEDULERS
) -> Iterator[Row]:
    (_, length, vocabulary), device, baseline = kind.shape, bench.device, baselines.get(kind)
    logits = kind.make(device)
    reading = milliseconds(lambda: logits.amax(-1), device, repeats=bench.pick(20, 2))
    for name in names:
        scheduler = SCHEDULERS[name](mask_token_id=vocabulary)
        scheduler.set_timesteps(STEPS)
        counts = scheduler.planned_counts(torch.tensor([length]))
        most = [None] * STEPS if counts is None else counts.amax(-1).tolist()
        work = partial(run, scheduler, logits, most)
        step = milliseconds(work, device, repeats=bench.pick(5, 2)) / STEPS
        yield {
            "logits (B, L, V)": str(kind),
            "scheduler": name,
            "ms a step": step,
            "ms to issue": milliseconds_to_issue(work, device) / STEPS,
            "ms to read once": reading,
            "reads": step / reading,
            "goal": GOAL,
            "times faster than AmusedScheduler": None if baseline is None else baseline / step,
        }


def run(scheduler: Any, logits: Tensor, most: list[int | None]) -> None:
    """A run as in the pipelines' loop, where the host knows how many positions a step reveals at most."""
    batch_size, length, vocabulary = logits.shape
    sample = torch.full((batch_size, length), vocabulary, device=logits.device)
    generator = torch.Generator(logits.device).manual_seed(0)
    for t, max_count in zip(scheduler.timesteps, most, strict=True):
        sample = scheduler.step(logits, t, sample, generator=generator, max_count=max_count).prev_sample


def amused_run(scheduler: AmusedScheduler, logits: Tensor) -> None:
    """The same run by diffusers; the view of the logits is the one that its `AmusedPipeline` passes."""
    batch_size, length, vocabulary = logits.shape
    sample = torch.full((batch_size, length), vocabulary, device=logits.device)
    generator = torch.Generator(logits.device).manual_seed(0)
    scheduler.set_timesteps(STEPS, (2, 0), logits.device)
    for t in scheduler.timesteps:
        sample = scheduler.step(logits, t, sample, generator=generator).prev_sample
