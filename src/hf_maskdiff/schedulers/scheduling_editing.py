"""Editing as LLaDA2 does it: threshold decoding that also replaces, or masks again, what the model has gone off."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from ..integers import is_integer
from ..masking import MaskingSchedule
from ..sampling import Marginals, Purpose
from .checks import is_number, require
from .drawn_with import record_drawn
from .run_memory import EditingMemory, RunMemory
from .scheduling_choose_then_sample import Choice
from .scheduling_revising import RevisingScheduler
from .step_context import StepContext
from .token_temperature import beta_of

_OVERWRITE, _MASK = "overwrite", "mask"
_OTHER, _IMPROBABLE, _CHANGED = _DOUBTS = ("other", "improbable", "changed")
_CLOSE = 1e-6  # two ways to compute the same log-probability differ by less


class EditingScheduler(RevisingScheduler):
    r"""Decodes fast and mends afterwards: tokens the model has gone off are replaced while others are still masked.

    $$ \text{reveal } \{ i : c_i > \tau \} \text{, at least as many as the schedule has for the step;} \qquad
       \text{edit } \{ i \text{ revealed} : x_i^* \ne x_i, \; c_i > \tau_e \} $$

    where `x_i^*` is the most probable token and c_i its probability, or with `drawn=True` a token drawn from
    p_i and its probability. `edits="overwrite"` writes `x_i^*` there (LLaDA2.1); `"mask"` makes the position a mask,
    which later steps fill in from a context without the mistake (token-to-mask, arXiv 2604.18738). A mask may also come
    back where `doubt="improbable"`, `p_i(x_i) < tau_e`, or `"changed"`, p_i(x_i) differs by more than tau_e from what
    the pass before gave. Once a block is full, further passes
    edit it until one changes nothing, at most `max_post_steps + 1` of them; a block that is full only after its last
    step gets none. Each row has its own count.

    It needs a model whose logits at known positions tell something, see `PathPlanningScheduler`, and in the pipelines
    of this package a `block_length` to have blocks. diffusers' `LLaDA2Pipeline` runs it too; there `max_post_steps` is
    the call's. Published settings: `threshold=0.7, editing_threshold=0.5` for quality.

    Example:

        scheduler = EditingScheduler(mask_token_id=156895, threshold=0.7, editing_threshold=0.5)
        pipe = MaskedDiffusionTextPipeline(tokenizer, model, scheduler)
        pipe("Once upon a time", num_inference_steps=32, block_length=32)

    Args:
        mask_token_id (`int`): id of the mask.
        codebook_size, masking_schedule, rounding, temperature, top_k, top_p, typical_p: see `MaskedDiffusionScheduler`.
        threshold (`float`): tau, in [0, 1] or above; what nothing exceeds follows the schedule.
        editing_threshold (`float`): tau_e, in (0, 1].
        edits (`str`): `"overwrite"` or `"mask"`. A mask comes back only before the last step, which leaves none.
        doubt (`str`): what is edited: `"other"` as above, or with `edits="mask"` also `"improbable"` or `"changed"`,
            for which 0.5 and 0.3 are the published `editing_threshold`. For `"changed"` the loop must hand on a memory,
            as our pipelines do; without one nothing is doubted.
        max_post_steps (`int`): at least 0.
        drawn (`bool`): tokens drawn at `temperature`; False takes the most probable ones.
    """

    @register_to_config
    def __init__(
        self,
        mask_token_id: int,
        codebook_size: int | None = None,
        masking_schedule: MaskingSchedule = "linear",
        rounding: str = "even",
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        threshold: float = 0.7,
        editing_threshold: float = 0.5,
        edits: str = _OVERWRITE,
        max_post_steps: int = 16,
        drawn: bool = False,
        typical_p: float | None = None,
        doubt: str = _OTHER,
    ) -> None:
        valid, remedy = is_number(threshold) and threshold >= 0, "Try 0.7."
        require(valid, "threshold", "a number of at least 0", threshold, remedy)
        valid, remedy = is_number(editing_threshold) and 0 < editing_threshold <= 1, "Try 0.5, or 1 for no edits."
        require(valid, "editing_threshold", "in (0, 1]", editing_threshold, remedy)
        kinds = (_OVERWRITE, _MASK)
        require(edits in kinds, "edits", f"one of {kinds}", edits, "Pick one of these.")
        require(doubt in _DOUBTS, "doubt", f"one of {_DOUBTS}", doubt, "Pick one of these.")
        valid, remedy = doubt == _OTHER or edits == _MASK, "Pass edits='mask', which does not need another token."
        require(valid, "doubt", f"{_OTHER!r} with edits={edits!r}", doubt, remedy)
        valid, remedy = is_integer(max_post_steps, at_least=0), "Pass how many passes may edit a full block."
        require(valid, "max_post_steps", "an integer of at least 0", max_post_steps, remedy)
        self.check_config()

    def with_sampling_temperature(self, value: float) -> EditingScheduler:
        """A copy that draws tokens at another temperature, which changes what is sure, too."""
        settings: dict[str, Any] = {"temperature": value, "drawn": True} if value > 0 else {"drawn": False}
        return self.from_config(self.config, **settings)

    # --- the run ------------------------------------------------------------------------------------------------------

    def fit_timesteps(self, num_masked: Tensor, first_step: int = 0) -> int:
        """Adds steps at time 0, for blocks that are full and still edited."""
        regular = [1 - n / self._require_run() for n in range(self._require_run())]
        more = self.config.max_post_steps + 1 if self.config.edits == _OVERWRITE else 0
        self.timesteps = torch.tensor([*regular, *[0.0] * more], dtype=torch.float32)
        return first_step

    def new_memory(self) -> EditingMemory:
        return EditingMemory()

    def planned_counts(self, num_masked: Tensor, initial: Tensor | None = None, first_step: int = 0) -> None:
        """None: the counts depend on the logits and are not known in advance."""
        self._require_run()

    def open_counts(self, masked: Tensor, given: Tensor, memory: RunMemory) -> Tensor:
        goes_on = masked.any(-1)
        if isinstance(memory, EditingMemory) and memory.goes_on is not None:
            goes_on = goes_on | memory.goes_on
        return torch.where(goes_on, (masked | ~given).sum(-1), 0)

    # --- a step -------------------------------------------------------------------------------------------------------

    def plan_step(self, marginals: Marginals, context: StepContext) -> tuple[StepContext, Tensor, Tensor | None]:
        device = context.keys.device
        masked, revealed = context.masked.to(device), context.revealed.to(device)
        scores, doubted = self._candidates(marginals, context)
        edits = revealed & doubted
        count = self.count_positions(scores.masked_fill(~masked, -torch.inf), context).to(device)
        if isinstance(context.memory, EditingMemory):
            context.memory.note(masked.any(-1), edits.any(-1), context.is_last, self.config.max_post_steps)
        # The surest masked positions, then those that are edited: their ranks are the first ones of the step.
        _, ranked = torch.sort(scores.masked_fill(~masked, -torch.inf), dim=-1, descending=True, stable=True)
        ranks = torch.arange(ranked.shape[1], device=device)
        fresh = (ranks < count[:, None]) & masked.gather(1, ranked)
        if self.config.edits == _MASK:
            put_back = edits & (not context.is_last)
            ranked = ranked.gather(1, (~fresh).long().argsort(dim=1, stable=True))
            return context.with_count(fresh.sum(-1)), ranked, self.masked_again(context, put_back)
        edited = edits.gather(1, ranked)
        order = torch.where(fresh, 0, torch.where(edited, 1, 2)).argsort(dim=1, stable=True)
        return context.with_count((fresh | edited).sum(-1)), ranked.gather(1, order), None

    # What is edited does not depend on whether the step is the last, so there is no shortcut.
    _plan_whole_step = plan_step

    def _candidates(self, marginals: Marginals, context: StepContext) -> tuple[Tensor, Tensor]:
        """Of a candidate token for each position its log-probability, and whether the token that stands there is
        doubted."""
        doubt, free = self.config.doubt, context.masked | context.revealed
        device, threshold = context.keys.device, math.log(self.config.editing_threshold)
        if self.config.drawn:  # the noise is the position's own, so `sample_tokens` draws the same again
            drawn, scores = marginals.draw_all(
                free if doubt == _OTHER else context.masked, context.uniform(Purpose.TOKEN)
            )
            if doubt == _OTHER:
                return scores.to(device), ((drawn != context.tokens) & (scores > threshold)).to(device)
            standing = marginals.log_prob_of(context.tokens, context.revealed)
        else:
            standing, scores = marginals.log_prob_of_and_largest(context.tokens, free)
        if doubt == _OTHER:
            doubted = (standing < scores - _CLOSE) & (scores > threshold)
        elif doubt == _IMPROBABLE:
            doubted = standing < threshold
        else:
            doubted = self._changed(standing.exp(), context)
        return scores.to(device), doubted.to(device)

    def _changed(self, now: Tensor, context: StepContext) -> Tensor:
        """Whether the probability of the token that stands there is another than in the last pass."""
        if not isinstance(context.memory, EditingMemory):
            return torch.zeros_like(context.masked)
        change = (now - context.memory.drawn_with(context.tokens.shape, now.device)).abs()
        places = torch.arange(now.numel(), device=now.device).view_as(now)
        places = torch.where(context.revealed, places, now.numel())
        context.memory.record(places.flatten(), now.flatten(), now.shape)
        return change > self.config.editing_threshold

    def note_drawn(
        self, marginals: Marginals, choice: Choice, rows: Tensor, tokens: Tensor, group: Tensor | None
    ) -> None:
        if self.config.doubt == _CHANGED:
            record_drawn(marginals, choice, rows, tokens, group)

    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        return self._candidates(marginals, context)[0]

    def count_positions(self, scores: Tensor, context: StepContext) -> Tensor:
        """How many masked positions are revealed: all that are sure, at least as many as the schedule has."""
        if context.is_last:
            return context.remaining
        threshold = self.config.threshold
        sure = (scores > (math.log(threshold) if threshold > 0 else -math.inf)).sum(-1)
        sure = sure.to(context.remaining.device).clamp(min=1)
        return sure.maximum(self.share_of_step(context)).minimum(context.remaining)

    def score_revealed(self, marginals: Marginals, context: StepContext) -> Tensor:
        return marginals.log_prob_of(context.tokens, context.revealed)

    def count_put_back(self, scores: Tensor, context: StepContext) -> Tensor:
        """Not asked: `plan_step` decides about both halves together."""
        return torch.zeros_like(context.remaining)

    def token_beta(self, context: StepContext, num_ranks: int) -> Tensor:
        return beta_of(float(self.config.drawn), context, num_ranks)

    # --- diffusers' `LLaDA2Pipeline` ----------------------------------------------------------------------------------

    def check_block_should_continue(
        self,
        step_idx: int,
        masks_remaining: bool | Tensor,
        editing_enabled: bool,
        editing_transfer_index: Tensor,
        post_steps: int,
        max_post_steps: int,
        finished: Tensor,
    ) -> bool:
        """Whether the block needs another step: it had masks before this one, or this one has edited it.

        Args:
            step_idx: number of steps taken while there were masks.
            masks_remaining: whether the block held masks before the last step.
            editing_enabled: not used; this scheduler edits.
            editing_transfer_index: what the last step has edited, bool.
            post_steps, max_post_steps: the number of steps since the block is full, and how many there may be.
            finished: rows that have their end of text, bool `(batch_size,)`.
        """
        if bool(finished.all()):
            return False
        if bool(masks_remaining):
            return step_idx < (self.num_inference_steps or 0)
        return bool(editing_transfer_index.any()) and post_steps <= max_post_steps
