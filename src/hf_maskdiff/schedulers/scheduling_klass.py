"""KLASS: each step reveals what the model is sure of and has not changed its mind about."""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..integers import is_integer
from ..masking import MaskingSchedule
from ..sampling import Marginals, Purpose
from . import position_orders
from .checks import is_number, require
from .run_memory import StabilityMemory
from .scheduling_choose_then_sample import ChooseThenSampleScheduler
from .step_context import StepContext
from .token_temperature import beta_of, check_token_temperature

# Added to the scores of the positions that are ready, which come first: no other score is so large.
_READY = 1e3


class KLASSScheduler(ChooseThenSampleScheduler):
    r"""Reveals what is sure and stable between passes: fewer passes than the schedule, safer than confidence alone.

    $$ I = \Bigl\{ i : \max_x p_i(x) > \tau, \;\; \operatorname{KL}(p_i^{(n)} \,\|\, p_i^{(n-1)}) < \kappa
       \text{ in the last } H \text{ passes} \Bigr\}, \qquad x_i \sim p_i $$

    where `p_i^(n)` is the marginal in pass n. If no position of a row is ready, the row reveals the surest ones, as
    many as the masking schedule has for the step. "KLASS: KL-guided Fast Inference in Masked Diffusion Models"
    (arXiv 2511.05664).

    The marginals of the last pass live in a memory that the loop hands from step to step, float32, for the masked
    positions alone; our pipelines do so. **Without a memory nothing is known to be stable**, and the scheduler follows
    the schedule, surest first. Every block of `block_length` has a memory of its own, so that nothing is ready in the
    first H passes of a block; the original, which computes the logits of all later blocks in every pass, compares with
    the last pass of the block before.

    Each row has its own count. `num_inference_steps` is the largest number of passes in a run; the last step reveals
    all remaining positions.

    Example:

        scheduler = KLASSScheduler(mask_token_id=126336, confidence_threshold=0.6, kl_threshold=0.015)
        scheduler.set_timesteps(64)
        memory = scheduler.new_memory()
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample).logits, t, sample, memory=memory).prev_sample
            if not (sample == 126336).any():
                break

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size, masking_schedule, rounding, temperature, top_k, top_p, typical_p: see `MaskedDiffusionScheduler`.
            Marginals are compared after temperature, `top_k` and `top_p`; probabilities below 1e-12 count as 1e-12.
        confidence_threshold (`float`): tau, from 0 to 1.
        kl_threshold (`float`): kappa, in nats, at least 0; 0 lets nothing be ready.
        history_length (`int`): H, the number of comparisons in a row that a position must pass.
        strategy (`str`): which of a row's ready positions are revealed: `"all"`, or one of them: `"surest"`,
            `"most_stable"` or `"random"`.
        token_temperature (`float`): temperature of the draws, applied after `temperature`, `top_k` and `top_p`, without
            effect on which positions are ready; 0 always takes the most probable token.
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
        confidence_threshold: float = 0.9,
        kl_threshold: float = 0.01,
        history_length: int = 2,
        strategy: str = "all",
        token_temperature: float = 1.0,
        typical_p: float | None = None,
    ) -> None:
        valid = is_number(confidence_threshold) and 0 <= confidence_threshold <= 1
        require(valid, "confidence_threshold", "in [0, 1]", confidence_threshold, "Try 0.9.")
        valid = is_number(kl_threshold) and kl_threshold >= 0
        require(valid, "kl_threshold", "a number of nats, at least 0", kl_threshold, "Try 0.01.")
        valid = is_integer(history_length, at_least=1)
        require(valid, "history_length", "an integer of at least 1", history_length, "Pass how many passes to look at.")
        strategies = ("all", "surest", "most_stable", "random")
        require(strategy in strategies, "strategy", f"one of {strategies}", strategy, "Pick one of these.")
        check_token_temperature(token_temperature)
        self.check_config()

    def new_memory(self) -> StabilityMemory:
        return StabilityMemory()

    def with_sampling_temperature(self, value: float) -> KLASSScheduler:
        """A copy that draws tokens at another temperature; which positions are ready stays the same."""
        return self.from_config(self.config, token_temperature=value)

    @property
    def may_idle(self) -> bool:
        """False: every step reveals something."""
        return False

    def planned_counts(self, num_masked: Tensor, initial: Tensor | None = None, first_step: int = 0) -> None:
        """None: the counts depend on the logits and are not known in advance."""
        self._require_run()

    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        memory, config = context.memory, self.config
        if memory is None:  # nothing is known to be stable
            return position_orders.confidence(marginals, context, Purpose.CHOICE)
        if not isinstance(memory, StabilityMemory):
            raise ValueError(
                f"`memory` must come from `new_memory()` of this {type(self).__name__}, got a "
                f"{type(memory).__name__}. Make one for each run: `memory = scheduler.new_memory()`."
            )
        masked = context.masked.to(context.keys.device)
        divergence, log_confidence = memory.compare(marginals, context.masked, context.keys.device)
        passes = memory.count_stable(masked & (divergence < config.kl_threshold))
        # What a used memory has seen before this run began is not enough.
        stable = (passes >= config.history_length) & (context.step_index >= config.history_length - 1)
        ready = stable & (log_confidence > math.log(max(config.confidence_threshold, 1e-30)))
        first = {
            "all": log_confidence,
            "surest": log_confidence,
            "most_stable": -divergence,
            "random": context.uniform(Purpose.CHOICE),
        }
        return torch.where(ready, _READY + first[config.strategy], log_confidence)

    def count_positions(self, scores: Tensor, context: StepContext) -> Tensor:
        ready = (scores > _READY / 2).sum(-1).to(context.remaining.device)
        if self.config.strategy != "all":
            ready = ready.clamp(max=1)
        fallback = self.share_of_step(context).clamp(min=1)
        return torch.where(ready > 0, ready, fallback).minimum(context.remaining)

    def token_beta(self, context: StepContext, num_ranks: int) -> Tensor:
        return beta_of(self.config.token_temperature, context, num_ranks)
