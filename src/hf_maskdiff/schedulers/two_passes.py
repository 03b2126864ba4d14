"""The base of the samplers that take two passes to an interval of time, and remember the first in the second."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..orders import ranking
from ..sampling import Generators, Marginals, Purpose, first_rows
from .checks import require_drawn, warn_user
from .extrapolation import draw_extrapolated
from .output import MaskedDiffusionSchedulerOutput
from .run_memory import RunMemory
from .scheduling_masked_diffusion import MaskedDiffusionScheduler
from .step_context import StepContext


@dataclass(frozen=True)
class FirstPass:
    """What the second pass of an interval needs of the first.

    Args:
        step_index: of the first pass.
        noise: what orders the positions, or says when they are revealed, float64 `(batch_size, L)`.
        count: how many positions of each row the schedule has the first pass reveal, int64 `(batch_size,)`.
        logits: at the kept positions, as the model gave them, `(M, V)`.
        slots: the row of `logits` of each position, int64 `(batch_size * L,)`; -1 for those that are not kept.
    """

    step_index: int
    noise: Tensor
    count: Tensor
    logits: Tensor
    slots: Tensor


class TwoPassMemory(RunMemory):
    """Holds the logits of an interval's first pass, until the second has read them."""

    def __init__(self) -> None:
        super().__init__()
        self._first: FirstPass | None = None

    def keep(self, first: FirstPass) -> None:
        """Keep this for the next step."""
        self._first = first

    def take(self, step_index: int) -> FirstPass | None:
        """The pass before this step, which is forgotten with that; None if that was no first pass."""
        first, self._first = self._first, None
        return first if first is not None and first.step_index == step_index - 1 else None


class TwoPassScheduler(MaskedDiffusionScheduler):
    """Base: the passes of a run are paired, and the second of a pair draws from extrapolated marginals.

    Pass n, from 0, is the first of its interval if n is even. With an odd number of passes the last one is alone.
    """

    def new_memory(self) -> TwoPassMemory:
        return TwoPassMemory()

    @abstractmethod
    def reveal(
        self, marginals: Marginals, context: StepContext, first: FirstPass | None, most: int | None
    ) -> tuple[Tensor, Tensor, FirstPass | None]:
        """Decide and draw.

        Args:
            first: of the interval's first pass, in the second; None in the first, and where there is no memory of it.
            most: an upper bound on the number of masks that a row may reveal.

        Returns:
            Flat positions, int64 `(M,)`, their tokens after the step, and what the second pass needs of this one.
        """

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        starting_mask_ratio: float | Tensor = 1.0,
        generator: Generators = None,
        return_dict: bool = True,
        max_count: int | None = None,
        logits_at: Tensor | None = None,
        memory: RunMemory | None = None,
        given: Tensor | None = None,
        details: bool = False,
        **of_block: Any,
    ) -> MaskedDiffusionSchedulerOutput | tuple[Tensor, ...]:
        if of_block:
            return self._step_of_block(model_output, timestep, sample, generator, return_dict, of_block)
        if memory is not None and not isinstance(memory, TwoPassMemory):
            raise ValueError(
                f"`memory` must come from `new_memory()` of this {type(self).__name__}, got a "
                f"{type(memory).__name__}. Make one for each run: `memory = scheduler.new_memory()`."
            )
        with torch.inference_mode():
            arguments = (model_output, timestep, sample, starting_mask_ratio, generator, logits_at, memory, given)
            marginals, context = self.start_step(*arguments)
            first = self._first_pass(memory, context.step_index)
            places, tokens, kept = self.reveal(marginals, context, first, max_count)
            if memory is not None and kept is not None:
                memory.keep(kept)

        # Outside inference mode, so that the result may enter a graph.
        prev_sample = sample.flatten().scatter(0, places, tokens).view_as(sample)
        if not return_dict:
            return (prev_sample,)
        output = MaskedDiffusionSchedulerOutput(prev_sample)
        return output.with_details(model_output, sample) if details else output

    step.__doc__ = MaskedDiffusionScheduler.step.__doc__

    def _first_pass(self, memory: TwoPassMemory | None, step_index: int) -> FirstPass | None:
        if memory is not None:
            return memory.take(step_index)
        if step_index % 2:
            warn_user(
                f"{type(self).__name__} knows nothing of an interval's first pass, so its second is a plain one. Pass "
                "`memory=scheduler.new_memory()`, the same object in every step of the run."
            )
        return None

    def draw(
        self,
        marginals: Marginals,
        context: StepContext,
        places: Tensor,
        first: FirstPass | None,
        weight: Tensor | float,
        beta: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens of these flat positions, and the mass of the marginals that they are drawn from, both `(M,)`.

        Args:
            places: int64 `(M,)`.
            weight: w, one for all or float64 `(M,)`.
            beta: inverse temperature, float64 `(M,)`; None is 1.
        """
        noise = context.uniform(Purpose.TOKEN).flatten()
        uniform = noise[places.to(noise.device)]
        beta = torch.ones_like(uniform) if beta is None else beta
        if first is None or not len(first.logits):
            tokens, mass = marginals.draw(places, uniform, beta), torch.ones_like(uniform)
        else:
            before = self.marginals(first.logits[None])
            weights = torch.as_tensor(weight, dtype=torch.float64, device=uniform.device).expand(uniform.shape)
            tokens, mass = draw_extrapolated(marginals, places, before, first.slots[places], weights, uniform, beta)
        if tokens.device.type == "cpu":
            require_drawn(tokens, marginals.num_tokens, context.step_index)
        return tokens, mass

    def written(
        self, marginals: Marginals, context: StepContext, places: Tensor, tokens: Tensor, wanted: Tensor
    ) -> Tensor:
        """The drawn tokens where they are wanted, bool `(M,)`, and the current ones elsewhere.

        On an accelerator, a position at which no token can be drawn (NaN logits) stays masked.
        """
        current = context.tokens.flatten()[places]
        tokens = tokens.to(current.device)
        return torch.where(wanted.to(current.device) & (tokens < marginals.num_tokens), tokens, current)


def places_of(wanted: Tensor, scores: Tensor, context: StepContext, most: int | None) -> Tensor:
    """Flat positions that include all wanted ones, int64 `(M,)`: on a CPU these alone.

    On an accelerator, where counting them would make the host wait, the first `most` of each row by descending score.

    Args:
        wanted: bool `(batch_size, L)`; none but masked positions.
        scores: `(batch_size, L)`; `most` of them include the wanted ones.
    """
    if context.tokens.device.type == "cpu":
        return wanted.flatten().nonzero()[:, 0]
    order = ranking(scores, context.masked.to(scores.device))[:, :most].to(context.tokens.device)
    return (order + first_rows(*context.tokens.shape, order.device)).flatten()


def kept_logits(marginals: Marginals, places: Tensor, context: StepContext) -> tuple[Tensor, Tensor]:
    """`logits` and `slots` of a `FirstPass` that keeps these flat positions."""
    slots = places.new_full((context.tokens.numel(),), -1)
    slots[places] = torch.arange(len(places), device=places.device)
    return marginals.rows_at(places), slots
