"""Planned counts of second order: every other pass extrapolates the marginals."""

from __future__ import annotations

from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..masking import MaskingSchedule, masks_left, reveal_counts
from ..orders import ranking
from ..sampling import Marginals, Purpose
from .checks import ChoiceTemperature, require
from .extrapolation import weight_of_counts
from .position_orders import POSITION_ORDERS, WITHOUT_LOGITS
from .step_context import StepContext
from .two_passes import FirstPass, TwoPassScheduler, kept_logits, places_of


class ExtrapolatingScheduler(TwoPassScheduler):
    r"""Plans its counts, and errs less than `UniformScheduler` in as many passes: see docs/results.md for how much.

    Passes go in pairs, of `n_1` and `n_2` positions. The first takes x to x* with tokens from p(x), the second draws

    $$ x_i \sim q_i, \qquad q \propto \max\bigl(0, \; w\, p(x^*) - (w - 1)\, p(x)\bigr),
       \qquad w = \frac{n (n - 1)}{2 n_1 n_2}, \qquad n = n_1 + n_2 $$

    In `2 n_1 n_2 / (n (n - 1))` of all cases two positions of an interval, in uniform order, are revealed by different
    passes, and only then can one depend on the other: the weight makes up for the rest. It is 1 where each pass reveals
    one position, which is exact anyway. A relative of `TrapezoidalScheduler`, whose counts are random.

    The argument needs a *uniform* order. In a fixed one, such as Halton's, the plain marginal is the best that
    independent draws can do, and the extrapolation adds to the error; orders that depend on the model lie between
    (docs/theory.md). They are here so that this can be measured.

    The logits of the first pass live in a memory that the loop hands from step to step; our pipelines do so. **Without
    a memory nothing is extrapolated.** On a CPU the memory holds, for one step at a time, the logits of the positions
    that the second pass reveals, or of all masked ones if the order depends on the model; on an accelerator, those of
    all positions. Partial caching, which has passes of its own within a step, is refused.

    Example:

        scheduler = ExtrapolatingScheduler(mask_token_id=1024)
        scheduler.set_timesteps(16)
        memory = scheduler.new_memory()
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample), t, sample, memory=memory).prev_sample

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size, masking_schedule, rounding, temperature, top_k, top_p, typical_p: see `MaskedDiffusionScheduler`.
        position_order (`str`): `"uniform"`, `"halton"`, `"randomized_halton"`, `"moment"`, `"confidence"`, `"margin"`
            or `"entropy"`.
        choice_temperature (`float` or pair, optional): alpha; both marginals are raised to `beta = 1 + 1 / alpha`
            before they are extrapolated, and the moment order is that of this beta. None draws at the model's own
            temperature, where the moment order is the uniform one.
        choice_temperature_schedule (`str`): `"linear"`, `alpha_n = alpha (1 - (n + 1) / T)` as in MaskGIT, or
            `"constant"`.
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
        position_order: str = "uniform",
        choice_temperature: ChoiceTemperature | None = None,
        choice_temperature_schedule: str = "linear",
        typical_p: float | None = None,
    ) -> None:
        orders = tuple(POSITION_ORDERS)
        require(position_order in orders, "position_order", f"one of {orders}", position_order, "Pick one of these.")
        self.check_config()

    def reveal(
        self, marginals: Marginals, context: StepContext, first: FirstPass | None, most: int | None
    ) -> tuple[Tensor, Tensor, FirstPass | None]:
        name, masked = self.config.position_order, context.masked.to(context.keys.device)
        if first is not None and name in WITHOUT_LOGITS:
            scores = first.noise  # so that the first pass knew which positions come in the second
        else:
            scores = POSITION_ORDERS[name](marginals, context, Purpose.CHOICE).to(context.keys.device)
        rank = ranking(scores, masked).argsort(-1)
        count = context.count.to(rank.device)[:, None]
        places = places_of(rank < count, scores, context, most)
        wanted = (rank < count).flatten()[places.to(rank.device)]

        row = (places // rank.shape[1]).to(rank.device)
        weight = 1.0 if first is None else weight_of_counts(first.count, context.count).to(rank.device)[row]
        tokens, _ = self.draw(marginals, context, places, first, weight, context.beta.to(rank.device)[row])
        tokens = self.written(marginals, context, places, tokens, wanted)
        if context.memory is None or context.step_index % 2 or context.is_last:
            return places, tokens, None

        later = masked & (rank >= count)
        if name in WITHOUT_LOGITS:
            later &= rank < count + self._next_count(context).to(rank.device)[:, None]
        kept = places_of(later, scores, context, None)
        first = FirstPass(context.step_index, scores, context.count, *kept_logits(marginals, kept, context))
        return places, tokens, first

    def _next_count(self, context: StepContext) -> Tensor:
        """How many positions of each row the next pass reveals, int64 `(batch_size,)`."""
        config, remaining = self.config, context.remaining - context.count
        run = (context.num_inference_steps, config.masking_schedule, config.rounding)
        target = masks_left(context.initial, context.step_index + 1, *run)
        return reveal_counts(remaining, target.to(remaining.device) if isinstance(target, Tensor) else target)
