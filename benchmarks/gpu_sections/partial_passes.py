"""The cost of a partial pass relative to a full one, and of runs with two groups per step relative to plain ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from statistics import median

import torch

from .measures import Bench, Case, Row, Work, ratio, take_turns
from .models import Subject, subjects

SHARES = [Fraction(share) for share in ("1/16", "1/4", "1/2", "1")]
# Few rows wait for the host, whatever a pass computes: LLaDA-8B shows it.
BATCH_SIZES = {"MDLM": (8,), "Halton-MaskGIT large": (16,), "LLaDA-8B": (1, 4)}
STEPS = 8


def cases(bench: Bench) -> Iterator[Case]:
    for name, build in subjects(bench).items():
        subject = build()
        for batch_size in bench.pick(BATCH_SIZES[name], (1,)):
            yield f"passes of {name}, batch {batch_size}", partial(passes, subject, batch_size, bench)
            yield f"runs of {name}, batch {batch_size}", partial(runs, subject, batch_size, bench)


@torch.no_grad()
def passes(subject: Subject, batch_size: int, bench: Bench) -> Iterator[Row]:
    """A partial pass over k of the positions to fill in, relative to a full pass over all L."""
    tokens = subject.masked(batch_size, bench.device)
    works: dict[str, Work] = {"full": lambda: subject.apply(tokens)}
    counts = sorted({max(1, int(share * subject.new)) for share in SHARES})
    for count in counts:
        at = torch.randperm(subject.new, device=bench.device)[:count] + subject.length - subject.new
        at = at.expand(batch_size, -1).contiguous()
        works[str(count)] = _partial_pass(subject, tokens.gather(1, at), at)
    subject.apply(tokens)  # the full pass that a partial pass needs before it
    times = take_turns(works, bench.device, repeats=bench.pick(3, 1))
    for count in counts:
        yield {
            "model": subject.name,
            "batch": batch_size,
            "L": subject.length,
            "k": count,
            "k / L": count / subject.length,
            "ms, full pass": median(times["full"]),
            "ms, partial pass": median(times[str(count)]),
            "partial / full": ratio(times, str(count), "full"),
        }


def _partial_pass(subject: Subject, tokens: torch.Tensor, positions: torch.Tensor) -> Callable[[], object]:
    return lambda: subject.apply(tokens, positions=positions)


def runs(subject: Subject, batch_size: int, bench: Bench) -> Iterator[Row]:
    steps = bench.pick(STEPS, 2)

    def in_groups() -> None:
        with subject.in_groups(2):
            subject.run(steps, batch_size)

    works: dict[str, Work] = {
        "plain": lambda: subject.run(steps, batch_size),
        "groups": in_groups,
        "twice": lambda: subject.run(2 * steps, batch_size),
    }
    times = take_turns(works, bench.device, repeats=bench.pick(2, 1))
    yield {
        "model": subject.name,
        "batch": batch_size,
        "steps n": steps,
        "ms, n plain": median(times["plain"]),
        "ms, n in 2 groups": median(times["groups"]),
        "ms, 2n plain": median(times["twice"]),
        "groups / n plain": ratio(times, "groups", "plain"),
        "groups / 2n plain": ratio(times, "groups", "twice"),
    }
