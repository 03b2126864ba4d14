"""How many positions each row reveals in each step, if that is known before the step."""

from __future__ import annotations

import torch
from torch import Tensor

from ..schedulers import MaskedDiffusionScheduler, RunMemory


class StepCounts:
    """The counts of a run: planned before its first step or, if they depend on the logits, bounded in each step.

    The number of masks is read once, here. With planned counts no step makes the host wait for an accelerator, unless a
    callback returns a different sample: from then on the plan no longer holds.

    Args:
        scheduler: a scheduler whose `set_timesteps` has been called; if its number of steps depends on the number of
            masks, it sets its timesteps anew here.
        sample: the tokens that the run starts from, int64 `(batch_size, ...)`.
        initial: N_0 of each row, int64 `(batch_size,)`; None if it is the number of masks in `sample`.
        first_step: the step the run starts with.
        given: which positions no step may touch, bool like `sample`.
        memory: of the run.
    """

    def __init__(
        self,
        scheduler: MaskedDiffusionScheduler,
        sample: Tensor,
        initial: Tensor | None,
        first_step: int,
        given: Tensor,
        memory: RunMemory,
    ) -> None:
        self.scheduler, self.memory = scheduler, memory
        num_masked, self._num_free = self._read(sample, given)
        self.first_step = scheduler.fit_timesteps(num_masked, first_step)
        self.initial = num_masked if initial is None else initial.cpu()
        self.timesteps = scheduler.timesteps[self.first_step :]
        self._plan(scheduler.planned_counts(num_masked, self.initial, self.first_step))
        self._promised = self.planned  # what each row may have left, whether it goes on to its end or not
        self.hold = self.planned is not None
        self._row_length = sample[0].numel() if len(sample) else 0
        self._masks_after: dict[int, Tensor] = {}

    @property
    def starting_mask_ratio(self) -> Tensor:
        """Share of each row's positions that were masked when its run began, float64 `(batch_size,)`."""
        return self.initial.double() / max(self._row_length, 1)

    @property
    def num_passes(self) -> int:
        """The number of model calls in the run, or an upper bound if it is not known."""
        return len(self.timesteps) if self.planned is None else int((self.planned > 0).any(-1).sum())

    def _plan(self, planned: Tensor | None) -> None:
        """Go by these counts from here on; with them it is known how many masks each step finds."""
        self.planned = planned
        if planned is not None:
            self._left = planned.flip(0).cumsum(0).flip(0)

    def _read(self, sample: Tensor, given: Tensor) -> list[Tensor]:
        """How many positions of each row are masked, and how many are not given, int64 `(batch_size,)` on the CPU."""
        masked = sample == self.scheduler.config.mask_token_id
        return list(torch.stack([places.flatten(1).sum(-1) for places in (masked, masked | ~given)]).cpu())

    def of_step(
        self, i: int, sample: Tensor, masked: Tensor, given: Tensor, before: Tensor | None = None
    ) -> tuple[Tensor, list[bool]]:
        """How many positions of each row step i of the run may draw, int64 `(batch_size,)` on the CPU; 0 in rows that
        are finished.

        And in which rows the step before has changed a token, given the tokens `before` it; without them, in all. With
        planned counts a step changes every row that holds masks, and so does that of a scheduler that never idles.

        Args:
            i: the step.
            sample: its tokens.
            masked, given: which of them are masked, and which no step may touch, bool like `sample`.
            before: the tokens that the step before began with.
        """
        changed = [True] * len(sample)
        if self.hold and self.planned is not None:
            return self.scheduler.most_drawn(self.planned[i], self._left[i]), changed
        num_open = self.scheduler.open_counts(masked.flatten(1), given.flatten(1), self.memory)
        if before is None or not self.scheduler.may_idle:
            return num_open.cpu(), changed
        # Reading makes the host wait, so both are read at once.
        both = torch.stack([num_open, (sample != before).flatten(1).any(-1).long()]).cpu()
        return both[0], both[1].bool().tolist()

    def remaining(self, i: int, count: Tensor) -> Tensor:
        """The most masks that each row holds before step i, whose `count` is known, int64 `(batch_size,)` on the CPU;
        exact where a step only reveals, or the counts are planned."""
        return self._left[i] if self.hold and self.planned is not None else count

    def put_back(self, i: int) -> Tensor | None:
        """How many positions of each row the step before step i has masked again at most, int64 `(batch_size,)` on the
        CPU; None if nothing is known without looking."""
        if not self.hold or self.planned is None:
            return None
        if i == 0:
            return torch.zeros_like(self._num_free)
        return self.scheduler.most_put_back(self.first_step + i - 1, self._left[i - 1], self._num_free)

    def num_read(self, remaining: Tensor) -> Tensor:
        """How many positions' logits a step reads at most, given what is masked, int64 `(batch_size,)` on the CPU."""
        return self._num_free if self.scheduler.reads_revealed else remaining

    def depart(self, sample: Tensor, given: Tensor) -> None:
        """A callback has returned another sample: from here on the plan no longer holds."""
        self.hold = False
        _, self._num_free = self._read(sample, given)

    def finish_rows(self, sample: Tensor) -> None:
        """Take rows without masks out of the plan; the others keep theirs."""
        if self.planned is not None:
            self._plan(self.planned.masked_fill(num_masked_of(self.scheduler, sample).cpu() == 0, 0))

    def note(self, i: int, sample: Tensor) -> None:
        """Record how many masks step i has left, for `require_all_drawn`, if it is known how many it may leave."""
        if self.hold or (self.planned is None and i == len(self.timesteps) - 1):
            self._masks_after[i] = num_masked_of(self.scheduler, sample)

    def require_all_drawn(self) -> None:
        """Raise `ValueError` if a step left too many masks; the message gives the first such step.

        On an accelerator, a position for which no token can be drawn stays masked; on a CPU the step itself raises.
        """
        if not self._masks_after:
            return
        steps = list(self._masks_after)
        failed = (torch.stack(list(self._masks_after.values())).cpu() > self._allowed(steps)).any(-1)
        if bool(failed.any()):
            step_index = self.first_step + steps[int(failed.int().argmax())]
            raise ValueError(
                "`model_output` must allow a token at every position and hold no NaN or +inf, got such logits in step "
                f"{step_index} (counted from 0). Check the model's weights, dtype and `guidance_scale`."
            )

    def _allowed(self, steps: list[int]) -> Tensor:
        """The largest number of masks that these steps may leave in each row."""
        if self._promised is None:  # of the last step alone it is known
            return torch.zeros(len(steps), 1, dtype=torch.int64)
        return (self._promised.sum(0) - self._promised.cumsum(0))[steps]


def num_masked_of(scheduler: MaskedDiffusionScheduler, sample: Tensor) -> Tensor:
    """The number of masks in each row, int64 `(batch_size,)`."""
    return (sample == scheduler.config.mask_token_id).flatten(1).sum(-1)
