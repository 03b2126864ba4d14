"""The hybrid order: explore first, then exploit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..masking import MaskingSchedule
from ..orders import explore_first, ranking
from ..sampling import Marginals, Purpose
from .checks import ChoiceTemperature, is_number, require
from .position_orders import POSITION_ORDERS, WITHOUT_LOGITS
from .scheduling_choose_then_sample import ChooseThenSampleScheduler
from .step_context import StepContext


class HybridScheduler(ChooseThenSampleScheduler):
    r"""Reveals, in each step, some positions that tell most about the rest and some whose tokens are almost certain.

    $$ I = \text{first } m \text{ of the exploration order} \;\cup\; \text{first } k - m
       \text{ of the exploitation order not yet taken}, \qquad x_i \sim p_i^{\beta_n} / \lVert p_i \rVert^{\beta_n} $$

    with `m = floor(ratio_n k + 1/2)`. By the chain rule, `KL(q || p)` is the error of sampling the set I at once (small
    if its positions are certain) plus the error of all later steps (small if I tells much about the rest). The merged
    order is kept, since partial caching draws the tokens in this order. Section 5 of arXiv 2510.04525.

    Example:

        scheduler = HybridScheduler(mask_token_id=1024, exploration="halton", exploration_ratio=(1.0, 0.0))
        scheduler.set_timesteps(8)
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample), t, sample).prev_sample

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size, masking_schedule, rounding, temperature, top_k, top_p, typical_p: see `MaskedDiffusionScheduler`.
        exploration, exploitation (`str`): any two of `"uniform"`, `"halton"`, `"randomized_halton"`, `"moment"`,
            `"confidence"`, `"margin"`, `"entropy"`. On a sequence, Halton is the bit-reversed order; confidence, margin
            and entropy have no noise here.
        exploration_ratio (`float` or pair): share of a step's positions that come from the exploration order, in
            [0, 1]; a pair (start, end) changes linearly over the steps.
        choice_temperature (`float` or pair, optional): alpha, as in the moment sampler; None draws tokens at the
            model's own temperature; a pair (start, end) changes linearly over the steps.
        choice_temperature_schedule (`str`): `"linear"`, `alpha_n = alpha (1 - (n + 1) / T)` as in MaskGIT, or
            `"constant"`.
        plain_exploration (`bool`): draw the explored positions' tokens at the model's own temperature.
        min_distance (`int`): see `ChooseThenSampleScheduler`; it moves positions of the merged order.
        num_candidates (`int`), candidate_cost (`float`): see `ChooseThenSampleScheduler`.
    """

    @register_to_config
    def __init__(
        self,
        mask_token_id: int,
        codebook_size: int | None = None,
        masking_schedule: MaskingSchedule = "cosine",
        rounding: str = "floor_masked",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        exploration: str = "halton",
        exploitation: str = "moment",
        exploration_ratio: float | Sequence[float] = 0.5,
        choice_temperature: ChoiceTemperature | None = 6.0,
        choice_temperature_schedule: str = "linear",
        plain_exploration: bool = False,
        typical_p: float | None = None,
        min_distance: int = 1,
        num_candidates: int = 1,
        candidate_cost: float = 1.0,
    ) -> None:
        for name, value in (("exploration", exploration), ("exploitation", exploitation)):
            require(value in POSITION_ORDERS, name, f"one of {sorted(POSITION_ORDERS)}", value, "Pick one of these.")
        ratios = exploration_ratio if isinstance(exploration_ratio, Sequence) else (exploration_ratio,) * 2
        valid = len(ratios) == 2 and all(is_number(ratio) and 0 <= ratio <= 1 for ratio in ratios)
        rule = "a number in [0, 1] or a pair (start, end) of such"
        require(valid, "exploration_ratio", rule, exploration_ratio, "Try 0.5.")
        valid, remedy = min_distance == 1 or not plain_exploration, "Leave one of them out."
        require(valid, "min_distance", "1 with `plain_exploration`, which counts ranks", min_distance, remedy)
        self.check_config()

    def num_explored(self, context: StepContext) -> Tensor:
        """How many positions of each row come from the exploration order in this step, int64 `(batch_size,)`."""
        ratio = self.config.exploration_ratio
        start, end = ratio if isinstance(ratio, Sequence) else (ratio, ratio)
        now = start + (end - start) * context.progress
        return (now * context.count.to(context.keys.device) + 0.5).long()

    @property
    def chooses_without_logits(self) -> bool:
        """True if neither order depends on the model."""
        own = type(self).rank_positions is HybridScheduler.rank_positions
        return own and {self.config.exploration, self.config.exploitation} <= WITHOUT_LOGITS

    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        return POSITION_ORDERS[self.config.exploitation](marginals, context, Purpose.CHOICE)

    def rank_positions(self, marginals: Marginals, context: StepContext) -> tuple[Tensor, Tensor]:
        masked = context.masked.to(context.keys.device)
        explore = POSITION_ORDERS[self.config.exploration](marginals, context, Purpose.EXPLORATION)
        exploit = self.score_positions(marginals, context).to(masked.device)
        scores = explore_first(exploit, ranking(explore.to(masked.device), masked), self.num_explored(context))
        return ranking(scores, masked), context.count

    def token_beta(self, context: StepContext, num_ranks: int) -> Tensor:
        beta = super().token_beta(context, num_ranks)
        if not self.config.plain_exploration:
            return beta
        explored = torch.arange(num_ranks, device=beta.device) < self.num_explored(context)[:, None]
        return beta.masked_fill(explored, 1.0)
