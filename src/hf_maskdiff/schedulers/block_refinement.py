"""What diffusers' `LLaDA2Pipeline` asks of its scheduler, so that ours run in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checks import require, warn_user
from .output import MaskedDiffusionSchedulerOutput

# What `LLaDA2Pipeline` passes to `step` beside the arguments that every scheduler has.
_KEYWORDS = {
    "mask_token_id",
    "temperature",
    "top_p",
    "top_k",
    "sampling_method",
    "threshold",
    "editing_threshold",
    "minimal_topk",
    "prompt_mask",
}
# The pipeline's defaults of what decides about tokens.
_DEFAULTS = {"temperature": 0.0, "top_p": None, "top_k": None, "threshold": 0.7}


@dataclass
class BlockRefinementOutput(MaskedDiffusionSchedulerOutput):
    """Output of a step inside `LLaDA2Pipeline`.

    Args:
        editing_transfer_index: which revealed tokens have changed, bool `(batch_size, block_length)`.
        sampled_tokens: the tokens of the block after the step, or a candidate for each mask, int64
            `(batch_size, block_length)`.
        sampled_probs: None: our schedulers do not compute them.
    """

    editing_transfer_index: Tensor | None = None
    sampled_tokens: Tensor | None = None
    sampled_probs: Tensor | None = None


class BlockRefinementMixin:
    """Gives a scheduler what `LLaDA2Pipeline` calls; it fills in one block at a time and counts the steps from 0.

    The scheduler decides by its own configuration. So what the call of the pipeline says of thresholds, temperatures
    and the like must be the pipeline's defaults, or what the configuration says. Only `EditingScheduler` edits by a
    threshold: with another one an `editing_threshold` above 0 is warned of. Pass the pipeline a `block_length`; only
    the configuration of `ThresholdScheduler` has one for a call without.
    """

    if TYPE_CHECKING:
        config: Any
        num_inference_steps: int | None
        step: Any
        own_setting: Any
        revises: Any

    def _step_of_block(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Any,
        return_dict: bool,
        given: Mapping[str, Any],
    ) -> Any:
        """A step as `LLaDA2Pipeline` asks for it: `timestep` is its number in the block, `given` all further keywords.

        The masking schedule is that of a whole block, also where a part of it is the prompt's.
        """
        self._check_keywords(given)
        num_steps = self.num_inference_steps or 1
        time = 1 - min(int(timestep), num_steps - 1) / num_steps
        prompt = given.get("prompt_mask")  # of one row, for all rows
        untouched = None if prompt is None else prompt.expand_as(sample)
        taken = self.step(model_output, time, sample, generator=generator, given=untouched, details=True)
        mask = self.config.mask_token_id
        if self.revises and bool((taken.prev_sample == mask).any()) and not bool((sample == mask).any()):
            # The pipeline may be done with a block that was full before the step, so no mask is put back into it.
            whole = torch.ones_like(sample, dtype=torch.bool)
            taken = self.step(model_output, time, sample, generator=generator, given=whole, details=True)
        drawn = taken.prev_sample if taken.pred_original_sample is None else taken.pred_original_sample
        edited = taken.transfer_index & (sample != self.config.mask_token_id)
        revealed = taken.transfer_index & ~edited
        if not return_dict:
            return taken.prev_sample, revealed, edited, drawn, None, model_output
        told = vars(taken) | {"transfer_index": revealed}
        return BlockRefinementOutput(**told, editing_transfer_index=edited, sampled_tokens=drawn)

    def _check_keywords(self, given: Mapping[str, Any]) -> None:
        config, name = self.config, type(self).__name__
        unknown = given.keys() - _KEYWORDS
        if unknown:
            raise TypeError(f"{name}.step() got an unexpected keyword argument {min(unknown)!r}")
        mask = given.get("mask_token_id", config.mask_token_id)
        remedy = f"`scheduler.from_config(scheduler.config, mask_token_id={mask})` is one for it."
        require(mask == config.mask_token_id, "mask_token_id", f"the scheduler's {config.mask_token_id}", mask, remedy)
        for key, default in _DEFAULTS.items():
            value, own = given.get(key, default), self.own_setting(key)
            remedy = f"Leave it out: {name} decides by its own configuration, which `from_config` changes."
            require(value in (default, own), key, f"the pipeline's default or the scheduler's own {own}", value, remedy)
        own, value = self.own_setting("editing_threshold"), given.get("editing_threshold")
        if own is not None:
            remedy = f"Pass `editing_threshold={own}` to the pipeline, whose default is 0.5."
            require(value in (None, own), "editing_threshold", f"None or the scheduler's own {own}", value, remedy)
        elif (value or 0) > 0:
            warn_user(
                f"{name} does not edit tokens that are revealed already, so `editing_threshold="
                f"{given['editing_threshold']}` has no effect. Pass `editing_threshold=None`."
            )

    @staticmethod
    def check_eos_finished(
        cur_x: Tensor,
        sampled_tokens: Tensor,
        final_transfer: Tensor,
        finished: Tensor,
        eos_token_id: int,
        mask_token_id: int,
        prompt_length: int,
    ) -> Tensor:
        """Which rows have their end of text: revealed, with no mask between it and the prompt; bool `(batch_size,)`.

        Args:
            cur_x: all tokens so far, int64 `(batch_size, length)`.
            sampled_tokens, final_transfer: tokens of the current block, and which of them this step has written.
            finished: the rows that had it before, bool `(batch_size,)`.
            eos_token_id, mask_token_id: tokens.
            prompt_length: where the answers begin.
        """
        written = (final_transfer & (sampled_tokens == eos_token_id)).any(-1)
        answers = cur_x[:, prompt_length:]
        ends = (answers == eos_token_id).cumsum(-1) > 0
        waiting = ((answers == mask_token_id) & ~ends).any(-1)
        return finished | (written & ends.any(-1) & ~waiting)

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
        """Whether the block needs another step: it had masks before this one, and steps are left.

        Args:
            step_idx: number of steps taken.
            masks_remaining: whether the block held masks before the last step.
            editing_enabled, editing_transfer_index, post_steps, max_post_steps: of editing, which there is none of.
            finished: rows that have their end of text, bool `(batch_size,)`.
        """
        return bool(masks_remaining) and step_idx < (self.num_inference_steps or 0) and not bool(finished.all())
