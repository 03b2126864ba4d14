"""What a pipeline does after each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """

    def on_step_end(i: int, t: Tensor, tensor: Tensor) -> Tensor:
        call.end_step()
        if callback is not None:
            given = {name: tensor} if name in names else {}
            tensor = callback(pipe, call.num_timesteps - 1, t, given).pop(name, tensor)
        if is_torch_xla_available():
            xm.mark_step()
        return tensor

    return on_step_end
