"""The base of all schedulers that take back what they have revealed."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ..orders import sort_positions
from ..sampling import Generators, Marginals
from .checks import warn_user
from .run_memory import RunMemory
from .scheduling_choose_then_sample import ChooseThenSampleScheduler
from .step_context import StepContext


class RevisingScheduler(ChooseThenSampleScheduler):
    r"""Base of the samplers that may take back a token: what a step revealed, a later one may mask again.

    A position is *given* (the prompt, a pixel to keep: never touched), *revealed* or *masked*. Step n of T, for every
    row, where the masking schedule makes the masks fewer by k_n:

        1. mask again r_n revealed positions:          `score_revealed`, the lowest first; `count_put_back`
        2. choose k_n + r_n of the masked positions:   `score_positions`, the highest first
        3. draw their tokens:                          `x_i ~ p_i^beta / ||p_i||_beta^beta`

    So a row has as many masks after each step as if it only revealed, and none at the end. What is put back is not
    drawn in the same step, r_n is at most the number of masks that the step leaves, and the last step puts nothing
    back. With r_n = 0 this is `ChooseThenSampleScheduler`. A subclass defines three methods; see
    `examples/custom_remasking.py`. One that decides about both halves together overrides `plan_step` instead.

    What is given is the argument `given` of `step`; the pipelines of this package pass it. Without it, it is what was
    known in the run's first step, which a `memory` remembers. A caller that passes neither, as diffusers' pipelines do,
    gets a sampler that only reveals, and a warning. In a step that is drawn in groups, what is put back is masked in
    full passes at once, and seen by partial passes until the step ends.
    """

    @property
    def revises(self) -> bool:
        return True

    @property
    def reads_revealed(self) -> bool:
        """Whether `score_revealed` reads logits; a subclass of which it does not says no, and more caches serve it."""
        return True

    @abstractmethod
    def score_revealed(self, marginals: Marginals, context: StepContext) -> Tensor:
        """Scores of all positions, floating point `(batch_size, L)`: what scores lowest is masked again first.

        Scores of positions that are not `context.revealed` are ignored. `marginals.log_prob_of(context.tokens,
        context.revealed)` is the model's opinion of the tokens that stand there.
        """

    @abstractmethod
    def count_put_back(self, scores: Tensor, context: StepContext) -> Tensor:
        """How many positions each row masks again, int64 `(batch_size,)`; cut down to what is possible.

        Args:
            scores: the scores in ascending order, `(batch_size, L)`. In each row the first ones belong to revealed
                positions; all later ones are inf.
            context: the step; `context.count` is by how much the masks get fewer.
        """

    def most_put_back(self, step_index: int, remaining: Tensor, num_free: Tensor) -> Tensor:
        return (num_free - remaining).minimum(remaining)  # what is revealed, and no more than may be masked after it

    def most_drawn(self, planned: Tensor, remaining: Tensor) -> Tensor:
        return remaining

    def plan_step(self, marginals: Marginals, context: StepContext) -> tuple[StepContext, Tensor, Tensor | None]:
        if context.is_last:
            return super().plan_step(marginals, context)
        scores = self.score_revealed(marginals, context).to(context.keys.device)
        revealed = context.revealed.to(scores.device)
        falling, positions = sort_positions(-scores, revealed)
        count = self.count_put_back(-falling, context).to(context.count.device)
        count = count.minimum(revealed.sum(-1).to(count.device)).minimum(context.remaining - context.count)
        ranks = torch.arange(positions.shape[1], device=positions.device)
        put_back = torch.zeros_like(revealed).scatter_(1, positions, ranks < count.to(ranks.device)[:, None])
        context = context.with_count(context.count + count)
        ranked, _ = self.rank_positions(marginals, context)
        return context, ranked, self.masked_again(context, put_back)

    def masked_again(self, context: StepContext, put_back: Tensor) -> Tensor:
        """The tokens with masks at some positions, int64 `(batch_size, L)`."""
        return context.tokens.masked_fill(put_back.to(context.tokens.device), self.config.mask_token_id)

    def start_step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        starting_mask_ratio: float | Tensor,
        generator: Generators,
        logits_at: Tensor | None = None,
        memory: RunMemory | None = None,
        given: Tensor | None = None,
    ) -> tuple[Marginals, StepContext]:
        arguments = (model_output, timestep, sample, starting_mask_ratio, generator, logits_at, memory, given)
        marginals, context = super().start_step(*arguments)
        if memory is None and given is None and context.step_index > 0 and not context.is_last:
            warn_user(
                f"{type(self).__name__} cannot tell given tokens from revealed ones, so it takes none back. Pass "
                "`given=`, or `memory=scheduler.new_memory()` in every step of the run."
            )
        return marginals, context
