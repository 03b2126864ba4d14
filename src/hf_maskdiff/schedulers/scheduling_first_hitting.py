"""The first-hitting sampler: one position at a time, in random order."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..masking import MaskingSchedule
from ..sampling import Marginals, Purpose
from . import position_orders
from .scheduling_choose_then_sample import ChooseThenSampleScheduler
from .step_context import StepContext


class FirstHittingScheduler(ChooseThenSampleScheduler):
    r"""Draws from the model's own joint law exactly, at one model call per position: the reference for all others.

    $$ i \sim \text{uniform over the masked positions}, \qquad x_i \sim p_i $$

    The reverse process changes only at the moments when a position is revealed. This sampler jumps from one such moment
    to the next, so it has no discretisation error: it is the limit of `AncestralScheduler` for many steps. Every row of
    a batch reveals one position per model call.

    **The pipelines ignore `num_inference_steps` here:** they replace it by the largest number of masks in any row. In a
    loop of your own, call `set_timesteps` with that number. In a shorter run the last step reveals all remaining
    positions, as in every scheduler, and the sample is no longer exact.

    Source: "Masked Diffusion Models are Secretly Time-Agnostic Masked Models and Exploit Inaccurate Categorical
    Sampling" (arXiv 2409.02908). The method assumes a model without a time input; our text pipelines give a model that
    has one evenly spaced times, each row's own.

    Example:

        scheduler = FirstHittingScheduler(mask_token_id=50257)
        scheduler.set_timesteps(1024)
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample).logits, t, sample).prev_sample

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size, masking_schedule, rounding, temperature, top_k, top_p, typical_p: see `MaskedDiffusionScheduler`;
            the schedule is used by `add_noise` alone, and `rounding` has no effect.
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

    @property
    def steps_by_masks(self) -> bool:
        """True: one position per step."""
        return True

    def fit_timesteps(self, num_masked: Tensor, first_step: int = 0) -> int:
        """Set as many steps as the row with the most masks needs; returns 0, the first step to run."""
        self._require_run()
        self.set_timesteps(max(1, int(num_masked.max())))
        return 0

    def planned_counts(self, num_masked: Tensor, initial: Tensor | None = None, first_step: int = 0) -> Tensor:
        """One position per step in each row that has masks; all remaining positions in the last step."""
        num_steps = self._require_run() - first_step
        remaining = num_masked.cpu() - torch.arange(num_steps)[:, None]
        counts = remaining.clamp(0, 1)
        counts[-1] = remaining[-1].clamp(min=0)
        return counts

    @property
    def chooses_without_logits(self) -> bool:
        """True: the order of positions does not depend on the model."""
        return type(self).score_positions is FirstHittingScheduler.score_positions

    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        return position_orders.uniform(marginals, context, Purpose.CHOICE)

    def count_positions(self, scores: Tensor, context: StepContext) -> Tensor:
        return context.remaining.clamp(max=1)
