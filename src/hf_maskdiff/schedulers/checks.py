"""Checks that the schedulers share. Each raises a `ValueError` that states the rule, the value and a remedy."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ..integers import as_integer, is_integer, is_number

ChoiceTemperature = float | Sequence[float]
_NOT_THE_USER = {"hf_maskdiff", "torch", "diffusers", "contextlib"}


def require(valid: bool, name: str, rule: str, value: object, remedy: str) -> None:
    """Raise `ValueError` with rule, value and remedy unless `valid`."""
    if not valid:
        raise ValueError(f"`{name}` must be {rule}, got {value!r}. {remedy}")


def warn_user(message: str) -> None:
    """Warn at the user's line: that of the first caller that is neither in this package nor in those it is built on.

    How many callers lie between differs: torch wraps functions that take no gradients or are not to be compiled.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_THE_USER:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def require_steps(num_inference_steps: Any) -> int:
    """The number of steps as `int`; `ValueError` unless it is a positive integer."""
    remedy, rule = "Pass the number of model passes you want.", "an integer of at least 1"
    require(is_integer(num_inference_steps, at_least=1), "num_inference_steps", rule, num_inference_steps, remedy)
    return as_integer(num_inference_steps)


def check_choice_temperature(value: ChoiceTemperature | None) -> None:
    """Raise `ValueError` unless the choice temperature is None, a number or a pair of numbers, none negative."""
    if value is None:
        return
    values = list(value) if isinstance(value, Sequence) else [value, value]
    valid = len(values) == 2 and all(is_number(v) and 0 <= v < math.inf for v in values)
    require(valid, "choice_temperature", "a number of at least 0 or a pair (start, end) of such", value, "Try 6.0.")


def check_flags(kind: type, config: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless what is True or False by default is so here too: any word would count as True.

    A subclass may have arguments of its own that are no settings.
    """
    for name, parameter in signature(kind).parameters.items():
        if name in config and isinstance(parameter.default, bool):
            require(isinstance(config[name], bool), name, "True or False", config[name], "Pass one of these.")


def check_marginals(config: Any, typical_p: Any) -> None:
    """Raise `ValueError` unless the settings that say which tokens may be drawn, and at what temperature, can work.

    `typical_p` is apart, as not every scheduler has it.
    """
    meanings = {"codebook_size": "the number of real tokens", "top_k": "a number of tokens, or None for all"}
    for name, meaning in meanings.items():
        value = config[name]
        valid = value is None or is_integer(value, at_least=1)
        require(valid, name, "an integer of at least 1", value, f"Pass {meaning}.")
    valid = is_number(config.temperature) and 0 < config.temperature < math.inf
    require(valid, "temperature", "a number above 0", config.temperature, "For greedy tokens pass top_k=1.")
    for name, share in (("top_p", config.top_p), ("typical_p", typical_p)):
        valid = share is None or (is_number(share) and 0 < share <= 1)
        require(valid, name, "in (0, 1]", share, "Pass None to allow every token.")


def check_token_ids(name: str, value: Any) -> None:
    """Raise `ValueError` unless it is None or a list of token ids."""
    listed = isinstance(value, Iterable) and not isinstance(value, str)
    valid = value is None or (listed and all(is_integer(token, at_least=0) for token in value))
    require(valid, name, "token ids, in a list", value, "Pass for example `[tokenizer.eos_token_id]`.")


def check_token_prior(value: Any) -> None:
    """Raise `ValueError` unless it holds a frequency, in [0, 1], of each token."""
    valid, shown = False, value
    with suppress(TypeError, ValueError, RuntimeError):
        prior = torch.as_tensor(value, dtype=torch.float64)
        wrong = prior[~((prior >= 0) & (prior <= 1))]
        valid = prior.ndim == 1 and len(prior) > 0 and not len(wrong)
        shown = wrong[0].item() if len(wrong) else f"shape {tuple(prior.shape)}"  # there may be many that are right
    require(valid, "token_prior", "frequencies in [0, 1], one for each token", shown, "Pass counts / counts.sum().")


def require_drawn(tokens: Tensor, num_tokens: int, step_index: int) -> None:
    """Raise `ValueError` if a draw found no token; used on the CPU alone, where reading the result costs nothing."""
    if tokens.numel() and int(tokens.max()) >= num_tokens:
        raise ValueError(
            "`model_output` must allow a token at every position and hold no NaN or +inf, got such logits in step "
            f"{step_index} (counted from 0). Check the model's weights, dtype and `guidance_scale`."
        )


def require_tensor(name: str, value: object, what: str, remedy: str) -> None:
    """Raise `ValueError` for an array, a list or whatever else is not a tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(f"`{name}` must hold {what}, as a tensor, got {type(value).__name__}. {remedy}")


def flatten_logits(model_output: Tensor, sample: Tensor, logits_at: Tensor | None = None) -> Tensor:
    """View the logits, in any shape that `step` accepts, as `(batch_size, L, V)`; `ValueError` on a mismatch.

    With `logits_at`, see `step`, they are `(num_rows, n, V)`.
    """
    require_tensor("sample", sample, "int64 tokens (batch_size, L) or (batch_size, height, width)", "Pass token ids.")
    require_tensor("model_output", model_output, "logits (batch_size, L, V)", "Check the model's output.")
    if sample.ndim not in (2, 3) or sample.dtype != torch.int64:
        raise ValueError(
            f"`sample` must hold int64 tokens (batch_size, L) or (batch_size, height, width), got {sample.dtype} "
            f"{tuple(sample.shape)}. Pass token ids, e.g. `sample.long()`."
        )
    if logits_at is not None:
        require_tensor("logits_at", logits_at, "the place of each of the logits", "Pass None if there is one for each.")
        logits, fits = model_output, model_output.ndim == 3 and model_output.shape[:2] == logits_at.shape
        if not fits:
            raise ValueError(
                "`logits_at` must say where each of the logits belongs, as int64 `(num_rows, n)` for `model_output` "
                f"(num_rows, n, V), got {tuple(logits_at.shape)} for {tuple(model_output.shape)}. Leave it out if "
                "there are logits for every position."
            )
    elif model_output.ndim == 4:
        logits, fits = model_output.flatten(2).transpose(1, 2), model_output.shape[2:] == sample.shape[1:]
    else:
        logits, fits = model_output, model_output.ndim == 3 and model_output.shape[1] == math.prod(sample.shape[1:])
    if not fits or (logits_at is None and model_output.shape[0] != sample.shape[0]):
        raise ValueError(
            "`model_output` must hold logits (batch_size, L, V), or (batch_size, V, height, width), for the tokens in "
            f"`sample`, got {tuple(model_output.shape)} for {tuple(sample.shape)}. Check the model's output."
        )
    if not model_output.is_floating_point():
        raise ValueError(f"`model_output` must hold floating point logits, got {model_output.dtype}. Pass the logits.")
    return logits
