"""TiTok's sampler: MaskGIT's, in which the tokens cool down with the order."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..masking import MaskingSchedule
from ..sampling import Marginals, Purpose
from .checks import ChoiceTemperature, is_number, require
from .draw_then_choose import DrawThenChooseScheduler
from .step_context import StepContext

_COLDEST = 1e-6  # at temperature 0 the most probable token is drawn; below this, none other has any mass left


class AnnealedScheduler(DrawThenChooseScheduler):
    r"""MaskGIT's sampler with tokens that begin hot and end at the most probable: choose it to reproduce TiTok.

    $$ x_i \sim p_i^{1/\alpha_n} \;\text{ at every masked position}, \qquad s_i = \ell_i(x_i) + \alpha_n G_i $$

    with the logits l. The k positions with the largest scores keep their candidates, and all others stay masked; a
    row's last step keeps all candidates. With `choice_temperature_schedule="linear"` the run's last step takes the most
    probable tokens. One number sets the randomness of tokens and of the order: at temperatures above 1 the first tokens
    are nearly random, and guidance has to keep them in place. The sampler of "An Image is Worth 32 Tokens for
    Reconstruction and Generation" (arXiv 2406.07550), from MUSE's reimplementations.

    Example:

        scheduler = AnnealedScheduler(mask_token_id=4096, choice_temperature=9.5)
        scheduler.set_timesteps(8)
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample), t, sample).prev_sample

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size, masking_schedule, rounding, temperature, top_k, top_p, typical_p: see `MaskedDiffusionScheduler`.
        choice_temperature (`float` or pair): alpha, the temperature of tokens and order; a pair (start, end) changes
            linearly over the steps.
        choice_temperature_schedule (`str`): `"linear"`, `alpha_n = alpha (1 - (n + 1) / T)`, or `"constant"`.
        logits_temperature (pair, *optional*): divides the logits besides by
            `start + (end - start) (n + 1) / T` in step n of T; (1.3, 0.5) is the authors' own. None leaves them as they
            are.
    """

    @register_to_config
    def __init__(
        self,
        mask_token_id: int,
        codebook_size: int | None = None,
        masking_schedule: MaskingSchedule = "arccos",
        rounding: str = "floor_masked",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        choice_temperature: ChoiceTemperature = 4.5,
        choice_temperature_schedule: str = "linear",
        logits_temperature: tuple[float, float] | list[float] | None = None,
        typical_p: float | None = None,
    ) -> None:
        self.check_config()
        pair = self.config.logits_temperature
        is_pair = isinstance(pair, Sequence) and len(pair) == 2
        valid = pair is None or (is_pair and all(is_number(value) and 0 < value < math.inf for value in pair))
        rule = "None, or a pair (start, end) of numbers above 0"
        require(valid, "logits_temperature", rule, pair, "Pass (1.3, 0.5) for the authors' own.")

    def draw_and_score(self, marginals: Marginals, context: StepContext) -> tuple[Tensor, Tensor]:
        alpha, hot = context.choice_temperature or 0.0, self._logits_temperature(context.step_index)
        beta = 1 / max(hot * alpha, _COLDEST)
        drawn, logits = marginals.draw_all_tempered(context.masked, context.uniform(Purpose.TOKEN), beta)
        noise = context.gumbel(Purpose.CHOICE)
        score = logits.to(noise) / hot + alpha * noise
        return drawn, score

    def _logits_temperature(self, step_index: int) -> float:
        """What divides the logits of a step besides the configuration's `temperature`."""
        if self.config.logits_temperature is None:
            return 1.0
        start, end = self.config.logits_temperature
        return start + (end - start) * (step_index + 1) / self._require_run()
