"""Chi-square tests of a sampler against its exact law, with the power to fail.

A test that accepts says nothing unless it would have rejected a defect. So every test here states its false-alarm rate
and, from the exact law of a defective sampler (a mutant), the number of rounds after which it rejects that mutant with
a given power: Pearson's statistic of n rounds of a mutant q against a law p is noncentral chi-square with
noncentrality `n sum_s (q_s - p_s)^2 / p_s`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2, ncx2

from hf_maskdiff.evaluation.laws import Law, State

FALSE_ALARM = 1e-6
POWER = 0.999
MIN_EXPECTED = 10.0


@dataclass(frozen=True)
class ChiSquare:
    """Outcome of a goodness-of-fit test; `p_value` is 0 when something happened that the law forbids."""

    statistic: float
    degrees_of_freedom: int
    p_value: float
    rounds: int


def count_outcomes(samples: np.ndarray, mask_token_id: int) -> dict[State, int]:
    """Count equal rows of `samples` (rounds, N); the mask becomes -1, as in `hf_maskdiff.evaluation.laws`."""
    samples = np.where(samples == mask_token_id, -1, samples)
    low, base = samples.min(), int(samples.max() - samples.min()) + 1
    powers = base ** np.arange(samples.shape[1], dtype=np.int64)
    _, first, counts = np.unique((samples - low) @ powers, return_index=True, return_counts=True)
    return {tuple(samples[i].tolist()): int(n) for i, n in zip(first, counts, strict=True)}


def pooled_cells(law: Law, rounds: int) -> list[list[State]]:
    """Cells of at least `MIN_EXPECTED` expected rounds: the outcomes of the law, rare ones pooled into one cell."""
    outcomes = sorted((s for s in law if law[s] > 0), key=lambda s: law[s])
    rare: list[State] = []
    while outcomes and (
        law[outcomes[0]] * rounds < MIN_EXPECTED or 0 < sum(map(law.get, rare)) * rounds < MIN_EXPECTED
    ):
        rare.append(outcomes.pop(0))
    return [[s] for s in outcomes] + ([rare] if rare else [])


def _masses(cells: list[list[State]], values: Mapping[State, float]) -> np.ndarray:
    return np.array([sum(values.get(s, 0) for s in cell) for cell in cells], dtype=np.float64)


def goodness_of_fit(counts: Mapping[State, int], law: Law) -> ChiSquare:
    """Pearson's test of observed counts against a law."""
    rounds = sum(counts.values())
    cells = pooled_cells(law, rounds)
    expected, observed = _masses(cells, law) * rounds, _masses(cells, counts)
    statistic = float(((observed - expected) ** 2 / expected).sum())
    freedom = len(cells) - 1
    forbidden = observed.sum() < rounds
    # One cell is a sure outcome: nothing is left to test but that nothing else happens.
    p_value = 0.0 if forbidden else float(chi2.sf(statistic, freedom)) if freedom else 1.0
    return ChiSquare(statistic, freedom, p_value, rounds)


def noncentrality(law: Law, mutant: Law, rounds: int) -> float:
    """Noncentrality of the statistic when the rounds come from `mutant`; infinite where that leaves the support."""
    if sum(p for s, p in mutant.items() if law.get(s, 0) == 0) * rounds > MIN_EXPECTED:
        return np.inf
    cells = pooled_cells(law, rounds)
    p, q = _masses(cells, law), _masses(cells, mutant)
    return float(rounds * ((q - p) ** 2 / p).sum())


def power(law: Law, mutant: Law, rounds: int, false_alarm: float = FALSE_ALARM) -> float:
    """Probability that `rounds` rounds of `mutant` are rejected."""
    distance = noncentrality(law, mutant, rounds)
    freedom = len(pooled_cells(law, rounds)) - 1
    if np.isinf(distance) or freedom == 0:
        return float(np.isinf(distance))
    return float(ncx2.sf(chi2.isf(false_alarm, freedom), freedom, distance))


def rounds_for_power(
    law: Law, mutant: Law, wanted: float = POWER, false_alarm: float = FALSE_ALARM, most: int = 10**9
) -> int:
    """The fewest rounds, to a percent, that reject `mutant` with the `wanted` power; `ValueError` above `most`."""
    high = 100
    while power(law, mutant, high, false_alarm) < wanted:
        high *= 2
        if high > most:
            raise ValueError(
                f"The mutant must differ from the law, got no power {wanted} in {most} rounds. Sharpen it."
            )
    low = high // 2
    while high > 1.01 * low + 1:
        middle = (low + high) // 2
        if power(law, mutant, middle, false_alarm) < wanted:
            low = middle
        else:
            high = middle
    return high


def draw(law: Law, rounds: int, rng: np.random.Generator) -> dict[State, int]:
    """Counts of `rounds` outcomes drawn from the law itself."""
    outcomes, chances = list(law), np.array(list(law.values()))
    counts = rng.multinomial(rounds, chances / chances.sum())
    return {s: int(n) for s, n in zip(outcomes, counts, strict=True) if n}
