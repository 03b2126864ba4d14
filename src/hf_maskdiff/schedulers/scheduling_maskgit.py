"""MaskGIT's sampler as published: sample every position, then choose."""

from __future__ import annotations

from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..masking import MaskingSchedule
from ..sampling import Marginals, Purpose
from .checks import ChoiceTemperature
from .draw_then_choose import DrawThenChooseScheduler
from .step_context import StepContext


class MaskGITScheduler(DrawThenChooseScheduler):
    r"""The MaskGIT sampler exactly as published: choose it to reproduce results, or as the baseline.

    $$ x_i \sim p_i \;\text{ at every masked position}, \qquad s_i = \log p_i(x_i) + \alpha_n G_i $$

    The k positions with the largest scores keep their candidates, and all others stay masked; a row's last step keeps
    all candidates. This choice implicitly lowers the temperature: the kept tokens are distributed almost as `p_i^beta`
    with `beta = 1 + 1 / alpha_n`. `MomentScheduler` does the same explicitly, and knows its positions before it
    samples. "MaskGIT: Masked Generative Image Transformer" (arXiv 2202.04200); Algorithm 1 of arXiv 2510.04525.

    Example:

        scheduler = MaskGITScheduler(mask_token_id=1024, choice_temperature=4.5)
        scheduler.set_timesteps(8)
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample), t, sample).prev_sample

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size, masking_schedule, rounding, temperature, top_k, top_p, typical_p: see `MaskedDiffusionScheduler`.
        choice_temperature (`float` or pair): alpha, the strength of the Gumbel noise in the order; a pair (start, end)
            changes linearly over the steps.
        choice_temperature_schedule (`str`): `"linear"`, `alpha_n = alpha (1 - (n + 1) / T)` as in MaskGIT, or
            `"constant"`.
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
    ) -> None:
        self.check_config()

    def draw_and_score(self, marginals: Marginals, context: StepContext) -> tuple[Tensor, Tensor]:
        drawn, log_prob = marginals.draw_all(context.masked, context.uniform(Purpose.TOKEN))
        score = log_prob + (context.choice_temperature or 0.0) * context.gumbel(Purpose.CHOICE)
        return drawn, score
