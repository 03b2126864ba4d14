"""Whether the host waits for the device inside the pipelines' loops."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

import hf_maskdiff
from hf_maskdiff import (
    ConfidenceScheduler,
    FirstHittingScheduler,
    FreeCorrectionScheduler,
    HaltonScheduler,
    HybridScheduler,
    MaskGITScheduler,
    MomentScheduler,
    PathPlanningScheduler,
    UniformScheduler,
    kernels,
)

from .measures import Bench, Case, Row
from .models import Subject, subjects

COUNT_PLANNED = (
    MaskGITScheduler,
    MomentScheduler,
    HybridScheduler,
    UniformScheduler,
    HaltonScheduler,
    ConfidenceScheduler,
    FirstHittingScheduler,
    PathPlanningScheduler,
    FreeCorrectionScheduler,
)
# Groups per step, options of the cache, and the name in the rows.
CACHING: dict[str, tuple[int, dict[str, Any]]] = {
    "off": (1, {}),
    "2 groups": (2, {"full_pass_threshold": 1.0}),
    "2 groups, full passes": (2, {"full_pass_threshold": 0.0}),
}


class Watch:
    """torch's synchronisation mode from a pipeline's first model call to the end of its loop.

    It replaces the pipeline's progress bar, which the loop tells of every step, and whose context it leaves after the
    last one. Before the first call the host reads the number of masks, and after the last step, once for each block of
    a text, whether all tokens were drawn: these waits are intended.
    """

    def __init__(self, pipe: Any, mode: str, device: torch.device) -> None:
        self.pipe, self.mode, self.on_gpu, self.calls = pipe, mode, device.type == "cuda", 0
        self.total: int | None = None  # steps, as the loop says
        self.steps = 0

    def __call__(self, iterable: Any = None, total: int | None = None) -> Watch:
        self.total = total
        return self

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._switch("default")

    def update(self, n: int = 1) -> None:
        self.steps += n
        if self.steps == self.total:
            self._switch("default")

    def refresh(self) -> None:
        pass

    def _switch(self, mode: str) -> None:
        if self.on_gpu:
            torch.cuda.set_sync_debug_mode(mode)

    def _before_model(self, *_: Any) -> None:
        self.calls += 1
        self._switch(self.mode)

    def run(self, subject: Subject, steps: int, batch_size: int, **options: Any) -> None:
        model: nn.Module = self.pipe.transformer
        handle = model.register_forward_pre_hook(self._before_model)
        before, self.pipe.progress_bar = self.pipe.progress_bar, self
        try:
            subject.run(steps, batch_size, **options)
        finally:
            self._switch("default")
            self.pipe.progress_bar = before
            handle.remove()


def cases(bench: Bench) -> Iterator[Case]:
    kernels.usable(bench.device)  # their trial, once in a process, waits
    small = Bench(bench.device, tiny=True)  # whether the host waits does not depend on sizes
    for build in subjects(small).values():
        subject = build()
        name = type(subject.pipe).__name__
        for scheduler in COUNT_PLANNED:
            for caching in CACHING:
                if caching in possible(scheduler):
                    case = f"{name} of {type(subject.pipe.transformer).__name__}, {scheduler.__name__}, {caching}"
                    yield case, partial(one_run, subject, scheduler, caching, bench, {})
        per_row = [torch.Generator(bench.device).manual_seed(row) for row in range(2)]
        case = f"{name} of {type(subject.pipe.transformer).__name__}, a generator per row"
        yield case, partial(one_run, subject, MomentScheduler, "off", bench, {"generator": per_row})
        case = f"{name} of {type(subject.pipe.transformer).__name__}, guided"
        yield case, partial(one_run, subject, MomentScheduler, "off", bench, {"guidance_scale": 2.0})


def possible(scheduler: type) -> Iterable[str]:
    """The caching modes to run: MaskGIT allows none, and one scheduler suffices for the options of the cache."""
    if scheduler is MaskGITScheduler:
        return ["off"]
    return CACHING if scheduler is MomentScheduler else ["off", "2 groups"]


def one_run(subject: Subject, scheduler: type, caching: str, bench: Bench, options: dict[str, Any]) -> Iterator[Row]:
    num_substeps, config = CACHING[caching]
    shared = {name: subject.pipe.scheduler.config[name] for name in ("mask_token_id", "codebook_size")}
    subject.pipe.register_modules(scheduler=scheduler(**shared, masking_schedule="cosine"))
    with subject.in_groups(num_substeps, **config):
        subject.run(4, 2, **options)  # probes of the model, caches of constants
        watch = Watch(subject.pipe, "error", bench.device)
        places: list[str] = []
        try:
            watch.run(subject, 4, 2, **options)
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            places = waits(subject, bench.device, options) or [place_of(traceback.extract_tb(error.__traceback__))]
    yield {
        "pipeline": f"{type(subject.pipe).__name__} of {type(subject.pipe.transformer).__name__}",
        "scheduler": scheduler.__name__,
        "partial caching": caching,
        "options": ", ".join(options) or "none",
        "model calls": watch.calls,
        "waits": f"in {len(places)} places" if places else "none" if bench.on_gpu else "not looked for on a CPU",
        "places": "; ".join(places),
    }


def waits(subject: Subject, device: torch.device, options: dict[str, Any]) -> list[str]:
    """All lines of a run that make the host wait; the mode that raises an error names only the first."""
    places: dict[str, None] = {}

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "called a synchroniz" in str(message):
            places[place_of(traceback.extract_stack())] = None

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        Watch(subject.pipe, "warn", device).run(subject, 4, 2, **options)
    return list(places)


def place_of(stack: traceback.StackSummary) -> str:
    """The innermost line of this package, and the innermost line of all if that is a different one."""
    package = Path(hf_maskdiff.__file__).parent
    frames = [frame for frame in stack if frame.filename not in (__file__, warnings.__file__)]
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(package)]
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-1:]]
    if own and own[-1] is not frames[-1]:
        name = Path(own[-1].filename).relative_to(package).as_posix()
        places.insert(0, f"{name}:{own[-1].lineno}")
    return ", from ".join(places)
