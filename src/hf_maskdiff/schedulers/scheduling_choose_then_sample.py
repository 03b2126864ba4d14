"""The base of all schedulers that choose positions first and sample tokens afterwards."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..orders import ranking, sort_positions
from ..sampling import Generators, Marginals, Purpose, first_rows
from .checks import require_drawn
from .scheduling_masked_diffusion import MaskedDiffusionScheduler, MaskedDiffusionSchedulerOutput
from .step_context import StepContext


@dataclass(frozen=True)
class Choice:
    """The positions of one step, in order, and all that their tokens depend on besides the logits.

    Args:
        positions: int64 `(batch_size, K)`, distinct in a row, chosen first and in order; rank r is valid where
            `r < count`.
        count: valid ranks of each row, int64 `(batch_size,)`.
        sample: all current tokens, int64 `(batch_size, L)`.
        noise: uniform noise for the draws, float64 `(batch_size, K)`; it belongs to the position, not to the rank.
        beta: inverse temperature of the draws, float64 `(batch_size, K)`.
        keys: the step's noise keys, int64 `(batch_size,)`, for what else is left to chance.
        step_index: the step, for error messages.
        full: every rank of every row is known to be valid, without looking.
    """

    positions: Tensor
    count: Tensor
    sample: Tensor
    noise: Tensor
    beta: Tensor
    keys: Tensor
    step_index: int
    full: bool = False

    @cached_property
    def tokens(self) -> Tensor:
        """The current tokens at `positions`, int64 `(batch_size, K)`."""
        return self.sample.gather(1, self.positions)

    @property
    def valid(self) -> Tensor:
        """bool `(batch_size, K)`."""
        return torch.arange(self.positions.shape[1], device=self.count.device) < self.count[:, None]


class ChooseThenSampleScheduler(MaskedDiffusionScheduler):
    r"""Base of the samplers that know their positions before they draw a token, which is what partial caching needs.

    The general algorithm (Algorithm 3 of arXiv 2510.04525), step n of T, for every row:

        1. order the masked positions:   by falling `score_positions`
        2. keep the first k_n of them:   `count_positions`, by default what the masking schedule plans
        3. draw `x_i ~ p_i^beta / ||p_i||_beta^beta` at each of these

    with `beta = 1 + 1 / alpha_n` where the scheduler has a choice temperature, and `beta = 1` where it has none and in
    the step that empties the row. A subclass gives the order; see `examples/custom_scheduler.py`. One whose k_n follows
    from the logits or from noise gives the count too, and its `planned_counts` returns None; the last step reveals all
    that is left, whatever it says.

    The two halves are public: `choose` reads logits of all positions, `sample_tokens` only those of the chosen ones,
    and may be called again for later ranks with fresher logits.
    """

    @abstractmethod
    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        """Scores of all positions, floating point `(batch_size, L)`, larger is earlier; only masked ones count."""

    def count_positions(self, scores: Tensor, context: StepContext) -> Tensor:
        """How many positions each row reveals in this step, int64 `(batch_size,)`: 0 to `context.remaining`.

        Args:
            scores: those of `score_positions` in order, `(batch_size, L)`; -inf beyond the first `context.remaining` of
                a row, which are of masked positions.
            context: its `count` is what the masking schedule plans.
        """
        return context.count

    def rank_positions(self, marginals: Marginals, context: StepContext) -> tuple[Tensor, Tensor]:
        """All positions from first to last, int64 `(batch_size, L)`, the masked ones ahead, and how many are revealed.

        For subclasses that merge orders; one order and its count are `score_positions` and `count_positions`.
        """
        scores = self.score_positions(marginals, context).to(context.keys.device)
        ordered, ranked = sort_positions(scores, context.masked.to(context.keys.device))
        return ranked, self.count_positions(ordered, context)

    def token_beta(self, context: StepContext, num_ranks: int) -> Tensor:
        """Inverse temperature of the draws by rank, float64 `(batch_size, num_ranks)`."""
        return context.beta[:, None].expand(-1, num_ranks)

    @torch.inference_mode()
    def choose(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        starting_mask_ratio: float | Tensor = 1.0,
        generator: Generators = None,
        max_count: int | None = None,
    ) -> Choice:
        """The first half of `step`, with the same arguments: which positions, in which order.

        Where the step would reveal more than `max_count` positions of a row, the first `max_count` are chosen.

        Returns:
            A `Choice` of K ranks: K is `max_count` where given, else the largest count on a CPU, else L.
        """
        marginals, context = self.start_step(model_output, timestep, sample, starting_mask_ratio, generator)
        return self._choose(context, *self.rank_positions(marginals, context), max_count)

    def _choose(self, context: StepContext, ranked: Tensor, count: Tensor, max_count: int | None) -> Choice:
        if count is not context.count and not context.is_last:
            context = replace(context, count=count.to(context.count.device))
        length = context.tokens.shape[1]
        num_ranks, full = length if max_count is None else min(max_count, length), False
        if context.count.device.type == "cpu" and len(context.count):
            counts = context.count.tolist()
            num_ranks = max(counts) if max_count is None else num_ranks
            full = min(counts) >= num_ranks
        positions = ranked[:, :num_ranks]
        return Choice(
            positions=positions.to(context.tokens.device),
            count=context.count if max_count is None else context.count.clamp(max=num_ranks),
            sample=context.tokens,
            noise=context.uniform(Purpose.TOKEN).gather(1, positions),
            beta=self.token_beta(context, num_ranks),
            keys=context.keys,
            step_index=context.step_index,
            full=full,
        )

    @torch.inference_mode()
    def sample_tokens(self, model_output: Tensor, choice: Choice, group: Tensor | None = None) -> Tensor:
        """The second half of `step`: draw the tokens of the chosen positions.

        Args:
            model_output: logits aligned with `choice.positions`, `(batch_size, K, V)`.
            choice: what `choose` returned.
            group: bool `(batch_size, K)`, the ranks to draw now; None draws every valid one.

        Returns:
            int64 `(batch_size, K)`: the tokens drawn, and the current tokens at every other rank. Where no token can be
            drawn (NaN logits) the CPU raises at once; an accelerator leaves the position masked.
        """
        ranks = torch.arange(choice.positions.shape[1], device=choice.positions.device)
        return self._sample(self.marginals(model_output), choice, ranks.expand(choice.positions.shape), group)

    def _sample(self, marginals: Marginals, choice: Choice, columns: Tensor, group: Tensor | None) -> Tensor:
        """Draw a group; `columns` `(batch_size, K)` says where along the logits' L each rank's row lies."""
        on_cpu = columns.device.type == "cpu"
        rows = columns + first_rows(*marginals.logits.shape[:2], columns.device)
        if on_cpu and not (choice.full and group is None):
            index = (choice.valid if group is None else choice.valid & group).nonzero(as_tuple=True)
            drawn = marginals.draw(rows[index], choice.noise[index], choice.beta[index])
            require_drawn(drawn, marginals.num_tokens, choice.step_index)
            return choice.tokens.index_put(index, drawn)
        drawn = marginals.draw(rows.flatten(), choice.noise.flatten(), choice.beta.flatten())
        drawn = drawn.view_as(rows).to(choice.sample.device)
        if on_cpu:
            require_drawn(drawn, marginals.num_tokens, choice.step_index)
            return drawn
        # Selecting would make the host wait for the accelerator: every rank was drawn, the unwanted ones are dropped.
        wanted = choice.valid if group is None else choice.valid & group
        return torch.where(wanted & (drawn < marginals.num_tokens), drawn, choice.tokens)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        starting_mask_ratio: float | Tensor = 1.0,
        generator: Generators = None,
        return_dict: bool = True,
        max_count: int | None = None,
    ) -> MaskedDiffusionSchedulerOutput | tuple[Tensor, ...]:
        with torch.inference_mode():
            marginals, context = self.start_step(model_output, timestep, sample, starting_mask_ratio, generator)
            count = context.count
            # The last step reveals all that is masked, and noise belongs to positions: there the order changes nothing.
            if context.is_last:
                ranked = ranking(context.uniform(Purpose.TOKEN), context.masked.to(context.keys.device))
            else:
                ranked, count = self.rank_positions(marginals, context)
            choice = self._choose(context, ranked, count, max_count)
            tokens = self._sample(marginals, choice, choice.positions, None)

        # Outside inference mode, so that the result may enter a graph.
        prev_sample = sample.flatten(1).scatter(1, choice.positions, tokens).view_as(sample)
        return MaskedDiffusionSchedulerOutput(prev_sample) if return_dict else (prev_sample,)

    step.__doc__ = MaskedDiffusionScheduler.step.__doc__
