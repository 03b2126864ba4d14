r"""How far a MaskGIT round is from a moment round, for marginals of any size: by one integral, and in closed form.

Both rounds are exponential races (`evaluation.laws`). With `w_i = p_i(x_i)^(1/alpha)`, `phi_j(t) = E[exp(-t w_j)]`
over `x_j ~ p_j` and `m_j = E[w_j]`, the factors `p_i(x_i) w_i` stand on both sides, and the ratio of the two laws of an
outcome (the positions I and their tokens) is one of two integrals without them:

    r(I, x_I) = int d/dt[ prod_I (1 - exp(-t w_i)) / w_i ] prod_rest phi_j(t) dt
              / int d/dt[ prod_I (1 - exp(-t m_i)) / m_i ] prod_rest exp(-t m_j) dt

The total variation is `E[max(0, 1 - r)]` over outcomes of the moment round: a mean of numbers in [0, 1], however large
the vocabulary. To first order in 1/N, with `M = sum_j m_j` and `lambda = sum_j Var[w_j] / M`,

    r = 1 - (k + 1) / (2 M) * sum_I (w_i - m_i - lambda),

whose mean is 0. For k independent draws of (i, x) in proportion to `p_i(x) w_i(x)`, with variance `v` of
`w_i - m_i - lambda`, the total variation is near `(k + 1) sqrt(k v / (8 pi)) / M`, so `C k^1.5 / N` where all positions
share a marginal. docs/theory.md derives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import factorial, pi, sqrt

import numpy as np
from numpy.typing import ArrayLike

STEP = 0.1  # of the trapezoid rule in log t, which converges exponentially: halving it changes nothing above 1e-12


@dataclass(frozen=True)
class RoundDistance:
    """Total variation between a MaskGIT and a moment round.

    Args:
        total_variation: the mean over outcomes drawn from the moment round.
        standard_error: of that mean.
        first_order: what the closed form gives, for the same marginals.
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
        ValueError: rows that do not add up to 1, or a temperature that is not positive.
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
            positions: int64 `(num_outcomes, k)`, distinct in a row.
            tokens: int64 `(num_outcomes, k)`, at these positions.

        Returns:
            float64 `(num_outcomes,)`.
        """
        positions, tokens = np.asarray(positions, dtype=np.int64), np.asarray(tokens, dtype=np.int64)
        log_w = self.log_w[positions, tokens]
        # The k-th bell rings near k / M; the window holds the double exponential's and the power's tails on both sides.
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
        """The closed form's leading term, `(k + 1) sqrt(k v / (8 pi)) / M`; above 1 it says nothing."""
        w, pairs = np.exp(self.log_w), np.exp(self.log_p + self.log_w)
        m = np.exp(self.log_m)
        total = m.sum()
        excess = (pairs * w).sum(-1) / m - m  # Var[w_j] / m_j
        deviation = w - m[:, None] - (m * excess).sum() / total
        variance = (pairs * deviation**2).sum() / total
        return float((k + 1) * sqrt(k * variance / (8 * pi)) / total)

    def distance(self, k: int, num_draws: int, generator: np.random.Generator) -> RoundDistance:
        """The distance of rounds that reveal `k`; 0 where that is all, since both draw the last round plainly.

        Raises:
            ValueError: `k` beyond the number of masked positions.
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
        marginal: float64 `(V,)`, adding up to 1.
        choice_temperature: alpha of the round.
        k: positions the round reveals, for the constant of that k: `(k + 1) / (4 k^1.5) E|sum over k draws of
            (w - E w)| / m`, draws in proportion to `p w`; the sum has as many terms as there are multisets of k tokens.
            None is the limit of large k, `sqrt(Var[w]) / (m sqrt(8 pi))`.
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
        marginal: float64 `(V,)`, adding up to 1.
        num_masked: N.
        k: positions the round reveals, fewer than N.
        choice_temperature: alpha.
    """
    log_p = np.log(np.asarray(marginal, dtype=np.float64))
    rounds = Rounds(np.repeat(log_p[None], num_masked, 0), choice_temperature)
    counts, chances = _multisets(np.exp(rounds.log_tokens[0]), k)
    tokens = np.stack([np.repeat(np.arange(len(log_p)), row) for row in counts])
    ratios = np.exp(rounds.log_ratio(np.broadcast_to(np.arange(k), tokens.shape), tokens))
    return float(0.5 * (chances * np.abs(ratios - 1)).sum())


def _multisets(tokens: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each token comes in k draws, int64 `(M, V)`, for every way, and the probability of each, `(M,)`."""
    draws = np.array(list(combinations_with_replacement(range(len(tokens)), k)))
    counts = (draws[..., None] == np.arange(len(tokens))).sum(1)
    ways = factorial(k) / np.prod(np.array([factorial(n) for n in range(k + 1)])[counts], -1)
    return counts, ways * np.prod(tokens**counts, -1)
