"""Halton order: positions spread evenly over the grid or the sequence."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..masking import MaskingSchedule
from ..sampling import Marginals, Purpose
from . import position_orders
from .checks import ChoiceTemperature, is_number, require
from .scheduling_choose_then_sample import ChooseThenSampleScheduler
from .step_context import StepContext


class HaltonScheduler(ChooseThenSampleScheduler):
    r"""Reveals positions that lie far apart in each step, on any grid or sequence, without looking at the logits.

    $$ s_i = -\operatorname{rank}(i), \qquad x_i \sim p_i \;\; \text{(or } p_i^{\beta_n}
       \text{ with a choice temperature)} $$

    On a grid, with a sample `(batch_size, height, width)`, positions come in the order of the Halton sequence in bases
    2 and 3; on a sequence, with a sample `(batch_size, L)`, in bit-reversed order. "Halton Scheduler for Masked
    Generative Image Transformer" (arXiv 2503.17076).

    Example:

        scheduler = HaltonScheduler(mask_token_id=16384, masking_schedule="arccos", randomize=True)
        scheduler.set_timesteps(32)
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample), t, sample, generator=generator).prev_sample

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size, masking_schedule, rounding, temperature, top_k, top_p, typical_p: see `MaskedDiffusionScheduler`.
        choice_temperature (`float` or pair, optional): alpha; None draws tokens at the model's own temperature; a
            pair (start, end) changes linearly over the steps.
        choice_temperature_schedule (`str`): `"linear"`, `alpha_n = alpha (1 - (n + 1) / T)` as in MaskGIT, or
            `"constant"`.
        inverse_temperature (`float` or pair): multiplies the logits before tokens are drawn, after `temperature`,
            `top_k` and `top_p`; a pair (start, end) changes linearly over the steps. The published sampler uses
            `(1.0, 1.2)`, so that later tokens are drawn more sharply.
        randomize (`bool`): start each row at its own random place in the order. All places are equally likely, on a
            sequence all numbers of [0, 1), through whose bit-reversed indices the order runs in a circle. The place
            follows from the state of the row's generator when the run begins, so it is the same in all steps of
            a run. If you write the loop yourself, pass the same generator to every step.
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
        randomize: bool = False,
        inverse_temperature: float | Sequence[float] = 1.0,
        typical_p: float | None = None,
        min_distance: int = 1,
        num_candidates: int = 1,
        candidate_cost: float = 1.0,
    ) -> None:
        ends = inverse_temperature if isinstance(inverse_temperature, Sequence) else [inverse_temperature] * 2
        rule = "above 0, or a pair (start, end) of such"
        valid = len(ends) == 2 and all(is_number(end) and 0 < end < math.inf for end in ends)
        require(valid, "inverse_temperature", rule, inverse_temperature, "Pass 1.0 for the model's own temperature.")
        self.check_config()

    @property
    def chooses_without_logits(self) -> bool:
        """True: the order of positions does not depend on the model."""
        return type(self).score_positions is HaltonScheduler.score_positions

    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        order = position_orders.randomized_halton if self.config.randomize else position_orders.halton
        return order(marginals, context, Purpose.CHOICE)

    def token_beta(self, context: StepContext, num_ranks: int) -> Tensor:
        value = self.config.inverse_temperature
        start, end = value if isinstance(value, Sequence) else (value, value)
        return super().token_beta(context, num_ranks) * (start + (end - start) * context.progress)
