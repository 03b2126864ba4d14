"""The exact law of steps of which several are drawn and the best is taken, for models small enough to enumerate.

If n outcomes are drawn from a law and the one of largest worth J is taken, of equals the first,

    P(a) = (F(J_a)^n - F(J_a-)^n) Q(a) / Q(J = J_a)

with Q the law of one draw, F(j) = Q(J <= j) and F(j-) = Q(J < j): the best is worth j if all are at most j and not all
are below, and among those of that worth the first is any of them as Q has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from .exponential_race import MASK, Law, State
from .laws import RoundLaw, accumulate, check_marginals

# Differences of worth below this are rounding.
_TIE = 1e-9


def best_of_law(law: Law, worth: Mapping[State, float], num_candidates: int) -> Law:
    """The law of the best of so many independent draws, of equals the first.

    Args:
        law: of one draw.
        worth: of each outcome; those that differ by less than 1e-9 are equal.
        num_candidates: at least 1.
    """
    best: Law = {}
    below = 0.0
    ordered = sorted((outcome for outcome in law if law[outcome] > 0), key=lambda outcome: worth[outcome])
    while ordered:
        lowest = worth[ordered[0]]
        equals = [outcome for outcome in ordered if worth[outcome] - lowest < _TIE]
        ordered = ordered[len(equals) :]
        mass = sum(law[outcome] for outcome in equals)
        taken = (below + mass) ** num_candidates - below**num_candidates
        best |= {outcome: taken * law[outcome] / mass for outcome in equals}
        below += mass
    return best


def entropies(marginals: ArrayLike) -> np.ndarray:
    """In nats, of each row."""
    marginals = check_marginals(marginals)
    return -(marginals * np.log(np.where(marginals > 0, marginals, 1.0))).sum(1)


def information_gain(
    denoiser: Callable[[State], ArrayLike], before: State, after: State, candidate_cost: float
) -> float:
    """`-(w sum of the entropies of what a step reveals) - (mean entropy of what it leaves)`, in nats.

    Args:
        denoiser: maps a state to marginals `(N, V)`.
        before, after: the states around the step, which leaves at least one mask.
        candidate_cost: w.
    """
    revealed = [i for i, token in enumerate(before) if token == MASK and after[i] != MASK]
    left = [i for i, token in enumerate(after) if token == MASK]
    cost = float(entropies(denoiser(before))[revealed].sum())
    return -candidate_cost * cost - float(entropies(denoiser(after))[left].mean())


def lookahead_run_law(
    denoiser: Callable[[State], ArrayLike],
    round_laws: Sequence[RoundLaw],
    counts: Sequence[int],
    start: State,
    num_candidates: int,
    candidate_cost: float = 1.0,
) -> Law:
    """As `hf_maskdiff.evaluation.laws.generation_law`, where each step is the best of several."""
    law: Law = {start: 1.0}
    for round_law, k in zip(round_laws, counts, strict=True):
        following: Law = {}
        for state, chance in law.items():
            accumulate(following, _step(denoiser, round_law, k, state, num_candidates, candidate_cost), chance)
        law = following
    return law


def _step(
    denoiser: Callable[[State], ArrayLike],
    round_law: RoundLaw,
    k: int,
    state: State,
    num_candidates: int,
    candidate_cost: float,
) -> Law:
    masked = tuple(i for i, token in enumerate(state) if token == MASK)
    marginals = np.asarray(denoiser(state), dtype=np.float64)[list(masked)]
    step: Law = {}
    for outcome, probability in round_law(marginals, k, masked).items():
        tokens = list(state)
        for position, token in zip(masked, outcome, strict=True):
            tokens[position] = token
        step[tuple(tokens)] = probability
    if k == len(masked):
        return step
    worth = {after: information_gain(denoiser, state, after, candidate_cost) for after in step}
    return best_of_law(step, worth, num_candidates)
