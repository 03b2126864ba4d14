"""The moment sampler: samples almost as MaskGIT does, but chooses positions before it draws tokens."""

from __future__ import annotations

from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..masking import MaskingSchedule
from ..sampling import Marginals, Purpose
from . import position_orders
from .checks import ChoiceTemperature
from .scheduling_choose_then_sample import ChooseThenSampleScheduler
from .step_context import StepContext


class MomentScheduler(ChooseThenSampleScheduler):
    r"""Samples as MaskGIT does, but chooses positions before it draws tokens: the default, and fit for partial caching.

    $$ s_i = \log \sum_x p_i(x)^{\beta} + G_i, \qquad x_i \sim p_i^{\beta} / \lVert p_i \rVert_\beta^\beta,
       \qquad \beta = 1 + 1 / \alpha_n $$

    with independent standard Gumbel noise G_i. So positions are drawn without replacement with weights
    `||p_i||_beta^beta`, and tokens at temperature `1 / beta`. A step that reveals k of N masked positions differs from
    MaskGIT's at the same alpha by at most about C k^1.5 / N in total variation. In the step that reveals a row's last
    masks, beta is 1. Algorithm 2 of "Demystifying MaskGIT Sampler and Beyond" (arXiv 2510.04525).

    Example:

        scheduler = MomentScheduler(mask_token_id=1024, choice_temperature=6.0)
        scheduler.set_timesteps(8)
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample), t, sample).prev_sample

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size, masking_schedule, rounding, temperature, top_k, top_p, typical_p: see `MaskedDiffusionScheduler`.
        choice_temperature (`float` or pair): alpha; the larger it is, the closer the draws are to the model's own
            temperature; a pair (start, end) changes linearly over the steps.
        choice_temperature_schedule (`str`): `"linear"`, `alpha_n = alpha (1 - (n + 1) / T)` as in MaskGIT, or
            `"constant"`.
        min_distance (`int`), num_candidates (`int`), candidate_cost (`float`): see `ChooseThenSampleScheduler`.
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
        choice_temperature: ChoiceTemperature = 6.0,
        choice_temperature_schedule: str = "linear",
        typical_p: float | None = None,
        min_distance: int = 1,
        num_candidates: int = 1,
        candidate_cost: float = 1.0,
    ) -> None:
        self.check_config()

    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        return position_orders.moment(marginals, context, Purpose.CHOICE)
