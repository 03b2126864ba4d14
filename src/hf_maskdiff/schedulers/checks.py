"""Checks that the schedulers share: one clear `ValueError` with rule, value and remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

ChoiceTemperature = float | Sequence[float]


def require(valid: bool, name: str, rule: str, value: object, remedy: str) -> None:
    """Raise `ValueError` with rule, value and remedy unless `valid`."""
    if not valid:
        raise ValueError(f"`{name}` must be {rule}, got {value!r}. {remedy}")


def is_number(value: object) -> bool:
    """Whether a setting can be compared with numbers, which a word or a list of a saved configuration cannot."""
    return isinstance(value, Real)


def is_integer(value: object) -> bool:
    """As `is_number`, of integers; numpy's too."""
    return isinstance(value, Integral)


def require_steps(num_inference_steps: int) -> None:
    """Raise `ValueError` unless the number of steps is a positive integer."""
    valid = isinstance(num_inference_steps, int) and num_inference_steps >= 1
    remedy = "Pass the number of model passes you want."
    require(valid, "num_inference_steps", "an integer of at least 1", num_inference_steps, remedy)


def check_choice_temperature(value: ChoiceTemperature | None) -> None:
    """Raise `ValueError` unless the choice temperature is None, a number, or a pair, none of them negative."""
    if value is None:
        return
    values = list(value) if isinstance(value, Sequence) else [value]
    valid = len(values) in ((2,) if isinstance(value, Sequence) else (1,)) and all(v >= 0 for v in values)
    require(valid, "choice_temperature", "a number of at least 0 or a pair (start, end) of such", value, "Try 6.0.")


def require_drawn(tokens: Tensor, num_tokens: int, step_index: int) -> None:
    """Raise `ValueError` where a draw found no token; for the CPU, where looking costs nothing."""
    if tokens.numel() and int(tokens.max()) >= num_tokens:
        raise ValueError(
            "`model_output` must allow a token at every position and hold no NaN or +inf, got such logits in step "
            f"{step_index} (counted from 0). Check the model's weights, dtype and `guidance_scale`."
        )


def flatten_logits(model_output: Tensor, sample: Tensor) -> Tensor:
    """Logits as `(batch_size, L, V)`, a view, from any form `step` accepts; `ValueError` where they do not fit."""
    if sample.ndim not in (2, 3) or sample.dtype != torch.int64:
        raise ValueError(
            f"`sample` must hold int64 tokens (batch_size, L) or (batch_size, height, width), got {sample.dtype} "
            f"{tuple(sample.shape)}. Pass token ids, e.g. `sample.long()`."
        )
    if model_output.ndim == 4:
        logits, fits = model_output.flatten(2).transpose(1, 2), model_output.shape[2:] == sample.shape[1:]
    else:
        logits, fits = model_output, model_output.ndim == 3 and model_output.shape[1] == math.prod(sample.shape[1:])
    if not fits or model_output.shape[0] != sample.shape[0]:
        raise ValueError(
            "`model_output` must hold logits (batch_size, L, V), or (batch_size, V, height, width), for the tokens in "
            f"`sample`, got {tuple(model_output.shape)} for {tuple(sample.shape)}. Check the model's output."
        )
    if not model_output.is_floating_point():
        raise ValueError(f"`model_output` must hold floating point logits, got {model_output.dtype}. Pass the logits.")
    return logits
