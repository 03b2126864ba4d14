"""What is known about a step before its logits are read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from ..masking import Count
from ..sampling import Generators, Purpose, gumbel, position_noise
from .checks import require
from .run_keys import RunKeys
from .run_memory import RunMemory

# Computed once a step, of its keys and tokens alone.
_OF_THE_KEYS = ("_choice_and_token_noise", "run_keys", "revealed")
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
        given: which positions hold a token that the step must not touch, bool `(batch_size, L)`.
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
    given: Tensor = field(default_factory=lambda: torch.ones(1, 1, dtype=torch.bool))

    @cached_property
    def revealed(self) -> Tensor:
        """Which positions earlier steps have revealed, bool `(batch_size, L)`: known, and not given."""
        return ~(self.masked | self.given)

    def with_count(self, count: Tensor) -> StepContext:
        """The same step with other counts; the noise that was made is kept."""
        if count is self.count:
            return self
        made = {name: value for name, value in vars(self).items() if name in _OF_THE_KEYS}
        changed = replace(self, count=count.to(self.count.device))
        vars(changed).update(made)
        return changed

    def looking_at(self, wanted: Tensor) -> StepContext:
        """The same step where other positions are scored, bool `(batch_size, L)`, as if these were the masked ones."""
        return replace(self, masked=wanted)

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


def given_positions(given: Tensor | None, sample: Tensor, masked: Tensor, memory: RunMemory | None) -> Tensor:
    """Which positions a step must not touch, bool `(batch_size, L)`; a masked one is never among them.

    Args:
        given: as the caller of the step says, bool like `sample`; None for what was known when the run began.
        sample: tokens, int64 `(batch_size, ...)`.
        masked: which of them are masked, bool `(batch_size, L)`.
        memory: of the run; without one and without `given`, all that is known now counts as given.
    """
    if given is not None:
        fits = isinstance(given, Tensor) and given.dtype == torch.bool and given.shape == sample.shape
        got = (given.dtype, tuple(given.shape)) if isinstance(given, Tensor) else given
        rule = f"a bool tensor of the shape of `sample`, {tuple(sample.shape)}"
        require(fits, "given", rule, got, "Pass `sample != mask_token_id` of the run's first step.")
        return given.flatten(1) & ~masked
    return ~masked if memory is None else memory.known & ~masked
