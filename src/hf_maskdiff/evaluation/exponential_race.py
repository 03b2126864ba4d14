"""Gumbel-top-k as a race: exact probabilities of which positions win, with which tokens.

Each position j has a bell that rings at rate `w_j`, and the k positions whose bells ring first win. Given the moment at
which the last winner's bell rings, all positions are independent. So one integral over that moment replaces the sum
over orders and over the tokens of the losers: see `hf_maskdiff.evaluation.laws`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

MASK = -1

State = tuple[int, ...]
Law = dict[State, float]
Subsets = Mapping[tuple[int, ...], float]


def race_probabilities(
    draws: ArrayLike, log_rates: ArrayLike, outcomes: ArrayLike, copies: ArrayLike | None = None
) -> np.ndarray:
    """The probabilities of given outcomes of a race, for races with too many outcomes to list them all.

    Every position draws a candidate token from its row of `draws`, and its bell rings at the rate of this candidate.
    The positions that ring first are revealed, as many of them as the outcome reveals.

    Args:
        draws: (N, V) distribution of each position's candidate.
        log_rates: (N, V) logarithm of the rate of each position with each candidate; -inf never rings.
        outcomes: (M, N) int, the tokens at revealed positions and `MASK` elsewhere; each row reveals at least one
            position.
        copies: (N,) how many identical positions a masked entry of an outcome represents; 1 by default.

    Returns:
        (M,) float64, with absolute error near 1e-15 for any range of rates.
    """
    draws, log_rates = np.asarray(draws, dtype=np.float64), np.asarray(log_rates, dtype=np.float64)
    outcomes = np.asarray(outcomes, dtype=np.int64)
    if draws.ndim != 2 or draws.shape != log_rates.shape or outcomes.ndim != 2 or outcomes.shape[1] != len(draws):
        raise ValueError(
            "`draws` and `log_rates` must be (N, V) and `outcomes` (M, N), got "
            f"{draws.shape}, {log_rates.shape} and {outcomes.shape}. Pass one row of rates per position."
        )
    if not (outcomes != MASK).any(axis=1).all():
        raise ValueError("Each row of `outcomes` must reveal a position, got one without. Leave it out.")
    exponents = np.ones(len(draws)) if copies is None else np.asarray(copies, dtype=np.float64)

    # As a function of u = log t the integrand is analytic in a strip and decays at both ends, so the trapezoid rule
    # converges exponentially in 1/step. Compute in logarithms: rates may differ by hundreds of orders of magnitude.
    step = 0.1
    finite = log_rates[np.isfinite(log_rates) & (draws > 0)]
    nodes = np.arange(np.log(1e-18) - finite.max(), np.log(40.0) - finite.min() + step, step)
    with np.errstate(over="ignore", under="ignore"):
        log_rung = nodes + log_rates[:, :, None]  # log(t w)
        silent = np.exp(-np.exp(log_rung))
        rung = -np.expm1(-np.exp(log_rung))
        density = np.exp(log_rung - np.exp(log_rung))  # d rung / du
    survival = (draws[:, None, :] @ silent) ** exponents[:, None, None]
    # Since `MASK` is -1, it selects the last entry along the token axis: the factor of a position that has not rung.
    factor = np.concatenate([rung, survival], axis=1)
    slope = np.concatenate([density, np.zeros_like(survival)], axis=1)

    result = np.empty(len(outcomes))
    block = max(1, 2**20 // len(nodes))
    for start in range(0, len(outcomes), block):
        part = outcomes[start : start + block]
        value, derivative = np.ones((len(part), len(nodes))), np.zeros((len(part), len(nodes)))
        weight = np.ones(len(part))
        for i in range(len(draws)):
            # The product rule over the revealed positions; a position that stays masked multiplies both terms.
            chosen = factor[i, part[:, i]]
            derivative = derivative * chosen + value * slope[i, part[:, i]]
            value = value * chosen
            weight = weight * np.append(draws[i], 1.0)[part[:, i]]
        result[start : start + block] = step * derivative.sum(axis=1) * weight
    return result


def race_subsets(log_rates: ArrayLike, k: int) -> Subsets:
    """Probabilities of the k positions that Gumbel-top-k keeps: draws without replacement in proportion to the rates.

    Args:
        log_rates: (N,) logarithms of the rates.
        k: number of positions kept.
    """
    log_rates = np.asarray(log_rates, dtype=np.float64)
    check_count(k, len(log_rates))
    subsets = list(combinations(range(len(log_rates)), k))
    if k == len(log_rates):
        return {subsets[0]: 1.0}
    outcomes = np.full((len(subsets), len(log_rates)), MASK)
    np.put_along_axis(outcomes, np.asarray(subsets), 0, axis=1)
    probabilities = race_probabilities(np.ones((len(log_rates), 1)), log_rates[:, None], outcomes)
    return dict(zip(subsets, probabilities.tolist(), strict=True))


def check_count(k: int, num_masked: int) -> None:
    """Raise `ValueError` unless `k` of the masked positions can be revealed."""
    if not 1 <= k <= num_masked:
        raise ValueError(f"`k` must lie between 1 and the {num_masked} masked positions, got {k}. Pass such a count.")
