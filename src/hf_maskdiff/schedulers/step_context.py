"""What is known about a step before its logits are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..masking import Count
from ..sampling import Generators, Purpose, gumbel, position_noise
from .run_keys import RunKeys
from .run_memory import RunMemory

# An alpha of 0 would make beta infinite.
_SMALLEST_ALPHA = 1e-6


@dataclass(frozen=True)
class StepContext:
    """What is known about a step before its logits are read. All tensors are per row or per position.

    Args:
        step_index: n, from 0 to `num_inference_steps - 1`.
        num_inference_steps: T.
        tokens: the current tokens, int64 `(batch_size, L)`.
        masked: which of them are masked, bool `(batch_size, L)`.
        remaining: number of masked positions of each row, int64 `(batch_size,)`.
        count: how many positions of each row this step reveals, int64 `(batch_size,)`. It is what the masking schedule
            plans; a scheduler that counts otherwise replaces it.
        keys: this step's noise keys, int64 `(batch_size,)`.
        choice_temperature: alpha_n, or None if the scheduler has no choice temperature.
        grid: the shape of a row: `(height, width)`, or `(L,)` for a sequence.
        generator: the `generator` argument of the step.
        of_run: the keys that stay the same over a run, where there is no memory.
        initial: N_0, how many positions of each row were masked when its run began: one number for all rows, or float64
            `(batch_size,)`.
        memory: what the run keeps from step to step, if whoever runs the loop hands it on.
    """

    step_index: int
    num_inference_steps: int
    tokens: Tensor
    masked: Tensor
    remaining: Tensor
    count: Tensor
    keys: Tensor
    choice_temperature: float | None
    grid: tuple[int, ...]
    generator: Generators
    of_run: RunKeys = field(default_factory=RunKeys)
    initial: Count = 0.0
    memory: RunMemory | None = None

    @property
    def sharpness(self) -> float:
        """`1 + 1 / alpha_n`; 1 if the scheduler has no choice temperature."""
        return 1.0 if self.choice_temperature is None else 1 + 1 / max(self.choice_temperature, _SMALLEST_ALPHA)

    @cached_property
    def beta(self) -> Tensor:
        """Inverse temperature of each row's draws, `(batch_size,)`: `sharpness`, but 1 in the row's last step."""
        return torch.where(self.count < self.remaining, self.sharpness, 1.0)

    @property
    def is_last(self) -> bool:
        """Whether this is the run's last step, which reveals all remaining positions."""
        return self.step_index == self.num_inference_steps - 1

    @property
    def progress(self) -> float:
        """0 in the first step, 1 in the last."""
        return self.step_index / max(self.num_inference_steps - 1, 1)

    def uniform(self, purpose: Purpose) -> Tensor:
        """Uniform noise of every position, float64 `(batch_size, L)`."""
        together = (Purpose.CHOICE, Purpose.TOKEN)  # most steps need both
        if purpose not in together:
            return position_noise(self.keys, self.tokens.shape[1], purpose)[0]
        return self._choice_and_token_noise[together.index(purpose)]

    @cached_property
    def _choice_and_token_noise(self) -> tuple[Tensor, ...]:
        return position_noise(self.keys, self.tokens.shape[1], Purpose.CHOICE, Purpose.TOKEN).unbind()

    def gumbel(self, purpose: Purpose) -> Tensor:
        """Standard Gumbel noise of every position, float64 `(batch_size, L)`."""
        return gumbel(self.uniform(purpose))

    @cached_property
    def run_keys(self) -> Tensor:
        """One key per row that is the same in all steps of a run and new in the next run, int64 `(batch_size,)`.

        It is the key of the step in which the run first asks for it; `Purpose.SHIFT` is a separate stream of that key.
        """
        if self.memory is not None:
            return self.memory.run_keys
        return self.of_run.at(self.step_index, self.generator, self.keys)
