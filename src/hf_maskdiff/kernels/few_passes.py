"""The measures of `hf_maskdiff.orders`, for rows that must not be overwritten, in as few passes as torch has functions.

A block of logits on a GPU does not fit into a cache, so that each function that reads or writes it costs a pass over
memory. Those of `hf_maskdiff.orders` begin with a copy and work in place, which is best on a CPU. The results are the
same but for rounding. Pure functions; `rows` are unnormalised log-probabilities `(rows, V)` in any float dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..orders import log_confidence, log_margin, log_moment, negative_entropy


def softmax_of(rows: Tensor) -> Tensor:
    """The probabilities, float32, in new memory."""
    wide = rows.float()
    return torch.softmax(wide, -1, out=torch.empty_like(wide) if wide is rows else wide)


def log_softmax_of(rows: Tensor) -> Tensor:
    """Their logarithms, float32, in new memory."""
    wide = rows.float()
    return torch.log_softmax(wide, -1, out=torch.empty_like(wide) if wide is rows else wide)


def _confidence(rows: Tensor) -> Tensor:
    return log_softmax_of(rows).amax(-1)


def _margin(rows: Tensor) -> Tensor:
    log_probs = log_softmax_of(rows)
    first, at = log_probs.max(-1)
    second = log_probs.scatter_(1, at[:, None], -torch.inf).amax(-1)  # the same again if two tokens are the likeliest
    return torch.log1p(second.sub_(first).exp_().neg_()).add_(first)


def _entropy(rows: Tensor) -> Tensor:
    probs = softmax_of(rows)
    return torch.special.entr(probs, out=probs).sum(-1).neg_()


def _moment(rows: Tensor, beta: float) -> Tensor:
    # With e = exp(z - max z), the norm is (sum e^beta)^(1 / beta), and no sum is below 1.
    largest = rows.amax(-1, keepdim=True).float()
    masses = torch.sub(rows, largest).exp_()
    return torch.linalg.vector_norm(masses, beta, dim=-1).log_().sub_(masses.sum(-1).log_())


_TWINS: dict[Callable[..., Tensor], Callable[[Tensor], Tensor]] = {
    log_confidence: _confidence,
    log_margin: _margin,
    negative_entropy: _entropy,
}


def twin_of(function: Callable[..., Tensor]) -> Callable[[Tensor], Tensor] | None:
    """What computes the same as a measure of `hf_maskdiff.orders`, and only reads its rows; None if there is none."""
    if isinstance(function, partial) and function.func is log_moment and set(function.keywords) == {"beta"}:
        return None if function.args else partial(_moment, beta=function.keywords["beta"])
    return _TWINS.get(function)
