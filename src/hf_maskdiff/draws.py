"""Exact draws from rows of masses, by inverting their cumulative distribution. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

# Up to this many tokens, a cumulative sum over all of them is faster than the chunked one, which needs more operations.
_ONE_PASS = 1024
# The exponential of this or less is 0 in float32.
_NO_MASS = -104.0
# From this inverse temperature on it is worth looking whether only the most probable tokens have any mass.
_SHARP = 1e6


def float64_device(device: torch.device) -> torch.device:
    """`device` if it supports float64, else the CPU (Apple's MPS has no float64)."""
    return torch.device("cpu") if device.type == "mps" else device


def tempered_(block: Tensor, beta: Tensor) -> Tensor:
    """The normalised p^beta of a block of unnormalised log-probabilities, float32 `(M, V)`, which it overwrites.

    Args:
        beta: `(M, 1)`.
    """
    return torch.softmax(_exponents_(block, beta), -1, out=block)


def is_sharp(beta: Tensor) -> bool:
    """Whether it is worth looking if only the most probable tokens have any mass: on a CPU, at these temperatures."""
    return beta.device.type == "cpu" and len(beta) > 0 and float(beta.min()) >= _SHARP


def only_tokens_(block: Tensor, beta: Tensor) -> Tensor:
    """The one token of each row that has any mass in `tempered_`, int64 `(M,)`: what is drawn, whatever the noise.

    All are -1 where tokens tie in a row, or none can be drawn. The block is overwritten. Looking makes the host wait
    for an accelerator.
    """
    rows, tokens = (_exponents_(block, beta) > _NO_MASS).nonzero(as_tuple=True)
    return tokens if rows.tolist() == list(range(len(block))) else rows.new_full((len(block),), -1)


def _exponents_(block: Tensor, beta: Tensor) -> Tensor:
    # Shift before multiplying: for logits near the largest one the difference is exact.
    return block.sub_(block.amax(-1, keepdim=True)).mul_(beta)


def draw_index(probs: Tensor, uniform: Tensor) -> Tensor:
    """Exact categorical draws, by whichever of the two functions below is faster; the arguments are theirs."""
    # Chosen by V alone: how a row is drawn must not depend on the number of rows.
    return inverse_cdf(probs, uniform) if probs.shape[-1] <= _ONE_PASS else chunked_inverse_cdf(probs, uniform)


def inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """Exact categorical draws: the first token at which the cumulative mass exceeds `uniform * total`.

    Cumulative sums are float64, so that even a long tail of improbable tokens keeps its mass. (With Gumbel-max draws
    from float32 uniform noise it would lose mass: arXiv 2409.02908.)

    Args:
        probs: masses, float32 `(M, V)`.
        uniform: noise, float64 `(M,)` in (0, 1).

    Returns:
        Tokens, int64 `(M,)`; V if no token can be drawn, because the row holds NaN or no mass.
    """
    return _first_above(probs, uniform)[0].squeeze(1)


def chunked_inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """`inverse_cdf` for large `M * V`: needs twice as many operations, but no float64 tensor `(M, V)`.

    The masses are summed in chunks. The cumulative sum over the chunks, and that inside the chosen chunk, are float64.
    """
    num_tokens = probs.shape[1]
    width = 1 << max(3, (num_tokens - 1).bit_length() // 2)
    missing = -num_tokens % width
    chunks = (torch.nn.functional.pad(probs, (0, missing)) if missing else probs).unflatten(1, (-1, width))
    chunk, level, cumulative = _first_above(chunks.sum(-1), uniform)
    none = chunk == chunks.shape[1]
    chunk.masked_fill_(none, 0)
    # Inside the chunk, level and masses are measured back from the chunk's end, which is 0. The level is strictly below
    # 0, so rounding cannot make it reach a column of mass 0 at the end; the maximum prevents the same at the start.
    level_inside = level - cumulative.gather(1, chunk)
    inside = chunks[torch.arange(len(probs), device=probs.device), chunk[:, 0]].cumsum(-1, dtype=torch.float64)
    mass = inside[:, -1:]
    token = torch.searchsorted(inside - mass, level_inside.maximum(-mass), right=True)
    return token.add_(chunk, alpha=width).masked_fill_(none, num_tokens).squeeze(1)


def _first_above(mass: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First column whose cumulative mass exceeds the level `uniform * total`, the level, and the cumulative masses.

    The column is V if there is no such column, because the row holds NaN or no mass.
    """
    cumulative = mass.cumsum(-1, dtype=torch.float64)
    # The noise is below 1, so the level is strictly below the total, and a last column of mass 0 is never reached.
    level = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, level, right=True), level, cumulative
