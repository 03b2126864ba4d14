"""What the passes of a run compute: asks the plan, and remembers for it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..caching import PassPlan, PassState, Queries
from ..schedulers import MaskedDiffusionScheduler
from .looking_ahead import require_no_cache
from .step_logits import at_rows


class PlannedPasses:
    """The plan of one run of the loop, and what was masked before the last pass of each row.

    Args:
        plan: None if every pass computes all positions.
        scheduler: of the run, which may mask positions again.
        masked: which positions of the windows are masked when the run begins, bool `(batch_size, L)`.
        starts, ends, lengths, resumed, block_starts: see `PassState`, for all rows of the batch.

    Raises:
        ValueError: the plan's passes do not compute all that the scheduler reads, or it looks ahead.
    """

    def __init__(
        self,
        plan: PassPlan | None,
        scheduler: MaskedDiffusionScheduler,
        masked: Tensor,
        starts: Tensor,
        ends: Tensor,
        lengths: Tensor,
        resumed: Tensor,
        block_starts: Tensor | None = None,
    ) -> None:
        if plan is not None and scheduler.reads_revealed and not plan.computes_block:
            raise ValueError(
                f"{type(scheduler).__name__} must have the logits of revealed positions in every step, got a "
                f"{type(plan).__name__}, which computes masked ones. Use `DualCacheConfig()` for a text, or "
                "`disable_cache()`."
            )
        require_no_cache(scheduler, plan)
        self.plan, self._on_host = plan, (starts, ends, lengths, resumed)
        self._revises = scheduler.revises
        self._block_starts = block_starts
        self._masked = masked
        self._num_masked = masked.sum(-1).cpu() if plan is not None else torch.zeros(len(masked), dtype=torch.int64)

    @classmethod
    def over_whole_rows(
        cls, plan: PassPlan | None, scheduler: MaskedDiffusionScheduler, masked: Tensor
    ) -> PlannedPasses:
        """For rows that are filled in all at once."""
        whole = torch.full((len(masked),), masked.shape[1])
        return cls(plan, scheduler, masked, torch.zeros_like(whole), whole, whole, torch.full_like(whole, -1))

    def forget_resumed(self) -> None:
        """From now on no row has an earlier block whose keys and values are stored."""
        starts, ends, lengths, resumed = self._on_host
        self._on_host = (starts, ends, lengths, torch.full_like(resumed, -1))

    def next(
        self,
        step: int,
        rows: Tensor | slice,
        of_rows: Tensor | slice,
        masked: Tensor,
        num_masked: Tensor,
        put_back: Tensor | None = None,
        chosen: Tensor | None = None,
    ) -> Queries | None:
        """What the next pass of some rows computes; None for all positions.

        Args:
            step: see `PassState`.
            rows, of_rows: the rows, on the device and on the host.
            masked: which positions of their windows are masked now, bool `(num_rows, L)`.
            num_masked: their number, int64 `(num_rows,)` on the CPU.
            put_back: how many positions of each row of the batch the last step has masked again at most, int64 on the
                CPU; None if that is not known.
            chosen: see `PassState`.
        """
        if self.plan is None:
            return None
        starts, ends, lengths, resumed = (at_rows(values, of_rows) for values in self._on_host)
        latest = (at_rows(self._masked, rows), at_rows(self._num_masked, of_rows))
        if self._revises:  # what was masked again is stored as the token that stood there
            bound = None if put_back is None else latest[1] + at_rows(put_back, of_rows)
            latest = _with_number(latest[0] | masked, bound)
        block_starts = None if self._block_starts is None else at_rows(self._block_starts, of_rows)
        now = (masked, num_masked, chosen)
        queries = self.plan.queries(PassState(step, starts, ends, lengths, *latest, resumed, block_starts, *now))
        self._masked = _put(self._masked, rows, masked)
        self._num_masked = _put(self._num_masked, of_rows, num_masked)
        return queries


def _put(values: Tensor, rows: Tensor | slice, new: Tensor) -> Tensor:
    """The values with new ones in some rows, or in all of them."""
    return new if isinstance(rows, slice) else values.index_put((rows,), new)


def _with_number(masked: Tensor, bound: Tensor | None) -> tuple[Tensor, Tensor]:
    """And how many these are or, where counting them would make the host wait, how many at most."""
    return masked, bound if bound is not None and _waits_for(masked.device) else masked.sum(-1).cpu()


def _waits_for(device: torch.device) -> bool:
    """Whether reading a value from a device makes the host wait."""
    return device.type != "cpu"
