r"""How far a MaskGIT round is from a moment round, for marginals of any size: by one integral, and in closed form.

A round is one step of a sampler, and its law is the probability distribution of its outcome: the positions I that it
reveals, and their tokens. Both rounds are exponential races (`evaluation.laws`). Let `w_i = p_i(x_i)^(1/alpha)`, and
over `x_j ~ p_j` let `phi_j(t) = E[exp(-t w_j)]` and `m_j = E[w_j]`. The factors `p_i(x_i) w_i` occur in both laws and
cancel in their ratio, which is a quotient of two integrals:

    r(I, x_I) = int d/dt[ prod_I (1 - exp(-t w_i)) / w_i ] prod_rest phi_j(t) dt
              / int d/dt[ prod_I (1 - exp(-t m_i)) / m_i ] prod_rest exp(-t m_j) dt

The total variation is `E[max(0, 1 - r)]` over outcomes of the moment round: a mean of numbers in [0, 1] for any size of
the vocabulary. To first order in 1/N, with `M = sum_j m_j` and `lambda = sum_j Var[w_j] / M`,

    r = 1 - (k + 1) / (2 M) * sum_I (w_i - m_i - lambda),

where the mean of the sum is 0. Take k independent draws of (i, x) in proportion to `p_i(x) w_i(x)`, and let `v` be the
variance of `w_i - m_i - lambda`. Then the total variation is near `(k + 1) sqrt(k v / (8 pi)) / M`, which is
`C k^1.5 / N` if all positions share a marginal. docs/theory.md derives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import factorial, pi, sqrt

import numpy as np
from numpy.typing import ArrayLike

STEP = 0.1  # of the trapezoid rule in log t, which converges exponentially: halving it changes results by under 1e-12


@dataclass(frozen=True)
class RoundDistance:
    """Total variation between a MaskGIT and a moment round.

    Args:
        total_variation: estimated as a mean over outcomes drawn from the moment round.
        standard_error: the standard error of that mean.
        first_order: the value of the closed form for the same marginals.
    """

    total_variation: float
    standard_error: float
    first_order: float


class Rounds:
    """Both rounds on one set of marginals, at one choice temperature.

    Args:
        log_marginals: float64 `(N, V)`, the model's log-probabilities at the masked positions; -inf is allowed.
        choice_temperature: alpha of this round, positive.

    Raises:
        ValueError: the rows do not sum to 1, or the temperature is not positive.
    """

    def __init__(self, log_marginals: ArrayLike, choice_temperature: float) -> None:
        log_p = np.asarray(log_marginals, dtype=np.float64)
        if log_p.ndim != 2 or not np.allclose(np.exp(_log_sum(log_p)), 1, atol=1e-6):
            raise ValueError(
                f"`log_marginals` must be (N, V) log-probabilities, got shape {log_p.shape}. Take `log_softmax` in "
                "float64."
            )
        if not choice_temperature > 0:
            raise ValueError(f"`choice_temperature` must be positive, got {choice_temperature}. Pass for example 6.0.")
        self.log_p, self.log_w = log_p, log_p / choice_temperature
        self.log_m = _log_sum(log_p + self.log_w)
        self.log_tokens = log_p + self.log_w - self.log_m[:, None]

    def draw(self, k: int, num_draws: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Outcomes of the moment round: positions and their tokens, int64 `(num_draws, k)` each."""
        scores = self.log_m + generator.gumbel(size=(num_draws, len(self.log_m)))
        positions = np.argsort(-scores, axis=-1)[:, :k]
        cumulative = np.exp(self.log_tokens).cumsum(-1)
        uniform = generator.random((num_draws, k)) * cumulative[positions, -1]
        tokens = (cumulative[positions] <= uniform[..., None]).sum(-1)
        return positions, tokens.clip(max=self.log_p.shape[1] - 1)

    def log_ratio(self, positions: ArrayLike, tokens: ArrayLike) -> np.ndarray:
        """`log r`: the log-probability of outcomes under MaskGIT's round minus that under the moment sampler's.

        Args:
            positions: int64 `(num_outcomes, k)`, distinct within a row.
            tokens: the tokens at these positions, int64 `(num_outcomes, k)`.

        Returns:
            float64 `(num_outcomes,)`.
        """
        positions, tokens = np.asarray(positions, dtype=np.int64), np.asarray(tokens, dtype=np.int64)
        log_w = self.log_w[positions, tokens]
        # The k-th bell rings near t = k / M. The window covers the tails of the integrand on both sides: a power of t
        # on the left, a double exponential in log t on the right.
        lowest = min(log_w.min(), self.log_m.min())
        log_t = np.arange(-_log_sum(self.log_m) - 45.0 / positions.shape[1] - 5.0, 4.0 - lowest + STEP, STEP)
        survival = self._log_survival(log_t)
        maskgit = _log_race(log_w, survival.sum(0) - survival[positions].sum(1), log_t)
        rung = -np.exp(log_t + self.log_m[:, None])
        moment = _log_race(self.log_m[positions], rung.sum(0) - rung[positions].sum(1), log_t)
        return maskgit - moment

    def _log_survival(self, log_t: np.ndarray) -> np.ndarray:
        """`log phi_j(t)`, `(N, len(log_t))`."""
        p = np.exp(self.log_p)
        survival = np.empty((len(self.log_p), len(log_t)))
        for j, (row, weights) in enumerate(zip(self.log_w, p, strict=True)):
            survival[j] = np.log(np.maximum(np.exp(-np.exp(log_t[:, None] + row)) @ weights, 1e-300))
        return survival

    def first_order(self, k: int) -> float:
        """The closed form's leading term, `(k + 1) sqrt(k v / (8 pi)) / M`; a value above 1 is meaningless."""
        w, pairs = np.exp(self.log_w), np.exp(self.log_p + self.log_w)
        m = np.exp(self.log_m)
        total = m.sum()
        excess = (pairs * w).sum(-1) / m - m  # Var[w_j] / m_j
        deviation = w - m[:, None] - (m * excess).sum() / total
        variance = (pairs * deviation**2).sum() / total
        return float((k + 1) * sqrt(k * variance / (8 * pi)) / total)

    def distance(self, k: int, num_draws: int, generator: np.random.Generator) -> RoundDistance:
        """The distance of rounds that reveal `k` positions; 0 if these are all, since both samplers end alike.

        Raises:
            ValueError: `k` is above the number of masked positions.
        """
        if not 1 <= k <= len(self.log_m):
            raise ValueError(
                f"`k` must lie between 1 and the {len(self.log_m)} masked positions, got {k}. Pass such a count."
            )
        if k == len(self.log_m):
            return RoundDistance(0.0, 0.0, 0.0)
        lost = np.maximum(0.0, -np.expm1(self.log_ratio(*self.draw(k, num_draws, generator))))
        return RoundDistance(float(lost.mean()), float(lost.std(ddof=1) / sqrt(num_draws)), self.first_order(k))


