"""Threshold decoding: each step reveals every position that the model is sure of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..integers import is_integer
from ..masking import MaskingSchedule
from ..orders import passing_ranks
from ..sampling import Marginals, Purpose
from .checks import check_token_ids, is_number, require
from .position_orders import MEASURES, certainty, token_tensor
from .scheduling_choose_then_sample import ChooseThenSampleScheduler
from .step_context import StepContext
from .token_temperature import beta_of, check_token_temperature

_DRAWN = "drawn"


class ThresholdScheduler(ChooseThenSampleScheduler):
    r"""Reveals every position that the model is sure of, however many they are: the fast way to decode text.

    $$ I = \{ i : c_i > \tau \}, \;\text{ at least the } n \text{ surest}, \qquad
       c_i = \max_x p_i(x), \qquad x_i \sim p_i $$

    for the measure `"confidence"`; `"margin"` compares `p_(1) - p_(2)` with the threshold, and `"entropy"` reveals what
    has an entropy *below* it, in nats. With `"drawn"`, c_i is the probability of the token that is drawn at the
    position, `p_i(x_i)`: an improbable draw is thrown away and drawn anew in the next step, which sharpens the law of
    the tokens as `MaskGITScheduler` does.

    With `factor` f instead of a threshold, the r surest positions are revealed for the largest r with
    `(r + 1) (1 - c_(r)) < f`: the more positions at once, the surer each of them must be.

    Each row has its own count. `num_inference_steps` is the largest number of passes in a run, which ends earlier once
    nothing is masked; the last step reveals all remaining positions, sure or not. So allow as many steps as there are
    positions, or set `follow_schedule`. Published samplers:

    - Fast-dLLM (arXiv 2505.22618): `threshold=0.9`, or `threshold=None, factor=1.0`; greedy tokens.
    - LLaDA2, diffusers' `BlockRefinementScheduler`: `threshold=0.95, follow_schedule=True, rounding="even"`; greedy, or
      at a temperature with `measure="drawn"`.
    - SDAR, `low_confidence_dynamic`: the same with `threshold=0.85, measure="drawn"`.

    Example:

        scheduler = ThresholdScheduler(mask_token_id=126336, threshold=0.9, token_temperature=0)
        scheduler.set_timesteps(32)
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample).logits, t, sample).prev_sample
            if not (sample == 126336).any():
                break

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size, masking_schedule, rounding, temperature, top_k, top_p, typical_p: see `MaskedDiffusionScheduler`.
            Certainty is measured after temperature, `top_k` and `top_p`. The schedule is used by `follow_schedule` and
            `add_noise` alone.
        threshold (`float`, optional): tau, at least 0: a probability, or nats for `"entropy"`. What nothing exceeds, 1
            for probabilities and 0 for entropies, reveals the least that is allowed in every step.
        factor (`float`, optional): f, above 0; `threshold` must then be None. Not for `"entropy"`.
        min_count (`int`): how many positions a row reveals at least.
        follow_schedule (`bool`): reveal in each step at least as many positions as the masking schedule has for this
            step. The share of a step does not depend on what was revealed before, so a row that is ahead of the
            schedule stays ahead.
        measure (`str`): `"confidence"`, `"margin"`, `"entropy"` or `"drawn"`.
        token_temperature (`float`): temperature of the draws, applied after `temperature`, `top_k` and `top_p`, without
            effect on certainty; 0 always takes the most probable token. Must be 1 for `"drawn"`.
        block_length (`int`): how many positions a block has in diffusers' `LLaDA2Pipeline` where its call does not say.
            The pipelines of this package do not read it: pass them `block_length`.
        unsure_token_ids (list of `int`, optional): a position at which one of these tokens is the likeliest has a
            certainty of zero, so that it waits while others are left; with `"drawn"`, one that draws such a token. See
            `ConfidenceScheduler`.
    """

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
        threshold: float | None = 0.9,
        factor: float | None = None,
        min_count: int = 1,
        follow_schedule: bool = False,
        measure: str = "confidence",
        token_temperature: float = 1.0,
        block_length: int = 32,
        typical_p: float | None = None,
        unsure_token_ids: Sequence[int] | None = None,
    ) -> None:
        measures = sorted([*MEASURES, _DRAWN])
        require(measure in measures, "measure", f"one of {measures}", measure, "Pick one of these.")
        if factor is None:
            valid = is_number(threshold) and threshold is not None and threshold >= 0
            require(valid, "threshold", "a number of at least 0", threshold, "Try 0.9, or None with a `factor`.")
        else:
            require(threshold is None, "threshold", "None where `factor` is given", threshold, "Pass `threshold=None`.")
            require(is_number(factor) and factor > 0, "factor", "a number above 0", factor, "Try 1.0.")
            require(measure != "entropy", "measure", "a probability where `factor` is given", measure, "Take another.")
        valid = is_integer(min_count, at_least=1)
        require(valid, "min_count", "an integer of at least 1", min_count, "Pass 1 to reveal no more than is sure.")
        check_token_temperature(token_temperature)
        check_token_ids("unsure_token_ids", unsure_token_ids)
        valid = measure != _DRAWN or token_temperature == 1
        remedy = "Pass `temperature`, which is that of the measure and of the draw alike."
        require(valid, "token_temperature", "1 where the measure is 'drawn'", token_temperature, remedy)
        valid, remedy = is_integer(block_length, at_least=1), "Pass the length that the model was trained with."
        require(valid, "block_length", "an integer of at least 1", block_length, remedy)
        self.check_config()

    def with_sampling_temperature(self, value: float) -> ThresholdScheduler:
        """A copy that draws tokens at another temperature; only for the measure "drawn" does it change what is sure."""
        if self.config.measure != _DRAWN:
            settings: dict[str, Any] = {"token_temperature": value}
        else:
            settings = {"temperature": value} if value > 0 else {"measure": "confidence", "token_temperature": 0}
        return self.from_config(self.config, **settings)

    @property
    def may_idle(self) -> bool:
        """False: every step reveals something."""
        return False

    def planned_counts(self, num_masked: Tensor, initial: Tensor | None = None, first_step: int = 0) -> None:
        """None: the counts depend on the logits and are not known in advance."""
        self._require_run()

    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        unsure = self.config.unsure_token_ids
        if self.config.measure != _DRAWN:
            return certainty(marginals, context, MEASURES[self.config.measure], unsure)
        # The noise is the position's own, so `sample_tokens` draws the same again.
        drawn, log_probs = marginals.draw_all(context.masked, context.uniform(Purpose.TOKEN))
        if not unsure:
            return log_probs
        return log_probs.masked_fill(torch.isin(drawn, token_tensor(tuple(unsure), drawn.device)), -math.inf)

    def count_positions(self, scores: Tensor, context: StepContext) -> Tensor:
        if self.config.factor is None:
            sure = (scores > self._bound).sum(-1)
        else:
            sure = passing_ranks(scores, self.config.factor)
        count = sure.to(context.remaining.device).clamp(min=self.config.min_count)
        if self.config.follow_schedule:
            count = count.maximum(self.share_of_step(context))
        return count.minimum(context.remaining)

    @property
    def _bound(self) -> float:
        """The threshold on the scale of the scores, which are logarithms of probabilities or negative entropies."""
        threshold = self.config.threshold
        if self.config.measure == "entropy":
            return -threshold
        return math.log(threshold) if threshold > 0 else torch.finfo(torch.float32).min  # what sorting makes of log 0

    def token_beta(self, context: StepContext, num_ranks: int) -> Tensor:
        return beta_of(self.config.token_temperature, context, num_ranks)
