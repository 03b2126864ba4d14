"""The base of all schedulers that choose positions first and sample tokens afterwards."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..integers import is_integer
from ..masking import share_of_step
from ..orders import apart_first, ranking, sort_positions
from ..sampling import Generators, Marginals, Purpose, first_rows, ranks
from .checks import require, require_drawn
from .looking_ahead import LookingAheadMixin
from .output import MaskedDiffusionSchedulerOutput
from .run_memory import RunMemory
from .scheduling_masked_diffusion import MaskedDiffusionScheduler
from .step_context import StepContext

_PER_ROW = ("positions", "count", "sample", "beta", "keys", "revised", "first")


@dataclass(frozen=True)
class Choice:
    """The positions that a step reveals, in order, and all that is needed besides the logits to draw their tokens.

    Args:
        positions: int64 `(batch_size, K)`, distinct within a row, the chosen ones first and in order; rank r, the
            r-th entry of a row, is valid if `r < count`.
        count: number of valid ranks of each row, int64 `(batch_size,)`.
        sample: all current tokens, int64 `(batch_size, L)`.
        make_noise: makes `noise`, which draws that leave nothing to chance do not need.
        beta: inverse temperature of the draws, float64 `(batch_size, K)`.
        keys: the step's noise keys, int64 `(batch_size,)`, for further random decisions.
        step_index: the step, for error messages.
        full: True if every rank of every row is known to be valid, so that `count` need not be read.
        revised: the tokens of `sample` but for what the step puts back to masks; None if it puts nothing back.
        memory: what the run keeps from step to step.
        first: where each row begins in the flattened tokens of the memory, int64 `(batch_size, 1)`.
    """

    positions: Tensor
    count: Tensor
    sample: Tensor
    make_noise: Callable[[], Tensor]
    beta: Tensor
    keys: Tensor
    step_index: int
    full: bool = False
    revised: Tensor | None = None
    memory: RunMemory | None = None
    first: Tensor | None = None

    @property
    def canvas(self) -> Tensor:
        """The tokens that the drawn ones are written into, int64 `(batch_size, L)`."""
        return self.sample if self.revised is None else self.revised

    @cached_property
    def noise(self) -> Tensor:
        """Uniform noise for the draws, float64 `(batch_size, K)`; it belongs to the position, not to the rank."""
        return self.make_noise()

    @cached_property
    def tokens(self) -> Tensor:
        """The tokens of the canvas at `positions`, int64 `(batch_size, K)`."""
        return self.canvas.gather(1, self.positions)

    @property
    def valid(self) -> Tensor:
        """Which ranks are valid, bool `(batch_size, K)`."""
        return ranks(self.positions.shape[1], self.count.device) < self.count[:, None]

    def of_rows(self, rows: Tensor) -> Choice:
        """The choice in these rows of the batch alone, int64 `(num_rows,)`."""

        def own(value: Tensor) -> Tensor:
            return value.index_select(0, rows.to(value.device))

        tensors = {name: value for name, value in vars(self).items() if name in _PER_ROW and value is not None}
        own_tensors: Any = {name: own(value) for name, value in tensors.items()}
        return replace(self, **own_tensors, make_noise=lambda: own(self.noise))


class ChooseThenSampleScheduler(LookingAheadMixin, MaskedDiffusionScheduler):
    r"""Base of the samplers that know their positions before they draw a token, which is what partial caching needs.

    The general algorithm (Algorithm 3 of arXiv 2510.04525), step n of T, for every row:

        1. sort the masked positions:    by descending `score_positions`
        2. choose the first k_n of them: `count_positions`, by default the count that the masking schedule plans
        3. draw their tokens:            `x_i ~ p_i^beta / ||p_i||_beta^beta`

    with `beta = 1 + 1 / alpha_n` if the scheduler has a choice temperature. Without one, and in the step that reveals a
    row's last masks, `beta = 1`. A subclass defines the order by `score_positions`; see `examples/custom_scheduler.py`.
    If k_n depends on the logits or on noise, the subclass also overrides `count_positions`, and its `planned_counts`
    returns None. Whatever the count, the last step reveals all remaining positions.

    A scheduler whose configuration has a `min_distance` d (`int`) keeps the positions of one step apart: going down the
    order, step 2 passes over positions nearer than d to one that it has chosen in this step, and comes back to them, in
    the same order, only where no others are left. The count stays the same, and 1 changes nothing. The distance is that
    of indices on a sequence, and the larger one of rows and columns on a grid. Tokens of one step are drawn as if they
    were independent, which near ones are least (the dilated order of arXiv 2506.19037, after any other order).

    A scheduler whose configuration has `num_candidates` n (`int`) and `candidate_cost` w (`float`) looks ahead if n is
    above 1: it draws each step n times, asks the model what each draw leads to, all in one pass of n times as many
    rows, and takes the draw with the largest

        J = -(w sum of H_i over the positions that it reveals) - (mean of H_i after it, over those still masked)

    with H_i the entropy of p_i. With w = 1 this is the information that the step gains less what it takes on trust
    (Info-Gain, arXiv 2602.18176); with 0 only what is left counts. The first draw is the step for n = 1, and the pass
    of the one that is taken is the next step's, so T steps cost a row up to `1 + n (T - 1)` passes. **The law
    changes:** it prefers what makes the model sure. A cache cannot be on meanwhile. Our pipelines look ahead; a loop of
    your own calls `propose` and `pick` in place of `step`.

    Both halves of a step are public: `choose` reads the logits of all positions; `sample_tokens` reads only those of
    the chosen positions, and may be called again with fresher logits for later ranks.
    """

    def check_config(self) -> None:
        super().check_config()
        distance = self.own_setting("min_distance", 1)
        remedy = "Pass 1 to let neighbours be revealed in the same step, 2 to keep them apart."
        require(is_integer(distance, at_least=1), "min_distance", "an integer of at least 1", distance, remedy)
        self.check_candidates()

    @property
    def chooses_without_logits(self) -> bool:
        """Whether `choose` reads no logits, so that a model need compute only those of the chosen positions.

        A class that says so must say no for a subclass that scores positions otherwise.
        """
        return False

    @abstractmethod
    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        """Scores of all positions, floating point `(batch_size, L)`: larger is earlier.

        Scores of positions that are not masked are ignored.
        """

    def count_positions(self, scores: Tensor, context: StepContext) -> Tensor:
        """How many positions each row reveals in this step, int64 `(batch_size,)`: 0 to `context.remaining`.

        Args:
            scores: the scores in descending order, `(batch_size, L)`. In each row the first `context.remaining` belong
                to masked positions; all later ones are -inf.
            context: the step; `context.count` is what the masking schedule plans.
        """
        return context.count

    def share_of_step(self, context: StepContext) -> Tensor:
        """How many positions the schedule has for this step, whatever was revealed before, int64 `(batch_size,)`."""
        config = self.config
        run = (context.step_index, context.num_inference_steps, config.masking_schedule, config.rounding)
        share = share_of_step(context.initial, *run)
        if isinstance(share, Tensor):
            return share.long().to(context.remaining.device)
        return torch.full_like(context.remaining, int(share))

    def rank_positions(self, marginals: Marginals, context: StepContext) -> tuple[Tensor, Tensor]:
        """All positions from first to last, int64 `(batch_size, L)`, masked ones first, and how many are revealed.

        Override this to merge several orders; for a single order override `score_positions` and `count_positions`.
        """
        scores = self.score_positions(marginals, context).to(context.keys.device)
        ordered, ranked = sort_positions(scores, context.masked.to(context.keys.device))
        return ranked, self.count_positions(ordered, context)

    def plan_step(self, marginals: Marginals, context: StepContext) -> tuple[StepContext, Tensor, Tensor | None]:
        """What the step does: the context with its counts, all positions from first to last, and the revised tokens.

        The revised tokens, int64 `(batch_size, L)`, are None where nothing is put back; see `RevisingScheduler`.
        """
        ranked, count = self.rank_positions(marginals, context)
        return context if context.is_last else context.with_count(count), ranked, None

    def _plan_whole_step(self, marginals: Marginals, context: StepContext) -> tuple[StepContext, Tensor, Tensor | None]:
        """As `plan_step`, of a step that is not drawn in groups, where the order of what is revealed has no effect."""
        if context.is_last:
            return context, ranking(context.uniform(Purpose.TOKEN), context.masked.to(context.keys.device)), None
        return self.plan_step(marginals, context)

    def note_drawn(
        self, marginals: Marginals, choice: Choice, rows: Tensor, tokens: Tensor, group: Tensor | None
    ) -> None:
        """Called with what a group has drawn, for a scheduler that remembers it; all others do nothing.

        Args:
            marginals: what was drawn from.
            choice: the step's choice.
            rows: where the logits of each rank are in `marginals`, int64 `(batch_size, K)`.
            tokens: the tokens at the choice's positions, int64 `(batch_size, K)`.
            group: which of the valid ranks were drawn now, bool `(batch_size, K)`; None for all.
        """

    def token_beta(self, context: StepContext, num_ranks: int) -> Tensor:
        """Inverse temperature of the draw at each rank, float64 `(batch_size, num_ranks)`."""
        return context.beta[:, None].expand(-1, num_ranks)

    @torch.inference_mode()
    def choose(
        self,
        model_output: Tensor | None,
        timestep: float | Tensor,
        sample: Tensor,
        starting_mask_ratio: float | Tensor = 1.0,
        generator: Generators = None,
        max_count: int | None = None,
        logits_at: Tensor | None = None,
        memory: RunMemory | None = None,
        given: Tensor | None = None,
    ) -> Choice:
        """The first half of `step`, with the same arguments: choose the positions, and their order.

        If the step would reveal more than `max_count` positions of a row, only the first `max_count` are chosen. A
        scheduler that `chooses_without_logits` takes None for the logits.

        Returns:
            A `Choice` of K ranks. K is `max_count` if that is given; else it is the largest count of any row on a CPU,
            and L on an accelerator.
        """
        if model_output is None and self.chooses_without_logits:
            columns = self.config.mask_token_id + 2  # more than the mask's
            model_output, logits_at = torch.empty(0, 0, columns), torch.empty(0, 0, dtype=torch.int64)
        arguments: Any = (model_output, timestep, sample, starting_mask_ratio, generator, logits_at, memory, given)
        marginals, context = self.start_step(*arguments)
        return self._choose(*self.plan_step(marginals, context), max_count)

    def _choose(self, context: StepContext, ranked: Tensor, revised: Tensor | None, max_count: int | None) -> Choice:
        distance = self.own_setting("min_distance", 1)
        if distance > 1:
            ranked = apart_first(ranked, context.masked.to(ranked.device), context.grid, distance, max_count)
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
            make_noise=lambda: context.uniform(Purpose.TOKEN).gather(1, positions),
            beta=self.token_beta(context, num_ranks),
            keys=context.keys,
            step_index=context.step_index,
            full=full,
            revised=revised,
            memory=context.memory,
            first=first_rows(*context.tokens.shape, context.tokens.device),
        )

    @torch.inference_mode()
    def sample_tokens(self, model_output: Tensor, choice: Choice, group: Tensor | None = None) -> Tensor:
        """The second half of `step`: draw the tokens of the chosen positions.

        Args:
            model_output: logits aligned with `choice.positions`, `(batch_size, K, V)`.
            choice: what `choose` returned.
            group: bool `(batch_size, K)`, the ranks to draw now; None draws every valid rank.

        Returns:
            int64 `(batch_size, K)`: the drawn tokens, and the current tokens at every other rank. If no token can be
            drawn (NaN logits), the CPU raises `ValueError` at once; an accelerator leaves the position masked.
        """
        ranks = torch.arange(choice.positions.numel(), device=choice.positions.device)
        return self._sample(self.marginals(model_output), choice, ranks.view(choice.positions.shape), group)

    def _sample(self, marginals: Marginals, choice: Choice, rows: Tensor, group: Tensor | None) -> Tensor:
        """Draw the tokens of a group; `rows` `(batch_size, K)` holds the index of each rank's logits, flattened."""
        tokens = self._drawn(marginals, choice, rows, group)
        self.note_drawn(marginals, choice, rows, tokens, group)
        return tokens

    def _drawn(self, marginals: Marginals, choice: Choice, rows: Tensor, group: Tensor | None) -> Tensor:
        on_cpu = rows.device.type == "cpu"
        if on_cpu and not (choice.full and group is None):
            index = (choice.valid if group is None else choice.valid & group).nonzero(as_tuple=True)
            drawn = marginals.draw(rows[index], lambda: choice.noise[index], choice.beta[index])
            require_drawn(drawn, marginals.num_tokens, choice.step_index)
            return choice.tokens.index_put(index, drawn)
        if on_cpu:
            drawn = marginals.draw(rows.flatten(), lambda: choice.noise.flatten(), choice.beta.flatten()).view_as(rows)
            require_drawn(drawn, marginals.num_tokens, choice.step_index)
            return drawn
        wanted = choice.valid if group is None else choice.valid & group
        return marginals.draw_or_keep(rows, choice.noise, choice.beta, wanted, choice.tokens)

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
        self.warn_of_one_candidate()
        with torch.inference_mode():
            arguments = (model_output, timestep, sample, starting_mask_ratio, generator, logits_at, memory, given)
            marginals, context = self.start_step(*arguments)
            context, ranked, revised = self._plan_whole_step(marginals, context)
            choice = self._choose(context, ranked, revised, _most_ranks(context.count, max_count))
            rows = choice.positions + first_rows(*context.tokens.shape, choice.positions.device)
            tokens = self._sample(marginals, choice, rows, None)

        # Outside inference mode, so that the result may enter a graph.
        canvas = sample.flatten(1) if choice.revised is None else choice.revised.clone()
        prev_sample = canvas.scatter(1, choice.positions, tokens).view_as(sample)
        if not return_dict:
            return (prev_sample,)
        output = MaskedDiffusionSchedulerOutput(prev_sample)
        return output.with_details(model_output, sample) if details else output

    step.__doc__ = MaskedDiffusionScheduler.step.__doc__


def _most_ranks(count: Tensor, max_count: int | None) -> int | None:
    """How many ranks a whole step needs: `max_count`, or less on a CPU, which knows the largest count."""
    if count.device.type != "cpu" or not len(count):
        return max_count
    most = int(count.max())
    return most if max_count is None else min(most, max_count)
