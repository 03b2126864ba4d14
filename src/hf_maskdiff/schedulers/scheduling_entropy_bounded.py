"""Entropy-bounded unmasking: as many positions a step as the model is sure of together."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..masking import MaskingSchedule
from ..orders import largest_prefix
from ..sampling import Marginals, Purpose
from . import position_orders
from .checks import require
from .scheduling_choose_then_sample import ChooseThenSampleScheduler
from .step_context import StepContext


class EntropyBoundedScheduler(ChooseThenSampleScheduler):
    r"""Decides from the logits how many positions to reveal: many where the model is sure, few where it is not.

    $$ I = \text{the largest prefix, by ascending entropy, with} \;\;
       \sum_{i \in I} H(p_i) - \max_{i \in I} H(p_i) \le \gamma, \qquad x_i \sim p_i $$

    The left side bounds the dependence among tokens that are drawn together as if they were independent (their joint
    mutual information), so the bound gamma is an error allowed per step, spent where it buys most passes. At least one
    position is revealed; each row has its own count. "Accelerated Sampling from Masked Diffusion Models via Entropy
    Bounded Unmasking" (arXiv 2505.24857).

    `num_inference_steps` is the most passes a run takes. It ends earlier once nothing is masked, and its last step
    reveals all that is left, whatever the bound says. So either allow as many steps as there are positions, and the
    bound alone decides; or set `follow_schedule`, by which every step reveals at least what `masking_schedule` plans: a
    bound that is too tight for the steps then gives the entropy order on that schedule rather than one huge last step,
    at the price of exceeding the bound in any step. Without it the schedule is not used for sampling.

    Example:

        scheduler = EntropyBoundedScheduler(mask_token_id=1024, entropy_bound=4.0)
        scheduler.set_timesteps(256)
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample), t, sample).prev_sample
            if not (sample == 1024).any():
                break

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size, masking_schedule, rounding, temperature, top_k, top_p: see `MaskedDiffusionScheduler`. Entropies
            are those of p_i after temperature, `top_k` and `top_p`.
        entropy_bound (`float`): gamma, in nats, at least 0. 0 reveals one position a step (and those that are certain),
            infinity all in one.
        follow_schedule (`bool`): reveal at least what the masking schedule plans.
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
        entropy_bound: float = 4.0,
        follow_schedule: bool = False,
    ) -> None:
        valid = isinstance(entropy_bound, int | float) and entropy_bound >= 0
        require(valid, "entropy_bound", "a number of nats, at least 0", entropy_bound, "Try 4.0.")
        self.check_config()

    def planned_counts(self, num_masked: Tensor, initial: Tensor | None = None, first_step: int = 0) -> None:
        """None: the logits decide."""
        self._require_run()

    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        return position_orders.entropy(marginals, context, Purpose.CHOICE)

    def count_positions(self, scores: Tensor, context: StepContext) -> Tensor:
        allowed = largest_prefix(scores.neg(), self.config.entropy_bound).to(context.remaining.device)
        allowed = torch.minimum(allowed, context.remaining)
        return torch.maximum(allowed, context.count) if self.config.follow_schedule else allowed
