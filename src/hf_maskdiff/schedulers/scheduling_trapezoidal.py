"""The theta-trapezoidal method in log-time: ancestral sampling of second order."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..masking import MaskingSchedule, mask_ratio
from ..sampling import Marginals, Purpose
from .checks import is_number, require
from .extrapolation import weight_of_times
from .step_context import StepContext
from .two_passes import FirstPass, TwoPassScheduler, kept_logits, places_of


class TrapezoidalScheduler(TwoPassScheduler):
    r"""Errs less than `AncestralScheduler` in as many passes, by far where tokens depend weakly on one another.

    Passes go in pairs. An interval from mask ratio m to m'' by way of m', `m - m' = theta (m - m'')`, has two: the
    first reveals each masked position of x with probability `1 - m' / m`, which gives x*; the second each that is left
    with probability

    $$ 1 - (m'' / m')^{\sum_v q_v}, \qquad q = \max\bigl(0, \; w\, p(x^*) - (w - 1)\, p(x)\bigr),
       \qquad x_i \sim q_i / \sum_v q_{i, v}, \qquad w = \frac{1}{2 \theta (1 - \theta)} $$

    Pairs of positions then depend on each other as they should, where ancestral sampling loses half of what depends
    within an interval. The error falls with the square of the number of passes where the model's marginals change
    little from pass to pass; where they change so much that the maximum cuts off, it falls as that of ancestral
    sampling does, and is somewhat smaller (docs/theory.md). What real models gain is in docs/results.md: little so far.

    **`num_inference_steps` counts passes**, as everywhere. With an odd number the last pass is alone, and plain.
    The pass between is at `timesteps[n]` like all others; a model with a time input is told that time, which is its own
    for the linear schedule and `theta=0.5`.

    The logits of the first pass live in a memory that the loop hands from step to step; our pipelines do so. **Without
    a memory every step is one of ancestral sampling.** On a CPU the memory holds, for one step at a time, the logits of
    those positions that the second pass may reveal: about `2 / (passes left)` of the masked ones. On an accelerator
    it holds those of all masked positions, since counting the others would make the host wait.

    Partial caching needs positions before tokens, which are decided together here, and is refused. Source: "Fast
    Solvers for Discrete Diffusion Models" (arXiv 2502.00234), with the rates integrated exactly over each pass.

    Example:

        scheduler = TrapezoidalScheduler(mask_token_id=50257)
        scheduler.set_timesteps(32)
        memory = scheduler.new_memory()
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample).logits, t, sample, memory=memory).prev_sample

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size, masking_schedule, rounding, temperature, top_k, top_p, typical_p: see `MaskedDiffusionScheduler`;
            `rounding` has no effect here, since the counts are random.
        theta (`float`): the share of an interval's reveals that its first pass makes, above 0 and below 1.
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
        theta: float = 0.5,
        typical_p: float | None = None,
    ) -> None:
        valid = is_number(theta) and 0 < theta < 1
        require(valid, "theta", "above 0 and below 1", theta, "Try 0.5.")
        self.check_config()

    def planned_counts(self, num_masked: Tensor, initial: Tensor | None = None, first_step: int = 0) -> None:
        """None: how many positions are revealed is random and not known in advance."""
        self._require_run()

    def interval(self, step_index: int) -> tuple[float, float, float]:
        """Mask ratios before, within and after the interval that a pass belongs to; 0 twice if the pass is alone."""
        num_steps, start = self._require_run(), step_index - step_index % 2
        times = 1 - torch.tensor([start, min(start + 2, num_steps)], dtype=torch.float64) / num_steps
        before, after = mask_ratio(self.config.masking_schedule, times).tolist()
        alone = start == num_steps - 1
        return before, 0.0 if alone else before - self.config.theta * (before - after), after

    def reveal(
        self, marginals: Marginals, context: StepContext, first: FirstPass | None, most: int | None
    ) -> tuple[Tensor, Tensor, FirstPass | None]:
        before, middle, after = self.interval(context.step_index)
        is_first = context.step_index % 2 == 0
        masked, least = context.masked.to(context.keys.device), middle / before if is_first else after / middle
        # A position is revealed once its survival, uniform in (0, 1), is above the share that stays masked; divided by
        # that share, it is uniform again in what stays. So the first pass knows what the second cannot reveal.
        survival = 1 - context.uniform(Purpose.CHOICE) if first is None else first.noise
        weight = 1.0 if first is None else weight_of_times(before, middle, after)
        may = masked & (survival > least**weight)
        places = places_of(may, survival, context, most)
        tokens, mass = self.draw(marginals, context, places, first, weight)
        own = survival.flatten()[places.to(survival.device)]
        wanted = may.flatten()[places.to(may.device)] & (own > least ** mass.to(own.device))
        tokens = self.written(marginals, context, places, tokens, wanted)
        if context.memory is None or not is_first or context.is_last:
            return places, tokens, None

        survival = survival / least
        weight = weight_of_times(before, middle, after)
        later = masked & (survival <= 1) & (survival > (after / middle) ** weight)
        kept = places_of(later, survival, context, most)
        first = FirstPass(context.step_index, survival, context.count, *kept_logits(marginals, kept, context))
        return places, tokens, first
