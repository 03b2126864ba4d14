"""Tokens and images per second, the share of a call that is spent outside the model, and memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

from .measures import Bench, Case, Clock, Row, peak_gib
from .models import Subject, subjects

BATCH_SIZES = {"MDLM": (1, 16), "Halton-MaskGIT large": (32,), "LLaDA-8B": (1, 4)}
STEPS = {"MDLM": 32, "Halton-MaskGIT large": 16, "LLaDA-8B": 16}
GOAL = 0.02  # for the share of time outside the model


class ModelClock:
    """Time stamps before and after every call of a pipeline's model.

    Those of a model of transformers are at its embeddings and its head: one that is itself hooked is called in full,
    not in the shorter way that passes take otherwise.
    """

    def __init__(self, pipe: Any, clock: Clock) -> None:
        self.clock, self.stamps = clock, []
        model = pipe.transformer
        ends = (model.get_input_embeddings(), model.lm_head) if hasattr(model, "lm_head") else (model, model)
        before = ends[0].register_forward_pre_hook(lambda *_: self.stamps.append(clock.stamp()))
        after = ends[1].register_forward_hook(lambda *_: self.stamps.append(clock.stamp()))
        self.handles = (before, after)

    def take(self) -> tuple[float, int]:
        """Milliseconds in the model since the last time, and its calls; after a `wait`."""
        pairs = list(zip(self.stamps[::2], self.stamps[1::2], strict=True))
        self.stamps.clear()
        return sum(self.clock.milliseconds(*pair) for pair in pairs), len(pairs)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def cases(bench: Bench) -> Iterator[Case]:
    for name, build in subjects(bench).items():
        subject = None
        gc.collect()  # so that memory of the previous case does not count
        subject = build()
        for batch_size in bench.pick(BATCH_SIZES[name], (2,)):
            for num_substeps in (1, 2):
                case = f"{name}, batch {batch_size}, {num_substeps} groups"
                yield case, partial(of_calls, subject, batch_size, num_substeps, bench.pick(STEPS[name], 2), bench)


def of_calls(subject: Subject, batch_size: int, num_substeps: int, steps: int, bench: Bench) -> Iterator[Row]:
    with subject.in_groups(num_substeps):
        subject.run(min(steps, 4), batch_size)
        whole, inside, calls = timed_calls(subject, batch_size, steps, bench)
        memory = peak_gib(lambda: subject.run(2, batch_size), bench.device)
        decoded = None
        if subject.unit == "images":
            decoded, *_ = timed_calls(subject, batch_size, steps, bench, output_type="pt")
            memory = peak_gib(lambda: subject.run(2, batch_size, output_type="pt"), bench.device)
    made = batch_size * (subject.new if subject.unit == "tokens" else 1)
    yield {
        "model": subject.name,
        "batch": batch_size,
        "steps": steps,
        "groups": num_substeps,
        "model calls": calls,
        "ms a call of the pipeline": whole,
        "ms a model call": inside / calls,
        "made": subject.unit,
        "a second": 1000 * made / whole,
        "a second, decoded": None if decoded is None else 1000 * made / decoded,
        "outside the model": 1 - inside / whole,
        "goal": GOAL,
        "peak GiB": memory,
    }


def timed_calls(
    subject: Subject, batch_size: int, steps: int, bench: Bench, **options: Any
) -> tuple[float, float, int]:
    """Milliseconds of a pipeline's call, and of the model within it, in the median repeat; and the model's calls."""
    clock = Clock(bench.device)
    model, repeats = ModelClock(subject.pipe, clock), []
    try:
        for _ in range(bench.pick(3, 1)):
            started = clock.stamp()
            subject.run(steps, batch_size, **options)
            ended = clock.stamp()
            clock.wait()
            repeats.append((clock.milliseconds(started, ended), *model.take()))
    finally:
        model.remove()
    middle = median([whole for whole, _, _ in repeats])
    return next(repeat for repeat in repeats if repeat[0] == middle)
