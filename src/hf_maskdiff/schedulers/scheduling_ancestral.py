"""Ancestral sampling, as MDLM does it: every masked token is revealed independently of the others."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..masking import MaskingSchedule, mask_ratio
from ..sampling import Marginals, Purpose
from .scheduling_choose_then_sample import ChooseThenSampleScheduler
from .step_context import StepContext


class AncestralScheduler(ChooseThenSampleScheduler):
    r"""Follows the reverse process itself: how many positions a step reveals is random, and may be none.

    $$ \Pr[i \text{ is revealed in step } n] = 1 - \frac{m(t_{n+1})}{m(t_n)}, \qquad x_i \sim p_i $$

    for every masked position independently, where m is the mask ratio of `masking_schedule`. With T steps, the error in
    the distribution of samples is of order 1 / T. The last step reveals all remaining positions. If a step reveals
    nothing in a row, its tokens have not changed and it needs no new model call; the pipelines save this call for
    models without a time input, so that however many the steps, a row costs at most one call per position.

    MDLM's log-linear noise is `masking_schedule="linear"`; its cosine noise is `"mdlm_cosine"`, which is not MaskGIT's
    `"cosine"`. Source: "Simple and Effective Masked Diffusion Language Models" (arXiv 2406.07524).

    Example:

        scheduler = AncestralScheduler(mask_token_id=50257)
        scheduler.set_timesteps(128)
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample).logits, t, sample).prev_sample

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size, masking_schedule, rounding, temperature, top_k, top_p, typical_p: see `MaskedDiffusionScheduler`;
            `rounding` has no effect here, since the counts are random.
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
        typical_p: float | None = None,
    ) -> None:
        self.check_config()

    def planned_counts(self, num_masked: Tensor, initial: Tensor | None = None, first_step: int = 0) -> None:
        """None: how many positions are revealed is random and not known in advance."""
        self._require_run()

    def reveal_probability(self, step_index: int) -> float:
        """The probability that a masked position is revealed in this step."""
        num_steps = self._require_run()
        times = 1 - torch.tensor([step_index, step_index + 1], dtype=torch.float64) / num_steps
        before, after = mask_ratio(self.config.masking_schedule, times).tolist()
        return 1 - after / before

    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        return -context.uniform(Purpose.CHOICE)

    def count_positions(self, scores: Tensor, context: StepContext) -> Tensor:
        return (scores > -self.reveal_probability(context.step_index)).sum(-1)
