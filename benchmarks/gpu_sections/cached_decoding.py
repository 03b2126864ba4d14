"""Text written in blocks with keys and values of earlier passes: time, positions and memory of each cache."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

from torch import Tensor, nn

from hf_maskdiff import ConfidenceScheduler, DelayedCacheConfig, DualCacheConfig, PrefixCacheConfig

from .measures import Bench, Case, Row, Work, peak_gib, ratio, take_turns
from .models import Subject, generator, llada

NONE = "none"
CACHES: dict[str, Any] = {
    NONE: None,
    "prefix": PrefixCacheConfig(),
    "dual": DualCacheConfig(),
    "delayed": DelayedCacheConfig(refresh_every=8),
}


def cases(bench: Bench) -> Iterator[Case]:
    gc.collect()  # so that memory of the previous section does not count
    subject = llada(bench)
    mask = subject.mask_token_id
    subject.pipe.scheduler = ConfidenceScheduler(
        mask_token_id=mask, codebook_size=mask, masking_schedule="linear", rounding="even", token_temperature=0
    )
    for batch_size in bench.pick((1, 4), (2,)):
        yield f"{subject.name}, batch {batch_size}", partial(of_batch, subject, batch_size, bench)


def of_batch(subject: Subject, batch_size: int, bench: Bench) -> Iterator[Row]:
    """A row for each cache, all with the same steps."""
    block_length, steps = bench.pick((32, 4), (4, 3))
    call = {"input_ids": subject.masked(batch_size, bench.device), "output_type": "ids", "block_length": block_length}

    def write(cache: Any) -> None:
        if cache is not None:
            subject.pipe.enable_cache(cache)
        try:
            subject.pipe(num_inference_steps=steps, generator=generator(bench.device), **call)
        finally:
            if cache is not None:
                subject.pipe.disable_cache()

    works: dict[str, Work] = {name: partial(write, cache) for name, cache in CACHES.items()}
    times = take_turns(works, bench.device, repeats=1)
    for name, work in works.items():
        with Passes(subject.pipe.transformer) as passes:
            memory = peak_gib(work, bench.device)
        yield {
            "model": subject.name,
            "batch": batch_size,
            "cache": name,
            "model calls": passes.calls,
            "positions of a row": passes.positions,
            "ms a call of the pipeline": median(times[name]),
            "tokens a second": 1000 * batch_size * subject.new / median(times[name]),
            "time / no cache": ratio(times, name, NONE),
            "peak GiB": memory,
        }


class Passes:
    """Counts a model's calls, and the positions of a row computed in them, in its context."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.calls, self.positions = model, 0, 0

    def __enter__(self) -> Passes:
        self.handle = self.model.register_forward_pre_hook(self._count, with_kwargs=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.handle.remove()

    def _count(self, model: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        self.calls, self.positions = self.calls + 1, self.positions + options["input_ids"].shape[1]
