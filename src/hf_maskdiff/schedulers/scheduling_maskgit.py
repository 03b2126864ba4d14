"""MaskGIT's sampler as published: sample every position, then choose."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..masking import MaskingSchedule
from ..orders import ranking
from ..sampling import Generators, Purpose
from .checks import ChoiceTemperature, require_drawn
from .output import MaskedDiffusionSchedulerOutput
from .run_memory import RunMemory
from .scheduling_masked_diffusion import MaskedDiffusionScheduler


class MaskGITScheduler(MaskedDiffusionScheduler):
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

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        starting_mask_ratio: float | Tensor = 1.0,
        generator: Generators = None,
        return_dict: bool = True,
        max_count: int | None = None,
        logits_at: Tensor | None = None,
        memory: RunMemory | None = None,
        given: Tensor | None = None,
        details: bool = False,
        **of_block: Any,
    ) -> MaskedDiffusionSchedulerOutput | tuple[Tensor, ...]:
        if of_block:
            return self._step_of_block(model_output, timestep, sample, generator, return_dict, of_block)
        with torch.inference_mode():
            arguments = (model_output, timestep, sample, starting_mask_ratio, generator, logits_at, memory, given)
            marginals, context = self.start_step(*arguments)
            drawn, log_prob = marginals.draw_all(context.masked, context.uniform(Purpose.TOKEN))
            score = log_prob + (context.choice_temperature or 0.0) * context.gumbel(Purpose.CHOICE)

            rank = ranking(score, context.masked.to(score.device)).argsort(-1).to(sample.device)
            kept = rank < context.count[:, None]
            if sample.device.type == "cpu":
                require_drawn(drawn, marginals.num_tokens, context.step_index)
            # On an accelerator, a position at which no token can be drawn (NaN logits) stays masked.
            drawn = drawn.to(sample.device)
            candidates = torch.where(context.masked & (drawn < marginals.num_tokens), drawn, context.tokens)

        # Outside inference mode, so that the results may enter a graph.
        prev_sample = torch.where(kept, candidates, sample.flatten(1)).view_as(sample)
        if not return_dict:
            return prev_sample, candidates.view_as(sample).clone()
        output = MaskedDiffusionSchedulerOutput(prev_sample, candidates.view_as(sample).clone())
        return output.with_details(model_output, sample) if details else output

    step.__doc__ = MaskedDiffusionScheduler.step.__doc__
