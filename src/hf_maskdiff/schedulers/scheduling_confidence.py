"""Confidence order: the positions the model is surest of come first."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..masking import MaskingSchedule
from ..sampling import Marginals, Purpose
from .checks import ChoiceTemperature, check_token_ids, require
from .position_orders import CERTAINTIES, certainty
from .scheduling_choose_then_sample import ChooseThenSampleScheduler
from .step_context import StepContext
from .token_temperature import beta_of, check_token_temperature


class ConfidenceScheduler(ChooseThenSampleScheduler):
    r"""Reveals what the model is surest of first: sharp and greedy, the common choice for language models that reason.

    $$ s_i = c_i + \alpha_n G_i, \qquad c_i = \log \max_x p_i(x), \;\;
       \log (p_{i,(1)} - p_{i,(2)}) \;\; \text{or} \;\; -H(p_i), \qquad x_i \sim p_i $$

    for the measures `"confidence"`, `"margin"` and `"entropy"`. G_i is standard Gumbel noise; without a choice
    temperature there is none. Tokens are drawn from the model's marginals at `token_temperature`, which does not affect
    the order of positions: 0 always takes the most probable token, as LLaDA and Dream do. (`top_k=1` does so too, but
    then all positions are equally certain.) Algorithm 3 of arXiv 2510.04525; the measures are from arXiv 2502.06768.

    Example:

        scheduler = ConfidenceScheduler(mask_token_id=50257, measure="entropy", masking_schedule="linear")
        scheduler.set_timesteps(64)
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample), t, sample).prev_sample

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size, masking_schedule, rounding, temperature, top_k, top_p, typical_p: see `MaskedDiffusionScheduler`.
        measure (`str`): `"confidence"`, `"margin"` or `"entropy"`.
        choice_temperature (`float` or pair, optional): alpha, the strength of the noise in the order; None for no
            noise; a pair (start, end) changes linearly over the steps.
        token_temperature (`float`): temperature of the draws, applied after `temperature`, `top_k` and `top_p`; 0 is
            greedy.
        choice_temperature_schedule (`str`): `"linear"`, `alpha_n = alpha (1 - (n + 1) / T)` as in MaskGIT, or
            `"constant"`.
        min_distance (`int`): see `ChooseThenSampleScheduler`.
        unsure_token_ids (list of `int`, optional): a position at which one of these tokens is the likeliest has a
            certainty of zero, so that it comes last; the token may still be drawn there. For models that would end a
            text before they have written it: the ends of text, as LLaDA's appendix B.4 has it (arXiv 2502.09992).
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
        measure: str = "confidence",
        choice_temperature: ChoiceTemperature | None = None,
        choice_temperature_schedule: str = "linear",
        token_temperature: float = 1.0,
        typical_p: float | None = None,
        min_distance: int = 1,
        unsure_token_ids: Sequence[int] | None = None,
    ) -> None:
        check_token_temperature(token_temperature)
        check_token_ids("unsure_token_ids", unsure_token_ids)
        require(measure in CERTAINTIES, "measure", f"one of {sorted(CERTAINTIES)}", measure, "Pick one of these.")
        self.check_config()

    def with_sampling_temperature(self, value: float) -> ConfidenceScheduler:
        """A copy that draws tokens at another temperature and keeps the order of positions."""
        return self.from_config(self.config, token_temperature=value)

    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        sureness = certainty(marginals, context, self.config.measure, self.config.unsure_token_ids)
        if context.choice_temperature is None:
            return sureness
        return sureness + context.choice_temperature * context.gumbel(Purpose.CHOICE)

    def token_beta(self, context: StepContext, num_ranks: int) -> Tensor:
        return beta_of(self.config.token_temperature, context, num_ranks)  # noise affects the order alone
