"""Checks that the pipelines share: one clear `ValueError` with rule, value and remedy, before any work is done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils.torch_utils import unwrap_module
from torch import nn

from ..integers import is_integer, is_number, plain
from ..schedulers import MaskedDiffusionScheduler
from .calls import GuidanceScale

# What a layer that only drops may call its probability, beside a name with "drop" in it.
_RATES = ("p", "prob", "rate")
# Probabilities in a configuration that are those of classifying heads, which no denoiser has.
_OF_HEADS = ("classifier", "semantic_classifier", "seq_classif", "summary", "qa")


def check_components(components: Mapping[str, Any]) -> None:
    """The scheduler must be one of this package, or derived from its base, and nothing may draw dropout."""
    check_scheduler(components["scheduler"])
    check_no_dropout(components)


def check_scheduler(scheduler: Any) -> None:
    """It must be one of this package, or derived from its base."""
    if not isinstance(scheduler, MaskedDiffusionScheduler):
        raise ValueError(
            f"`scheduler` must be a MaskedDiffusionScheduler, got {type(scheduler).__name__}. Set for example "
            "`pipe.scheduler = MomentScheduler.from_config(pipe.scheduler.config)`."
        )


def check_no_dropout(components: Mapping[str, Any]) -> None:
    """No component may drop anything at random, which a model in training with a dropout probability does."""
    for name, component in components.items():
        part = _dropping_part(component)
        if part is not None:
            raise ValueError(
                f"`{name}` must be in evaluation mode, got a {type(unwrap_module(component)).__name__} whose {part} "
                f"drops values at random, as in training. Call `pipe.{name}.eval()`."
            )


def _dropping_part(component: Any) -> str | None:
    """The name of a part of a component that is in training and has a dropout probability above 0."""
    for name, part in component.named_modules() if isinstance(component, nn.Module) else ():
        if part.training and (rate := _dropout_rate(part)) is not None:
            return f"`{name}.{rate}`" if name else f"`{rate}`"
    return None


def _dropout_rate(part: nn.Module) -> str | None:
    """Where a layer has a dropout probability above 0: `dropout`, `activation_dropout`, `config.resid_pdrop`, ...

    Layers hand what they or their configuration hold to functions, so that no module needs to be there for it. Names
    are many, and all say "drop".
    """
    own, config = vars(part), vars(part).get("config")
    only_drops = "drop" in type(part).__name__.lower()
    for name, value in own.items():
        if _is_rate(value) and ("drop" in name or (only_drops and name in _RATES)):
            return name
    for name, value in vars(config).items() if hasattr(config, "__dict__") else ():
        if _is_rate(value) and "drop" in name and not name.startswith(_OF_HEADS):
            return f"config.{name}"
    return None


def _is_rate(value: Any) -> bool:
    return isinstance(value, float) and value > 0


def check_count(name: str, value: Any, remedy: str) -> None:
    """It must be an integer of at least 1, of Python, numpy or torch."""
    if not is_integer(value, at_least=1):
        raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}. {remedy}")


def check_output_type(output_type: str, known: Sequence[str]) -> None:
    """It must be one of those that the pipeline knows."""
    if not isinstance(output_type, str) or output_type not in known:
        raise ValueError(f"`output_type` must be one of {known}, got {output_type!r}. Pick one of these.")


def tensor_inputs_of(callback: Any, names: Any) -> Any:
    """The tensors that a callback wants: a callback of diffusers says it itself.

    Raises:
        ValueError: it cannot be called.
    """
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        return callback.tensor_inputs
    if callback is not None and not callable(callback):
        raise ValueError(
            "`callback_on_step_end` must be a function of the pipeline, the step, the timestep and a dictionary of "
            f"tensors, got {callback!r:.60}. Leave it out for none; several go into a `MultiPipelineCallbacks`."
        )
    return names


def check_callback_inputs(names: Any, known: Sequence[str]) -> None:
    """They must be a list of some that the pipeline can hand to a callback."""
    is_list = isinstance(names, list | tuple)
    unknown = [name for name in names if name not in known] if is_list else names
    if not is_list or unknown:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` must be a list of names among {known}, got {unknown!r:.60}. Leave "
            f"it out to get the {known[0]}."
        )


def check_flag(name: str, value: Any, remedy: str) -> None:
    """It must be True or False, of Python, numpy or torch."""
    if not isinstance(plain(value), bool):
        raise ValueError(f"`{name}` must be True or False, got {value!r:.60}. {remedy}")


def check_guidance_scale(guidance_scale: GuidanceScale) -> None:
    """It must be a finite number of at least 0, a pair of such, or a pair, a power above 0, and steps to be ahead."""
    scales = list(guidance_scale) if isinstance(guidance_scale, Sequence) else [guidance_scale, guidance_scale]
    valid = len(scales) in (2, 3, 4) and all(is_number(scale) and 0 <= scale < math.inf for scale in scales)
    if not valid or scales[2:3] == [0]:
        raise ValueError(
            "`guidance_scale` must be a finite number or a pair (start, end) of such, none below 0, or with a "
            f"power above 0 and a number of steps ahead besides, got {guidance_scale!r}. Pass 1.0 for no guidance."
        )


def check_lengths(model_length: int | None, max_new_tokens: Any, stride: Any, block_length: Any) -> None:
    """Raise `ValueError` for a length of a call that is no count, or a stride that the model has no room for."""
    for name, value in (("max_new_tokens", max_new_tokens), ("stride", stride), ("block_length", block_length)):
        if value is not None and not is_integer(value, at_least=1):
            raise ValueError(
                f"`{name}` must be an integer of at least 1 or None, got {value!r}. Pass None to leave it out."
            )
    if stride is not None and model_length is not None and stride > model_length:
        raise ValueError(
            f"`stride` must be at most the model's length {model_length}, got {stride}. Half of it keeps half a block "
            "as context."
        )
