"""What whoever runs the loop asks a scheduler about a run, before its first step and between steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..masking import planned_counts
from ..sampling import Generators
from .run_memory import RunMemory
from .run_start import RunStart


class RunPlanMixin:
    """How many steps a run has, how many positions they reveal, and which positions they read and touch.

    A position is *given* (a prompt's token, a pixel to keep: no step touches it), *revealed* by an earlier step, or
    *masked*. What is said here holds for a scheduler that reveals and never looks back; `RevisingScheduler` says
    otherwise.
    """

    if TYPE_CHECKING:
        config: Any
        _require_run: Any

    def start_run(self, sample: Tensor, given: Tensor | None = None, generator: Generators = None) -> RunStart:
        """What the run starts from, where the tokens to be drawn are masks in `sample`; most start from that itself.

        Args:
            sample: tokens int64 `(batch_size, L)` or `(batch_size, height, width)`.
            given: which of them no step may touch, bool, the shape of `sample`; None for those that are no masks.
            generator: one for the batch, one per row, or None.

        Raises:
            ValueError: the scheduler cannot start from this.
        """
        return RunStart(sample)

    def fit_timesteps(self, num_masked: Tensor, first_step: int = 0) -> int:
        """The step to start with, given the number of masks in each row, int64 `(batch_size,)`.

        Pipelines call it before the first step. A scheduler whose number of steps depends on the number of masks sets
        its timesteps here; all others return `first_step` and change nothing.
        """
        return first_step

    def planned_counts(self, num_masked: Tensor, initial: Tensor | None = None, first_step: int = 0) -> Tensor | None:
        """By how much each row's masks get fewer in each step of the run; None if that is not known in advance.

        Args:
            num_masked: number of masks each row starts with, int64 `(batch_size,)`.
            initial: N_0, the number of masks each row has at step 0, int64 `(batch_size,)`, for a run that starts at a
                later step; None if it is `num_masked`.
            first_step: the step the run starts with.

        Returns:
            int64 `(num_inference_steps - first_step, batch_size)`, on the CPU.
        """
        schedule, rounding, num_steps = self.config.masking_schedule, self.config.rounding, self._require_run()
        initial = None if initial is None else initial.cpu()
        return planned_counts(num_masked.cpu(), num_steps, schedule, rounding, initial, first_step)

    def most_drawn(self, planned: Tensor, remaining: Tensor) -> Tensor:
        """How many positions a step draws at most, where its count is planned; int64 `(batch_size,)` like all here.

        Args:
            planned: by how much the step makes each row's masks fewer.
            remaining: number of masks of each row before the step.
        """
        return planned

    def most_put_back(self, step_index: int, remaining: Tensor, num_free: Tensor) -> Tensor:
        """How many positions a step masks again at most, where its count is planned; int64 `(batch_size,)` like these.

        Args:
            step_index: the step.
            remaining: number of masks of each row before the step.
            num_free: number of positions of each row that are not given.
        """
        return num_free - remaining if self.revises else torch.zeros_like(remaining)

    def open_counts(self, masked: Tensor, given: Tensor, memory: RunMemory) -> Tensor:
        """How many positions the next step draws at most, where no plan says so; 0 in rows that are finished.

        Args:
            masked, given: which positions are masked, and which no step may touch while they hold a token, bool
                `(batch_size, L)`.
            memory: of the run.

        Returns:
            int64 `(batch_size,)`.
        """
        return masked.sum(-1)

    @property
    def may_idle(self) -> bool:
        """Whether a step without a planned count may leave a row that holds masks as it is: its logits serve again."""
        return True

    @property
    def steps_by_masks(self) -> bool:
        """Whether each row takes as many steps as it has masks, so that the number of steps is its longest row's."""
        return False

    @property
    def revises(self) -> bool:
        """Whether steps change positions that earlier steps have revealed."""
        return False

    @property
    def num_candidates(self) -> int:
        """How many ways to take a step are tried, of which passes tell the best; 1 where a step is taken as it is."""
        return 1

    @property
    def reads_revealed(self) -> bool:
        """Whether steps read the logits of revealed positions, besides those of masked ones."""
        return False

    def new_memory(self) -> RunMemory:
        """What a run keeps from step to step, for `step(memory=...)`; to be made anew for every run."""
        return RunMemory()
