"""ReMDM: ancestral sampling in which a revealed token may become a mask again."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from .. import revising
from ..masking import MaskingSchedule, mask_ratio
from ..sampling import Marginals, Purpose, position_noise
from .checks import ChoiceTemperature, is_number, require
from .drawn_with import record_drawn
from .position_orders import POSITION_ORDERS
from .run_memory import DrawMemory, RunMemory
from .scheduling_choose_then_sample import Choice
from .scheduling_revising import RevisingScheduler
from .step_context import StepContext

# A sum over a row may be a hair above what is a whole number in exact arithmetic.
_TIE = 1e-9
_STRATEGIES = ("cap", "rescale", "conf", "loop", "forward_backward", "dfm")


class ReMDMScheduler(RevisingScheduler):
    r"""Corrects itself: passes beyond one for each position are not lost, but spent on tokens drawn anew.

    $$ \Pr[i \text{ becomes a mask}] = \sigma_n, \qquad
       \Pr[i \text{ is revealed}] = \frac{\alpha_s - (1 - \sigma_n) \alpha_t}{1 - \alpha_t}, \qquad x_i \sim p_i $$

    for every revealed and every masked position independently, where `alpha = 1 - m(t)` is the share of revealed
    positions before (t) and after (s) the step. So the share follows the masking schedule whatever sigma is, and
    `sigma = 0` is `AncestralScheduler`. Strategies, with `sigma_max = min(1, (1 - alpha_s) / alpha_t)`:

    - `"cap"`: `sigma = min(eta, sigma_max)`
    - `"rescale"`: `sigma = eta sigma_max`
    - `"conf"`: `sigma_i = sigma_max softmax_i(-p_i(x_i))`, with the probabilities at which the tokens were drawn, and
      masks revealed as if sigma were 0. Needs a memory, as the pipelines hand on; without one nothing is taken back.
    - `"loop"`: the share rises to `loop_share` until the time `loop_start`, stays there until `loop_end` while
      `sigma = eta`, and rises to 1 then. It takes many steps.
    - `"forward_backward"`: `sigma = (alpha_s - alpha_t) / alpha_t`, at most sigma_max.
    - `"dfm"`: `10 (alpha_t (1 - alpha_t))^(1/4)` times that, at most sigma_max: the corrector of discrete flow matching
      (arXiv 2407.15595). With fewer than about 20 steps that is sigma_max almost everywhere.

    The last step reveals all masks, and takes nothing back. With `exact_order`, counts are exact instead: the masks
    after each step are as many as the schedule says, sigma times the number of revealed positions are taken back
    (rounded up or down at random), and what is revealed instead comes first in that order. "Remasking Discrete
    Diffusion Models with Inference-Time Scaling" (arXiv 2503.00307).

    Example:

        scheduler = ReMDMScheduler(mask_token_id=50257, remasking="rescale", eta=0.015, top_p=0.9)
        scheduler.set_timesteps(1024)
        memory = scheduler.new_memory()
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample).logits, t, sample, memory=memory).prev_sample

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size, masking_schedule, rounding, temperature, top_k, top_p, typical_p: see `MaskedDiffusionScheduler`;
            `rounding` has no effect without an `exact_order`.
        remasking (`str`): one of the strategies above.
        eta (`float`): in [0, 1], for `"cap"`, `"rescale"` and `"loop"`.
        loop_start, loop_end, loop_share (`float`): of `"loop"`: `0 < loop_end < loop_start < 1`, `0 < loop_share < 1`.
        exact_order (`str`, optional): `"uniform"`, `"moment"`, `"confidence"`, `"margin"`, `"entropy"`, `"halton"` or
            `"randomized_halton"`, not for `"loop"`; None decides each position on its own, as published.
        choice_temperature (`float` or pair, optional): of the order `"moment"`, see `MomentScheduler`; with None that
            is random. Without effect on the others.
        choice_temperature_schedule (`str`): see `MomentScheduler`.
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
        remasking: str = "cap",
        eta: float = 0.02,
        loop_start: float = 0.55,
        loop_end: float = 0.05,
        loop_share: float = 0.9,
        exact_order: str | None = None,
        choice_temperature: ChoiceTemperature | None = 6.0,
        choice_temperature_schedule: str = "linear",
        typical_p: float | None = None,
    ) -> None:
        require(remasking in _STRATEGIES, "remasking", f"one of {_STRATEGIES}", remasking, "Pick one of these.")
        require(is_number(eta) and 0 <= eta <= 1, "eta", "in [0, 1]", eta, "Try 0.02.")
        times = (loop_end, loop_start)
        valid = all(is_number(time) for time in times) and 0 < loop_end < loop_start < 1
        require(valid, "(loop_end, loop_start)", "two times between 0 and 1, the end first", times, "Try 0.05, 0.55.")
        valid = is_number(loop_share) and 0 < loop_share < 1
        require(valid, "loop_share", "between 0 and 1", loop_share, "Try 0.9.")
        order, names = exact_order, sorted(POSITION_ORDERS)
        require(order is None or order in names, "exact_order", f"one of {names} or None", order, "Pick one of these.")
        remedy = "Pass another one, or no order."
        require(order is None or remasking != "loop", "exact_order", "None where `remasking` is 'loop'", order, remedy)
        self.check_config()

    @property
    def reads_revealed(self) -> bool:
        """False: what is taken back does not depend on the logits of this step."""
        return False

    def new_memory(self) -> RunMemory:
        return DrawMemory() if self.config.remasking == "conf" else RunMemory()

    def planned_counts(self, num_masked: Tensor, initial: Tensor | None = None, first_step: int = 0) -> Tensor | None:
        """None without an `exact_order`: then the counts are random."""
        if self.config.exact_order is not None:
            return super().planned_counts(num_masked, initial, first_step)
        self._require_run()
        return None

    def open_counts(self, masked: Tensor, given: Tensor, memory: RunMemory) -> Tensor:
        num_masked = masked.sum(-1)
        if self.config.exact_order is not None:
            return num_masked
        free = (masked | ~given).any(-1)
        return torch.where(free, num_masked.clamp(min=1), 0)  # a row without masks may have some again

    def most_put_back(self, step_index: int, remaining: Tensor, num_free: Tensor) -> Tensor:
        revealed, sigma = num_free - remaining, self.probabilities(step_index)[1]
        # The sum over a row, see `sigma_of`; it is rounded up or down.
        total = sigma * (revealed.clamp(max=1) if self.config.remasking == "conf" else revealed).double()
        return ((total + _TIE).long() + 1).minimum(super().most_put_back(step_index, remaining, num_free))

    def probabilities(self, step_index: int) -> tuple[float, float]:
        """Of a step: the probability that a masked position is revealed, and sigma; sigma_max for `"conf"`."""
        num_steps, config = self._require_run(), self.config
        time, next_time = 1 - step_index / num_steps, 1 - (step_index + 1) / num_steps
        if step_index == num_steps - 1:
            return 1.0, 0.0
        if config.remasking == "loop":
            loop = (config.loop_start, config.loop_end, config.loop_share)
            share, next_share, stays = revising.loop_shares(time, next_time, *loop)
            remasking = config.eta if stays else 0.0
        else:
            ratios = mask_ratio(config.masking_schedule, torch.tensor([time, next_time], dtype=torch.float64))
            share, next_share = (1 - ratios).tolist()
            remasking = remasking_of(config.remasking, share, next_share, config.eta)
        used = 0.0 if config.remasking == "conf" else remasking
        return revising.reveal_probability(share, next_share, used), remasking

    def sigma_of(self, context: StepContext) -> Tensor:
        """Sigma of every position in this step, float64 `(batch_size, L)`; 0 where nothing is revealed."""
        _, sigma = self.probabilities(context.step_index)
        revealed = context.revealed.to(context.keys.device)
        if self.config.remasking != "conf":
            return revealed.double() * sigma
        if not isinstance(context.memory, DrawMemory):
            return torch.zeros_like(revealed, dtype=torch.float64)
        drawn_with = context.memory.drawn_with(context.tokens.shape, context.tokens.device)
        return revising.doubt_shares(drawn_with.to(revealed.device, torch.float64), revealed) * sigma

    # --- counts as they fall ------------------------------------------------------------------------------------------

    def plan_step(self, marginals: Marginals, context: StepContext) -> tuple[StepContext, Tensor, Tensor | None]:
        if context.is_last or self.config.exact_order is not None:
            return super().plan_step(marginals, context)
        put_back = context.uniform(Purpose.CHOICE) < self.sigma_of(context)
        ranked, count = self.rank_positions(marginals, context)
        return context.with_count(count), ranked, self.masked_again(context, put_back)

    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        if self.config.exact_order is None:
            return -context.uniform(Purpose.CHOICE)
        return POSITION_ORDERS[self.config.exact_order](marginals, context, Purpose.CHOICE)

    def count_positions(self, scores: Tensor, context: StepContext) -> Tensor:
        if self.config.exact_order is not None:
            return context.count
        return (scores > -self.probabilities(context.step_index)[0]).sum(-1)

    def token_beta(self, context: StepContext, num_ranks: int) -> Tensor:
        if self.config.exact_order == "moment":
            return super().token_beta(context, num_ranks)
        return torch.ones(len(context.keys), num_ranks, dtype=torch.float64, device=context.keys.device)

    # --- exact counts -------------------------------------------------------------------------------------------------

    def score_revealed(self, marginals: Marginals, context: StepContext) -> Tensor:
        return -(self.sigma_of(context).log() + context.gumbel(Purpose.EXPLORATION))

    def count_put_back(self, scores: Tensor, context: StepContext) -> Tensor:
        chance = position_noise(context.keys, 1, Purpose.SHIFT)[0][:, 0]  # rounded so that the mean is right
        return (self.sigma_of(context).sum(-1) + chance).long()

    def note_drawn(
        self, marginals: Marginals, choice: Choice, rows: Tensor, tokens: Tensor, group: Tensor | None
    ) -> None:
        if self.config.remasking == "conf":
            record_drawn(marginals, choice, rows, tokens, group)


def remasking_of(strategy: str, share: float, next_share: float, eta: float) -> float:
    """Sigma of a strategy that follows the masking schedule; sigma_max for `"conf"`."""
    largest = revising.largest_remasking(share, next_share)
    if strategy == "cap":
        return min(eta, largest)
    if strategy == "rescale":
        return eta * largest
    if strategy == "forward_backward":
        return min(revising.forward_backward(share, next_share), largest)
    if strategy == "dfm":
        return min(revising.flow_corrector(share, next_share), largest)
    return largest
