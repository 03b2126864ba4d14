"""What a step starts from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..sampling import Generators


@dataclass(frozen=True)
class StepInput:
    """What a step starts from, besides logits.

    Args:
        timestep: of the step.
        sample: tokens int64 `(batch_size, L)` or `(batch_size, height, width)`.
        starting_mask_ratio: share of each row's positions that were masked when the run began, `(batch_size,)`.
        generator: one for the batch, one per row, or None.
        count: how many positions each row draws at most, int64 `(batch_size,)` on the CPU.
        untouched: which positions the step may not touch, bool like `sample`.
        following: the time of the step after it; None in the last one.
    """

    timestep: Tensor
    sample: Tensor
    starting_mask_ratio: Tensor
    generator: Generators
    count: Tensor
    untouched: Tensor
    following: Tensor | None = None

    @property
    def state(self) -> tuple[Tensor, Tensor, Tensor, Generators]:
        """What `step` and `choose` of a scheduler take after the logits."""
        return self.timestep, self.sample, self.starting_mask_ratio, self.generator

    @property
    def most(self) -> int:
        """How many positions any row draws at most."""
        return max(self.count.tolist())
