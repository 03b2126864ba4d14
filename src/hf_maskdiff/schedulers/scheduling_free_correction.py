"""FreeCorrection: takes back the tokens that the model has believed in least since they were drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..masking import MaskingSchedule
from ..sampling import Marginals, Purpose
from .checks import ChoiceTemperature, is_number, require
from .position_orders import POSITION_ORDERS
from .run_memory import LifeMemory
from .scheduling_revising import RevisingScheduler
from .step_context import StepContext

_DRAWN = "drawn"
_TIE = 1e-9  # a step at exactly the start of a stretch belongs to it


class FreeCorrectionScheduler(RevisingScheduler):
    r"""Corrects early tokens at no cost: what the passes themselves have doubted for long is drawn anew.

    $$ c_i = \frac{1}{n - b_i} \sum_{j = b_i + 1}^{n} p_i^{(j)}(x_i) $$

    is the mean probability, over all passes since token x_i was drawn in step b_i, of the token that stands there. Late
    in a run each step masks the positions with the lowest means again, without noise, and reveals as many more, so that
    the number of masks follows the schedule. "FreeCorrection" (arXiv 2602.02927).

    It needs a model whose logits at known positions tell something, see `PathPlanningScheduler`, and a memory, as the
    pipelines hand on: **without one nothing is taken back**. The order of what is revealed is any of this package.

    Example:

        scheduler = FreeCorrectionScheduler(mask_token_id=8192)
        scheduler.set_timesteps(32)
        memory = scheduler.new_memory()
        for t in scheduler.timesteps:
            sample = scheduler.step(model(sample), t, sample, memory=memory).prev_sample

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size, masking_schedule, rounding, temperature, top_k, top_p, typical_p: see `MaskedDiffusionScheduler`.
        corrected_shares (sequence of `float`): the share of a row's positions that each step takes back, in
            equally long stretches of the run from `correction_start` to the end; the original takes back 16, 8 and 4 of
            1024 positions or more. Rounded down.
        correction_start (`float`): in [0, 1], the part of the run in which nothing is taken back yet.
        order (`str`): `"drawn"`, MaskGIT's: the most probable of the tokens drawn, with noise; `"moment"`, which is
            nearly the same; or `"uniform"`, `"confidence"`, `"margin"`, `"entropy"`, `"halton"`,
            `"randomized_halton"`.
        choice_temperature (`float` or pair, optional): of `"drawn"`, where None is no noise, and of `"moment"`, which
            is random with None. Without effect on the others.
        choice_temperature_schedule (`str`): see `MomentScheduler`.
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
        corrected_shares: Sequence[float] = (1 / 64, 1 / 128, 1 / 256),
        correction_start: float = 0.4,
        order: str = "moment",
        choice_temperature: ChoiceTemperature | None = 6.0,
        choice_temperature_schedule: str = "linear",
        typical_p: float | None = None,
    ) -> None:
        valid = isinstance(corrected_shares, Sequence) and len(corrected_shares) > 0
        valid = valid and all(is_number(share) and 0 <= share <= 1 for share in corrected_shares)
        require(valid, "corrected_shares", "one or more shares in [0, 1]", corrected_shares, "Try [1 / 64].")
        valid = is_number(correction_start) and 0 <= correction_start <= 1
        require(valid, "correction_start", "in [0, 1]", correction_start, "Try 0.4.")
        names = sorted([*POSITION_ORDERS, _DRAWN])
        require(order in names, "order", f"one of {names}", order, "Pick one of these.")
        self.check_config()

    def new_memory(self) -> LifeMemory:
        return LifeMemory()

    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        if self.config.order != _DRAWN:
            return POSITION_ORDERS[self.config.order](marginals, context, Purpose.CHOICE)
        # The noise is the position's own, so `sample_tokens` draws the same again.
        log_probs = marginals.draw_all(context.masked, context.uniform(Purpose.TOKEN))[1]
        return log_probs + (context.choice_temperature or 0.0) * context.gumbel(Purpose.CHOICE)

    def score_revealed(self, marginals: Marginals, context: StepContext) -> Tensor:
        """The mean probability of each standing token over its life, float32 `(batch_size, L)`."""
        now = marginals.log_prob_of(context.tokens, context.revealed).exp()
        if not isinstance(context.memory, LifeMemory):
            return now
        return context.memory.mean_with(now, context.revealed)

    def count_put_back(self, scores: Tensor, context: StepContext) -> Tensor:
        shares, start = self.config.corrected_shares, self.config.correction_start
        place = (context.step_index / context.num_inference_steps - start + _TIE) / max(1 - start, _TIE)
        if place < 0 or not isinstance(context.memory, LifeMemory):
            return torch.zeros_like(context.remaining)
        share = shares[min(int(place * len(shares)), len(shares) - 1)]
        return (share * (~context.given).sum(-1).double() + _TIE).long()

    def token_beta(self, context: StepContext, num_ranks: int) -> Tensor:
        if self.config.order == "moment":
            return super().token_beta(context, num_ranks)
        return torch.ones(len(context.keys), num_ranks, dtype=torch.float64, device=context.keys.device)
