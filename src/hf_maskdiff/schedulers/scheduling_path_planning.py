"""Path planning (P2): each step keeps what looks best, among what is revealed and what could be."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..masking import MaskingSchedule
from ..revising import keep_best
from ..sampling import Marginals, Purpose
from .checks import ChoiceTemperature, is_number, require
from .position_orders import CERTAINTIES, moment
from .scheduling_revising import RevisingScheduler
from .step_context import StepContext
from .token_temperature import beta_of, check_token_temperature

# Tokens (batch_size, ...) without masks -> logits (batch_size, L, V).
Planner = Callable[[Tensor], Tensor]

_DRAWN, _UNIFORM, _MOMENT = "drawn", "uniform", "moment"


class PathPlanningScheduler(RevisingScheduler):
    r"""Keeps what looks best at every step, and masks again what no longer does: for models that judge known tokens.

    $$ s_i = \begin{cases} \log p_i(x_i), \; x_i \sim p_i & \text{masked} \\
       \eta \log q_i(x_i), \; x_i \text{ the token that stands there} & \text{revealed} \end{cases} $$

    The positions with the highest scores hold a token after the step, as many as the masking schedule says; all others
    are masked. `eta` above 1 doubts the tokens that stand there, and 0 never takes one back. q is the model itself
    (self-planning), or a planner: another model that sees all tokens filled in, see `with_planner`.

    It needs a model whose logits at known positions tell something: one trained with a loss at all positions, or used
    so in practice, as LLaDA and ESM are. Models that carry known tokens over, as MDLM, are sure of all of them.

    Special cases: `eta=0` reveals by the measure and takes nothing back, with `measure="uniform"` at random. "Path
    Planning for Masked Diffusion Model Sampling" (arXiv 2502.03540), whose program scores tokens that are redrawn
    (`standing=False`), by logits with noise in them; here a score is the logarithm of a probability.

    Example:

        scheduler = PathPlanningScheduler(mask_token_id=32, eta=1.5)
        scheduler.set_timesteps(64)
        memory = scheduler.new_memory()
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample).logits, t, sample, memory=memory).prev_sample

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size, masking_schedule, rounding, temperature, top_k, top_p, typical_p: see `MaskedDiffusionScheduler`.
            Scores are taken after all of these; a standing token that they do not allow is the first to go.
        eta (`float`): at least 0.
        measure (`str`): the score of masked positions: `"drawn"` as above; `"confidence"`, `"margin"` or `"entropy"`,
            which for `"margin"` and `"entropy"` is that of revealed ones too; `"moment"`, the order of
            `MomentScheduler`; `"uniform"`, random for both.
        standing (`bool`): score the token that stands at a revealed position; False draws one anew there, scores that,
            and keeps the one that stands.
        choice_temperature (`float` or pair, optional): of the measure `"moment"`, see `MomentScheduler`; with None that
            is random. Without effect on the others.
        choice_temperature_schedule (`str`): see `MomentScheduler`.
        token_temperature (`float`): temperature of the draws, without effect on the scores; 0 always takes the most
            probable token. 0 or 1 for `"drawn"`; without effect on `"moment"`.
    """

    planner: Planner | None = None

    @register_to_config
    def __init__(
        self,
        mask_token_id: int,
        codebook_size: int | None = None,
        masking_schedule: MaskingSchedule = "linear",
        rounding: str = "floor_masked",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        eta: float = 1.0,
        measure: str = _DRAWN,
        standing: bool = True,
        choice_temperature: ChoiceTemperature | None = 6.0,
        choice_temperature_schedule: str = "linear",
        token_temperature: float = 1.0,
        typical_p: float | None = None,
    ) -> None:
        require(is_number(eta) and 0 <= eta < math.inf, "eta", "a number of at least 0", eta, "Try 1.0.")
        measures = sorted([*CERTAINTIES, _DRAWN, _MOMENT, _UNIFORM])
        require(measure in measures, "measure", f"one of {measures}", measure, "Pick one of these.")
        check_token_temperature(token_temperature)
        valid, remedy = measure != _DRAWN or token_temperature in (0, 1), "Pass `temperature` for other draws."
        require(valid, "token_temperature", "0 or 1 where the measure is 'drawn'", token_temperature, remedy)
        self.check_config()

    @property
    def reads_revealed(self) -> bool:
        """Unless the scores of revealed positions are random, or do not matter."""
        return self.planner is None and self.config.measure != _UNIFORM and self.config.eta > 0

    def most_put_back(self, step_index: int, remaining: Tensor, num_free: Tensor) -> Tensor:
        if self.config.eta == 0:  # no score is higher than that of what is revealed
            return torch.zeros_like(remaining)
        return super().most_put_back(step_index, remaining, num_free)

    def with_planner(self, planner: Planner | None) -> PathPlanningScheduler:
        """A copy that scores revealed tokens by another model.

        Args:
            planner: maps tokens without masks, int64 of the shape of `sample`, to logits `(batch_size, L, V)`; called
                once a step, which costs as much as the planner does. It sees the positions that the step does: all of a
                row, but in a text that is filled in by blocks the block alone. It is not saved. None is the model
                itself.
        """
        planned = copy.copy(self)
        planned.planner = planner
        return planned

    def with_sampling_temperature(self, value: float) -> PathPlanningScheduler:
        """A copy that draws tokens at another temperature; only for the measure "drawn" does it change the scores."""
        settings: dict[str, Any] = {"token_temperature": value}
        if self.config.measure == _MOMENT:
            settings = {"temperature": value} if value > 0 else {"top_k": 1}
        elif self.config.measure == _DRAWN:
            settings = {"temperature": value, "token_temperature": 1} if value > 0 else {"token_temperature": 0}
        return self.from_config(self.config, **settings).with_planner(self.planner)

    def plan_step(self, marginals: Marginals, context: StepContext) -> tuple[StepContext, Tensor, Tensor | None]:
        if context.is_last:
            return super().plan_step(marginals, context)
        device = context.keys.device
        masked, revealed = context.masked.to(device), context.revealed.to(device)
        scores = self.score_positions(marginals, context).to(device).double()
        if self.config.eta > 0:
            doubts = self.score_revealed(marginals, context).to(device).double()
            scores = torch.where(revealed, self.config.eta * doubts, scores)
        else:  # no score is higher
            scores = scores.masked_fill(revealed, torch.inf)
        left = (context.remaining - context.count).to(device)
        ranked, count, put_back = keep_best(scores, masked, revealed, left)
        return context.with_count(count), ranked, self.masked_again(context, put_back)

    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        measure = self.config.measure
        if measure == _DRAWN and self.config.token_temperature == 0:
            return CERTAINTIES["confidence"](marginals, context, Purpose.CHOICE)
        if measure == _DRAWN:  # the noise is the position's own, so `sample_tokens` draws the same again
            return marginals.draw_all(context.masked, context.uniform(Purpose.TOKEN))[1]
        if measure == _UNIFORM:
            return context.uniform(Purpose.CHOICE).log()
        return (moment if measure == _MOMENT else CERTAINTIES[measure])(marginals, context, Purpose.CHOICE)

    def score_revealed(self, marginals: Marginals, context: StepContext) -> Tensor:
        """The scores of revealed positions, before `eta`."""
        revealed, measure = context.revealed, self.config.measure
        if self.planner is not None:
            return self._planned_scores(self.planner, marginals, context)
        if measure == _UNIFORM:
            return context.uniform(Purpose.CHOICE).log()
        if measure in ("margin", "entropy"):
            return CERTAINTIES[measure](marginals, context.looking_at(revealed), Purpose.CHOICE)
        if self.config.standing:
            return marginals.log_prob_of(context.tokens, revealed)
        if self.config.token_temperature == 0:
            return CERTAINTIES["confidence"](marginals, context.looking_at(revealed), Purpose.CHOICE)
        return marginals.draw_all(revealed, context.uniform(Purpose.TOKEN))[1]

    def _planned_scores(self, planner: Planner, marginals: Marginals, context: StepContext) -> Tensor:
        wanted = context.masked if self.config.standing else context.masked | context.revealed
        drawn, _ = marginals.draw_all(wanted, context.uniform(Purpose.TOKEN))
        filled = torch.where(wanted, drawn.to(context.tokens.device), context.tokens)
        logits = planner(filled.view(-1, *context.grid))
        return self.marginals(logits).log_prob_of(filled, context.revealed)

    def count_put_back(self, scores: Tensor, context: StepContext) -> Tensor:
        """Not asked: `plan_step` decides about both halves together."""
        return torch.zeros_like(context.remaining)

    def token_beta(self, context: StepContext, num_ranks: int) -> Tensor:
        if self.config.measure == _MOMENT:
            return super().token_beta(context, num_ranks)
        return beta_of(self.config.token_temperature, context, num_ranks)
