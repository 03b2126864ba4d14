"""Entropy-bounded unmasking: each step reveals as many positions as an entropy bound allows."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..masking import MaskingSchedule
from ..orders import largest_prefix
from ..sampling import Marginals, Purpose
from . import position_orders
from .checks import is_number, require
from .scheduling_choose_then_sample import ChooseThenSampleScheduler
from .step_context import StepContext


class EntropyBoundedScheduler(ChooseThenSampleScheduler):
    r"""Decides from the logits how many positions to reveal: many where the model is sure, few where it is not.

    $$ I = \text{the largest prefix, by ascending entropy, with} \;\;
       \sum_{i \in I} H(p_i) - \max_{i \in I} H(p_i) \le \gamma, \qquad x_i \sim p_i $$

    Tokens of one step are drawn as if they were independent. The left side bounds the dependence that this ignores
    (their joint mutual information), so gamma is the error allowed per step. At least one position is revealed, and
    each row has its own count. "Accelerated Sampling from Masked Diffusion Models via Entropy Bounded Unmasking"
    (arXiv 2505.24857).

    `num_inference_steps` is the largest number of passes in a run. The run ends earlier once nothing is masked, and its
    last step reveals all remaining positions, whatever the bound. So choose one of two ways. Either allow as many steps
    as there are positions, so that the bound alone decides; or set `follow_schedule`, with which every step reveals at
    least as many positions as `masking_schedule` plans. If the bound is too tight for the number of steps, this follows
    the schedule in entropy order instead of leaving one huge last step, but any step may exceed the bound. Without
    `follow_schedule`, the schedule is not used for sampling.

    Example:

        scheduler = EntropyBoundedScheduler(mask_token_id=1024, entropy_bound=4.0)
        scheduler.set_timesteps(256)
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample), t, sample).prev_sample
            if not (sample == 1024).any():
                break

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size, masking_schedule, rounding, temperature, top_k, top_p, typical_p: see `MaskedDiffusionScheduler`.
            Entropies are computed after temperature, `top_k` and `top_p`.
        entropy_bound (`float`): gamma, in nats, at least 0. With 0, a step reveals one position, and any whose token is
            certain; with infinity, the first step reveals all.
        follow_schedule (`bool`): reveal at least as many positions per step as the masking schedule plans.
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
        typical_p: float | None = None,
    ) -> None:
        valid = is_number(entropy_bound) and entropy_bound >= 0
        require(valid, "entropy_bound", "a number of nats, at least 0", entropy_bound, "Try 4.0.")
        self.check_config()

    @property
    def may_idle(self) -> bool:
        """False: every step reveals something."""
        return False

    def planned_counts(self, num_masked: Tensor, initial: Tensor | None = None, first_step: int = 0) -> None:
        """None: the counts depend on the logits and are not known in advance."""
        self._require_run()

    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        return position_orders.entropy(marginals, context, Purpose.CHOICE)

    def count_positions(self, scores: Tensor, context: StepContext) -> Tensor:
        allowed = largest_prefix(scores.neg(), self.config.entropy_bound).to(context.remaining.device)
        allowed = torch.minimum(allowed, context.remaining)
        return torch.maximum(allowed, context.count) if self.config.follow_schedule else allowed
