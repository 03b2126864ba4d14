"""Uniform order: every masked position is equally likely to come next."""

from __future__ import annotations

from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..masking import MaskingSchedule
from ..sampling import Marginals, Purpose
from . import position_orders
from .checks import ChoiceTemperature
from .scheduling_choose_then_sample import ChooseThenSampleScheduler
from .step_context import StepContext


class UniformScheduler(ChooseThenSampleScheduler):
    r"""Draws from the model without bias or sharpening: the plain sampler, and the reference for all others.

    $$ s_i \sim U(0, 1), \qquad x_i \sim p_i \;\; \text{(or } p_i^{\beta_n} \text{ with a choice temperature)} $$

    With a choice temperature, tokens are drawn at temperature `1 / beta_n`, `beta_n = 1 + 1 / alpha_n`, as in the
    moment sampler: this shows the effect of MaskGIT's implicit temperature without that of its order. Algorithm 3 of
    arXiv 2510.04525.

    Example:

        scheduler = UniformScheduler(mask_token_id=1024)
        scheduler.set_timesteps(16)
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample), t, sample).prev_sample

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size, masking_schedule, rounding, temperature, top_k, top_p, typical_p: see `MaskedDiffusionScheduler`.
        choice_temperature (`float` or pair, optional): alpha; None draws tokens at the model's own temperature; a
            pair (start, end) changes linearly over the steps.
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
        choice_temperature: ChoiceTemperature | None = None,
        choice_temperature_schedule: str = "linear",
        typical_p: float | None = None,
        min_distance: int = 1,
        num_candidates: int = 1,
        candidate_cost: float = 1.0,
    ) -> None:
        self.check_config()

    @property
    def chooses_without_logits(self) -> bool:
        """True: the order of positions does not depend on the model."""
        return type(self).score_positions is UniformScheduler.score_positions

    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        return position_orders.uniform(marginals, context, Purpose.CHOICE)