def _log_sum(values: np.ndarray) -> np.ndarray:
    """`log sum exp` over the last axis."""
    peak = values.max(-1, keepdims=True)
    return peak[..., 0] + np.log(np.exp(values - peak).sum(-1))


def _log_race(log_rates: np.ndarray, log_survival: np.ndarray, log_t: np.ndarray) -> np.ndarray:
    """`log int d/dt[prod (1 - exp(-t w_i)) / w_i] exp(log_survival) dt`, for every outcome."""
    slope, value = np.zeros(log_survival.shape), log_survival.copy()
    for rank in range(log_rates.shape[1]):
        rate = log_rates[:, rank, None]
        rung = np.exp(log_t + rate)
        value += np.log(-np.expm1(-rung)) - rate
        slope += rung / np.expm1(rung.clip(max=700.0))  # d log(1 - exp(-t w)) / d log t
    with np.errstate(divide="ignore"):
        return _log_sum(value + np.log(slope))


def leading_constant(marginal: ArrayLike, choice_temperature: float, k: int | None = None) -> float:
    """C of `TV = C k^1.5 / N` for N positions that share a marginal.

    Args:
        marginal: float64 `(V,)`, with sum 1.
        choice_temperature: alpha of the round.
        k: number of positions the round reveals, for the constant at this k, `(k + 1) / (4 k^1.5) E|sum over k draws of
            (w - E w)| / m` with draws in proportion to `p w`; it is computed as a sum over all multisets of k tokens.
            None gives the limit of large k, `sqrt(Var[w]) / (m sqrt(8 pi))`.
    """
    p = np.asarray(marginal, dtype=np.float64)
    if p.ndim != 1 or not (p >= 0).all() or not np.isclose(p.sum(), 1, atol=1e-9):
        raise ValueError(f"`marginal` must be (V,) probabilities, got shape {p.shape}. Normalise it in float64.")
    p = p[p > 0]
    w = p ** (1 / choice_temperature)
    mean = (p * w).sum()
    tokens = p * w / mean
    deviation = (w - (tokens * w).sum()) / mean
    if k is None:
        return float(sqrt((tokens * deviation**2).sum() / (8 * pi)))
    counts, chances = _multisets(tokens, k)
    return float((k + 1) / (4 * k**1.5) * (chances * np.abs(counts @ deviation)).sum())


def symmetric_distance(marginal: ArrayLike, num_masked: int, k: int, choice_temperature: float) -> float:
    """Exact distance of rounds on N positions that share a marginal: a sum over the multisets of k tokens.

    Args:
        marginal: float64 `(V,)`, with sum 1.
        num_masked: N, the number of masked positions.
        k: number of positions the round reveals, below N.
        choice_temperature: alpha.
    """
    log_p = np.log(np.asarray(marginal, dtype=np.float64))
    rounds = Rounds(np.repeat(log_p[None], num_masked, 0), choice_temperature)
    counts, chances = _multisets(np.exp(rounds.log_tokens[0]), k)
    tokens = np.stack([np.repeat(np.arange(len(log_p)), row) for row in counts])
    ratios = np.exp(rounds.log_ratio(np.broadcast_to(np.arange(k), tokens.shape), tokens))
    return float(0.5 * (chances * np.abs(ratios - 1)).sum())


def _multisets(tokens: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All M multisets of k draws: how often each token occurs, int64 `(M, V)`, and their probabilities, `(M,)`."""
    draws = np.array(list(combinations_with_replacement(range(len(tokens)), k)))
    counts = (draws[..., None] == np.arange(len(tokens))).sum(1)
    ways = factorial(k) / np.prod(np.array([factorial(n) for n in range(k + 1)])[counts], -1)
    return counts, ways * np.prod(tokens**counts, -1)
