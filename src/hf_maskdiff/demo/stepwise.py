"""A call of a pipeline that runs one step each time it is asked to, so that two of them can be watched side by side."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Semaphore, Thread
from time import perf_counter
from typing import Any

from torch import Tensor

from .passes import Passes, counting

# Seconds after which a call whose page is gone gives up its thread.
_PATIENCE = 600.0


@dataclass(frozen=True)
class Frame:
    """What is known after a step.

    Args:
        step: its number, from 1.
        tokens: after it, on the CPU.
        passes: so far.
        seconds: of the run so far, without the time between its steps.
        finished: the call has ended.
    """

    step: int
    tokens: Tensor
    passes: Passes
    seconds: float
    finished: bool


class StepwiseCall:
    """Runs a pipeline in a thread of its own, one step for each `next`; the thread waits in between.

    The steps come through `callback_on_step_end`. The pipeline sees an ordinary call.

    Args:
        call: takes `callback_on_step_end=` and calls the pipeline.
        tensor: what the callback's tokens are called, "latents" or "sequences".
        tokens: before the first step.
    """

    def __init__(self, call: Callable[..., Any], tensor: str, tokens: Tensor) -> None:
        self._call, self._tensor, self._tokens = call, tensor, tokens
        self._turn = Semaphore(0)
        self._shown: queue.Queue[Frame | Exception] = queue.Queue()
        self._stopped = self._over = False
        self._step, self._seconds, self._since = 0, 0.0, 0.0
        self._calls: list[int] = []
        self._thread: Thread | None = None

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        """Run to the end of the next step, and after the last one to the end of the call.

        Raises:
            StopIteration: the call has ended.
            Exception: what the pipeline has raised.
        """
        if self._over:
            raise StopIteration
        if self._thread is None:
            self._thread = Thread(target=self._work, daemon=True)
            self._thread.start()
        self._turn.release()
        shown = self._shown.get()
        if isinstance(shown, Exception):
            self._over = True
            raise shown
        self._over = shown.finished
        return shown

    def close(self) -> None:
        """Let the pipeline stop before its next step; what it has is dropped."""
        self._stopped = self._over = True
        self._turn.release()

    def _work(self) -> None:
        if not self._wait():
            return
        try:
            with counting() as self._calls:
                self._call(callback_on_step_end=self._on_step_end)
        except Exception as error:  # whatever it is, the page's thread is the one that tells it
            self._shown.put(error)
        else:
            self._show(finished=True)

    def _on_step_end(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        self._step += 1
        self._tokens = tensors[self._tensor].to("cpu", copy=True)  # the device has then done its work
        self._show(finished=False)
        if not self._wait():
            pipe._interrupt = True
        return tensors

    def _show(self, finished: bool) -> None:
        self._seconds += perf_counter() - self._since
        self._shown.put(Frame(self._step, self._tokens, Passes.of(self._calls), self._seconds, finished))

    def _wait(self) -> bool:
        """Wait for the next turn; False where there is none any more."""
        has_turn = self._turn.acquire(timeout=_PATIENCE)
        self._since = perf_counter()
        return has_turn and not self._stopped


def in_turns(calls: Sequence[StepwiseCall]) -> Iterator[list[Frame]]:
    """Run calls a step each in turn, until all have ended; yields the latest frame of each after every round.

    A call that has ended stays as it is. Where this generator is closed, or one call raises, all of them stop.
    """
    frames: list[Frame | None] = [None] * len(calls)
    try:
        while True:
            new = [next(call, None) for call in calls]
            if not any(new):
                return
            frames = [now or before for now, before in zip(new, frames, strict=True)]
            yield [frame for frame in frames if frame is not None]
    finally:
        for call in calls:
            call.close()
