"""Several ways to take a step, and what each is worth once the model has seen where it leads."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..integers import is_integer
from ..orders import negative_entropy
from ..sampling import Generators, Marginals, Purpose, first_rows, keys_of_positions
from .checks import flatten_logits, is_number, require, warn_user
from .run_memory import RunMemory
from .step_context import StepContext


@dataclass(frozen=True)
class Candidates:
    """Several ways to take a step; the first is the step as it is without looking ahead.

    Args:
        samples: the tokens that each leads to, int64 `(num_candidates, batch_size, ...)`.
        cost: the sum of the entropies of the positions that each reveals, in nats, float64
            `(num_candidates, batch_size)`.
        masked: which of the tokens are masks, bool like `samples`.
    """

    samples: Tensor
    cost: Tensor
    masked: Tensor

    def to_score(self) -> tuple[Tensor, Tensor]:
        """Which candidates a pass must see: their numbers and their rows, int64 `(M,)`, row by row.

        Those that leave masks, and each of them once: what an earlier candidate of the row leads to, too, is left out.
        """
        by_row = self.samples.flatten(2).transpose(0, 1)
        is_as_earlier = (by_row[:, :, None] == by_row[:, None]).all(-1).tril(-1).any(-1)
        rows, numbers = (~is_as_earlier & self.masked.flatten(2).any(-1).T).nonzero(as_tuple=True)
        return numbers, rows


def contexts_of(context: StepContext, num_candidates: int) -> list[StepContext]:
    """The same step with noise of its own for each candidate; the first one's is the step's."""
    # Steps that are drawn in groups have another use for this stream, and they do not look ahead.
    keys = keys_of_positions(context.keys, num_candidates, Purpose.GROUP)
    return [context, *(replace(context, keys=keys[:, number]) for number in range(1, num_candidates))]


def uncertainty_left(entropies: Tensor, masked: Tensor) -> Tensor:
    """The mean entropy of the positions that are still masked, in nats, `(M,)`; 0 where none is.

    Args:
        entropies: `(M, L)`.
        masked: bool `(M, L)`.
    """
    return entropies.masked_fill(~masked, 0.0).sum(-1) / masked.sum(-1).clamp(min=1)


def best_of_rows(worth: Tensor, numbers: Tensor, rows: Tensor, size: torch.Size) -> Tensor:
    """The number of the best candidate of each row, of equals the first, int64 `(batch_size,)`.

    Args:
        worth: of the candidates that were scored, `(M,)`; the other ones of a row are not chosen.
        numbers, rows: which these are, int64 `(M,)`.
        size: `(num_candidates, batch_size)`.
    """
    table = torch.full(size, -torch.inf, dtype=worth.dtype, device=worth.device)
    table[numbers, rows] = worth
    return table.argmax(0)


class LookingAheadMixin:
    """The half of a scheduler that tries several ways to take a step; see `ChooseThenSampleScheduler`."""

    if TYPE_CHECKING:
        config: Any
        own_setting: Any
        start_step: Any
        plan_step: Any
        marginals: Any
        _choose: Any
        _sample: Any

    @property
    def num_candidates(self) -> int:
        """How many ways to take a step are tried: the setting of that name, where there is one."""
        return self.own_setting("num_candidates", 1)

    def check_candidates(self) -> None:
        """Raise `ValueError` for settings that cannot work."""
        number, remedy = self.num_candidates, "Pass 1 to take each step as it is, 4 to look ahead."
        require(is_integer(number, at_least=1), "num_candidates", "an integer of at least 1", number, remedy)
        cost = self.own_setting("candidate_cost", 1.0)
        valid, remedy = is_number(cost) and 0 <= cost < math.inf, "Pass 1.0, or 0 to count what is left alone."
        require(valid, "candidate_cost", "a number of at least 0", cost, remedy)

    def warn_of_one_candidate(self) -> None:
        """To be called where a step is taken without a model to look ahead with."""
        if self.num_candidates > 1:
            warn_user(
                f"`step` of {type(self).__name__} has no model to look ahead with, so it takes the first of "
                f"{self.num_candidates} candidates. Call `propose` and `pick`, or use a pipeline."
            )

    @torch.inference_mode()
    def propose(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        starting_mask_ratio: float | Tensor = 1.0,
        generator: Generators = None,
        max_count: int | None = None,
        logits_at: Tensor | None = None,
        memory: RunMemory | None = None,
        given: Tensor | None = None,
    ) -> Candidates:
        """The ways to take a step that looks ahead, with the arguments of `step`; one alone in the run's last step.

        Example, a step of a loop:

            candidates = scheduler.propose(logits, t, sample, generator=generator, memory=memory)
            numbers, rows = candidates.to_score()
            best = scheduler.pick(candidates, model(candidates.samples[numbers, rows]), numbers, rows)
            sample = candidates.samples[best, torch.arange(len(sample))]
        """
        arguments: Any = (model_output, timestep, sample, starting_mask_ratio, generator, logits_at, memory, given)
        marginals, context = self.start_step(*arguments)
        contexts = [context] if context.is_last else contexts_of(context, self.num_candidates)
        certainties = marginals.score(negative_entropy, context.masked)
        drawn = [self._draw_whole(marginals, each, max_count) for each in contexts]
        revealed = [-certainties.gather(1, choice.positions).masked_fill(~choice.valid, 0) for choice, _ in drawn]
        samples = torch.stack([tokens.view_as(sample) for _, tokens in drawn])
        cost = torch.stack([entropies.sum(-1) for entropies in revealed])
        return Candidates(samples, cost, samples == self.config.mask_token_id)

    def _draw_whole(self, marginals: Marginals, context: StepContext, most: int | None) -> tuple[Any, Tensor]:
        """A choice, and all tokens with its own drawn, int64 `(batch_size, L)`."""
        choice = self._choose(*self.plan_step(marginals, context), most)
        rows = choice.positions + first_rows(*context.tokens.shape, choice.positions.device)
        tokens = self._sample(marginals, choice, rows, None)
        return choice, choice.canvas.scatter(1, choice.positions, tokens)

    @torch.inference_mode()
    def pick(self, candidates: Candidates, model_output: Tensor, numbers: Tensor, rows: Tensor) -> Tensor:
        """The number of each row's best candidate, of equals the first, int64 `(batch_size,)`.

        Args:
            candidates: what `propose` returned.
            model_output: logits `(M, L, V)`, or `(M, V, height, width)`, of `candidates.samples[numbers, rows]`.
            numbers, rows: what `candidates.to_score()` returned, int64 `(M,)`. Of a row with none of them, the first.
        """
        masked = candidates.masked[numbers, rows]
        marginals = self.marginals(flatten_logits(model_output, masked.long()))
        left = uncertainty_left(-marginals.score(negative_entropy, masked.flatten(1)), masked.flatten(1))
        cost = self.config.candidate_cost * candidates.cost[numbers, rows]
        return best_of_rows(-(cost + left), numbers, rows, candidates.cost.shape)
