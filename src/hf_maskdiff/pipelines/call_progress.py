"""One progress bar for a call that fills in its sequences part by part, each in a run of the loop of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor

from .text_windows import BlockGrid, num_parts


class CallProgress:
    """Shows all model passes of a call in one bar, from the first run to the last; `denoise` takes it for its own.

    How many passes a run needs is known when it begins. Until then it counts as many as the run before it, which is of
    a part of the same size, most often: the bar's total is corrected as the runs begin, and right at the end.

    Args:
        progress_bar: of the pipeline: called once, with `total=`; like tqdm, with `update`, `total` and `refresh`.
        num_runs: of the call, at most.
        interrupted: whether the call was stopped, in which case the bar stays where it is.
    """

    def __init__(
        self,
        progress_bar: Callable[..., AbstractContextManager],
        num_runs: int,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._progress_bar, self._runs_left, self._interrupted = progress_bar, num_runs, interrupted
        self._shown: AbstractContextManager | None = None
        self._bar: Any = None
        self._total = self._done = 0

    @classmethod
    def over(
        cls,
        progress_bar: Callable[..., AbstractContextManager],
        sequences: Sequence[Tensor],
        mask_token_id: int,
        lengths: tuple[int | None, int | None, int | None],
        interrupted: Callable[[], bool] = lambda: False,
        grids: Sequence[BlockGrid] | None = None,
    ) -> CallProgress:
        """The progress over what is masked in sequences.

        Args:
            lengths: `model_length`, `stride` and `block_length` of `next_part`.
            grids: blocks that the model sees in each sequence, or None.
        """
        _, stride, block_length = lengths
        if stride is None and block_length is None and grids is None:
            return cls(progress_bar, 1, interrupted)
        each = zip(sequences, [None] * len(sequences) if grids is None else grids, strict=True)
        return cls(progress_bar, max(num_parts(ids, mask_token_id, *lengths, grid) for ids, grid in each), interrupted)

    def __enter__(self) -> CallProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if self._shown is None:
            return
        if error is None and not self._interrupted():  # texts that have ended need no later run
            self._expect(self._done)
        self._shown.__exit__(kind, error, trace)

    @contextmanager
    def __call__(self, total: int) -> Iterator[CallProgress]:
        """A run of `total` passes begins; the bar is made with the first one."""
        self._runs_left = max(self._runs_left - 1, 0)
        self._expect(self._done + total + self._runs_left * total)
        yield self

    def update(self) -> None:
        """Count a pass."""
        self._done += 1
        self._bar.update()

    def _expect(self, total: int) -> None:
        if self._shown is None:
            self._shown = self._progress_bar(total=total)
            self._bar = self._shown.__enter__()
        elif total != self._total:
            self._bar.total = total
            self._bar.refresh()
        self._total = total
