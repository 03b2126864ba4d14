"""Marginals extrapolated from two passes: the mathematics of the samplers of second order."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sampling import Marginals, draw_index, float64_device, tempered_


def weight_of_times(before: float, middle: float, after: float) -> float:
    """The weight w of an interval's second pass, from the mask ratios at its start, middle and end.

    `w = 1 / (2 theta (1 - theta))`, theta being the share of the interval's reveals that its first pass makes. In the
    terms of arXiv 2502.00234, w is `a_1` and w - 1 is `a_2`.

    Example:
        >>> weight_of_times(1.0, 0.75, 0.5)
        2.0
    """
    return (before - after) ** 2 / (2 * (before - middle) * (middle - after))


def weight_of_counts(first: Tensor, second: Tensor) -> Tensor:
    """The weight of an interval whose passes reveal so many positions, `n (n - 1) / (2 first second)`; float64.

    Two positions are revealed by different passes in `2 first second / (n (n - 1))` of all cases; only then can one
    depend on the other. The weight makes up for the rest. It is 1 where each pass reveals one position, and where one
    of them reveals none; else it may lie below 1 in no case.

    Args:
        first, second: counts of the two passes, int64 of any one shape.

    Example:
        >>> weight_of_counts(torch.tensor([1, 2, 50]), torch.tensor([1, 2, 50]))
        tensor([1.0000, 1.5000, 1.9800], dtype=torch.float64)
    """
    pairs, count = (first * second).double(), (first + second).double()
    return torch.where(pairs > 0, count * (count - 1) / (2 * pairs.clamp(min=1)), 1.0)


def extrapolate_(now: Tensor, before: Tensor, weight: Tensor) -> Tensor:
    """`max(0, w p_now - (w - 1) p_before)`, not normalised; overwrites `before`, float32 `(M, V)`.

    Args:
        weight: `(M, 1)`.
    """
    return before.lerp_(now, weight).clamp_(min=0)


def draw_extrapolated(
    now: Marginals, rows: Tensor, before: Marginals, rows_before: Tensor, weight: Tensor, uniform: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw a token for each row from its extrapolated marginal.

    Args:
        now: the marginals of this pass.
        rows: flat positions in it, int64 `(M,)`.
        before: those of the interval's first pass.
        rows_before: where each row is found in it, int64 `(M,)`; -1 for rows that are drawn from `now` alone.
        weight: w of each row, `(M,)`.
        uniform: noise, float64 `(M,)` in (0, 1).
        beta: inverse temperature of both marginals, `(M,)`.

    Returns:
        Tokens, int64 `(M,)`, `num_tokens` where none can be drawn, and the mass of the extrapolated marginal before it
        is normalised, float64 `(M,)`: 1 where nothing is cut off at 0, at most w.
    """
    device = float64_device(now.logits.device)
    weight = torch.where(rows_before.to(weight.device) < 0, 1.0, weight)
    weight, beta = (value.to(now.logits.device, torch.float32)[:, None] for value in (weight, beta))

    def draw_block(
        block: Tensor, index: Tensor, weight: Tensor, beta: Tensor, uniform: Tensor
    ) -> tuple[Tensor, Tensor]:
        (old,) = before.reduce(lambda rows: (tempered_(rows, beta),), index)
        rates = extrapolate_(tempered_(block, beta), old, weight).to(device)
        return draw_index(rates, uniform), rates.sum(-1, dtype=torch.float64)

    tokens, mass = now.reduce(draw_block, rows, rows_before.clamp(min=0), weight, beta, uniform)
    return tokens, mass
