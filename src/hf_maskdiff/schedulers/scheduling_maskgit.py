"""MaskGIT's sampler as published: sample every position, then choose."""

from __future__ import annotations

from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..integers import is_integer
from ..masking import MaskingSchedule
from ..sampling import Marginals, Purpose
from .checks import ChoiceTemperature, is_number, require
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
        typical_min_tokens (`int`): with `typical_p`, the least number of tokens that may be drawn, as in VampNet.
        sample_cutoff (`float`): tokens are drawn in steps n of T with `n / T <= sample_cutoff`; in later steps the most
            probable one is the candidate, as in VampNet. 1 draws them in all steps, 0 in the first alone.
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
        typical_min_tokens: int = 1,
        sample_cutoff: float = 1.0,
    ) -> None:
        self.check_config()
        tokens, cutoff = self.config.typical_min_tokens, self.config.sample_cutoff
        remedy = "Pass 1 to keep what `typical_p` needs and no more."
        require(is_integer(tokens, at_least=1), "typical_min_tokens", "an integer of at least 1", tokens, remedy)
        valid = is_number(cutoff) and 0 <= cutoff <= 1
        require(valid, "sample_cutoff", "in [0, 1]", cutoff, "Pass 1 to draw tokens in every step.")

    def draw_and_score(self, marginals: Marginals, context: StepContext) -> tuple[Tensor, Tensor]:
        if context.step_index / context.num_inference_steps <= self.config.sample_cutoff:
            drawn, log_prob = marginals.draw_all(context.masked, context.uniform(Purpose.TOKEN))
        else:
            drawn, log_prob = marginals.most_probable(context.masked)
        score = log_prob + (context.choice_temperature or 0.0) * context.gumbel(Purpose.CHOICE)
        return drawn, score
