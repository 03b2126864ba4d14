"""What a pipeline does after each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import is_torch_xla_available
from torch import Tensor

from .calls import PipelineCall
from .denoising import StepCallback

if is_torch_xla_available():
    import torch_xla.core.xla_model as xm


def after_step(
    pipe: Any,
    call: PipelineCall,
    callback: Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks | None,
    names: Sequence[str],
    name: str,
) -> StepCallback:
    """Counts the step, and lets the user's callback see and replace the tensor that is being filled in.

    Args:
        pipe: the pipeline, which the callback is given.
        call: its call.
        callback: `callback(pipe, step, timestep, tensors)`, returns a dictionary; None for none.
        names: which tensors the callback wants.
        name: what the tensor is called.

    Raises:
        ValueError: in a step, if the callback returns what would have no effect, or tokens of another kind.
    """

    def on_step_end(i: int, t: Tensor, tensor: Tensor) -> Tensor:
        call.end_step()
        if callback is not None:
            given = {name: tensor} if name in names else {}
            tensor = _returned(callback(pipe, call.num_timesteps - 1, t, given), name, tensor)
        if is_torch_xla_available():
            xm.mark_step()
        return tensor

    return on_step_end


def _returned(values: Any, name: str, tensor: Tensor) -> Tensor:
    """The tensor that a callback wants the run to go on with: `tensor` itself if it returns none."""
    if not isinstance(values, Mapping) or values.keys() - {name}:
        got = sorted(map(str, values)) if isinstance(values, Mapping) else values
        raise ValueError(
            f"`callback_on_step_end` must return a dictionary of {name!r} or an empty one, got {got!r:.60}. Nothing "
            "else is read from it: return the dictionary that the callback was given."
        )
    found = values.get(name, tensor)
    if not isinstance(found, Tensor) or found.shape != tensor.shape or found.dtype != tensor.dtype:
        got = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"`callback_on_step_end` must return {name!r} as {tensor.dtype} {tuple(tensor.shape)}, got {got}. Return "
            "the tokens that it was given, or changed ones."
        )
    return found
