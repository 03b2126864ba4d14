"""The exact laws of samplers that take two passes to an interval of time, by enumeration.

A *table* holds a number for every partly masked sequence of N positions and V tokens, float64 `(V + 1,) * N`, where the
index V stands for the mask; the law of a sequence is such a table. The model is the table of its conditionals,
`(V + 1,) * N + (N, V)`. Both are small: five positions of two tokens are 243 sequences.

An interval goes from mask ratio `before` over `middle` to `after`. Its first pass takes x to x*, its second x* to the
end of the interval, with tokens from the *extrapolated* marginal

    q = max(0, w p(x*) - (w - 1) p(x)),

which is p(x*) at w = 1. Source of the two methods: arXiv 2502.00234; of their form in log-time, and of that with
counts: `docs/theory.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import pairwise, product

import numpy as np

from .exponential_race import MASK, Law, State, Subsets
from .laws import uniform_subsets

Interval = tuple[float, float, float]  # mask ratios: before, middle, after


def conditionals_of(joint: np.ndarray) -> np.ndarray:
    """The model of a joint law `(V,) * N`: `p(x_i | what is known)` of every partly masked sequence.

    Returns:
        `(V + 1,) * N + (N, V)`; known positions have rows of 0.
    """
    num_positions, num_tokens = joint.ndim, joint.shape[0]
    table = np.zeros((num_tokens + 1,) * num_positions + (num_positions, num_tokens))
    for state in np.ndindex(*table.shape[:num_positions]):
        known = joint[tuple(slice(None) if token == num_tokens else slice(token, token + 1) for token in state)]
        for i in (i for i, token in enumerate(state) if token == num_tokens):
            marginal = known.sum(tuple(j for j in range(num_positions) if j != i))
            table[(*state, i)] = marginal / marginal.sum()
    return table


def all_masked(conditionals: np.ndarray) -> np.ndarray:
    """The table of a run's start: all positions are masked."""
    table = np.zeros(conditionals.shape[:-2])
    table[(-1,) * table.ndim] = 1.0
    return table


def intervals_of(left: Sequence[float], theta: float = 0.5) -> list[Interval]:
    """The intervals of a run of T passes, two passes each; an odd T ends with a pass of its own, of middle = after = 0.

    Args:
        left: mask ratios before the first pass and after each, T + 1 numbers from 1 down to 0.
        theta: the share of an interval's reveals that its first pass is to make.
    """
    alone = len(left) % 2 == 0
    ends = [*left[:-1:2], 0.0] if alone else left[::2]
    found = [(before, before - theta * (before - after), after) for before, after in pairwise(ends)]
    return [*found[:-1], (found[-1][0], 0.0, 0.0)] if alone else found


def weight_of(interval: Interval) -> float:
    """w of an interval's second pass: `1 / (2 theta (1 - theta))`, theta being the first pass's share of it."""
    before, middle, after = interval
    return (before - after) ** 2 / (2 * (before - middle) * (middle - after))


def counted_weight(first: int, second: int) -> float:
    """w where the two passes of an interval reveal `first` and `second` positions: 1 if these are 1 and 1."""
    count = first + second
    return count * (count - 1) / (2 * first * second)


def extrapolated(now: np.ndarray, before: np.ndarray, weight: float) -> np.ndarray:
    """`max(0, w p_now - (w - 1) p_before)`, not normalised."""
    return np.maximum(0.0, weight * now - (weight - 1) * before)


# Counts at random ---------------------------------------------------------------------------------------------------


def ancestral_law(conditionals: np.ndarray, left: Sequence[float], start: np.ndarray | None = None) -> np.ndarray:
    """Every masked position is revealed with probability `1 - after / before`; arguments as in `intervals_of`."""
    law = all_masked(conditionals) if start is None else start
    for before, after in pairwise(left):
        following = np.zeros_like(law)
        for state, chance in _possible(law):
            following += chance * _revealed(state, conditionals[state], 1 - after / before)
        law = following
    return law


def trapezoidal_law(
    conditionals: np.ndarray,
    intervals: Sequence[Interval],
    weight: Callable[[Interval], float] = weight_of,
    log_time: bool = True,
    plain_end: bool = False,
) -> np.ndarray:
    """The theta-trapezoidal method: the second pass goes on from x*, at the rate of the extrapolated marginal.

    Args:
        intervals: see `intervals_of`.
        weight: of an interval whose second pass does not reveal what is left; `weight_of` there too.
        log_time: integrate the rate of the reverse process exactly over the time of a pass. False multiplies it by the
            time, as it is at the start of the pass, for mask ratios that are times; then the last pass is plain.
        plain_end: draw the last pass, which reveals what is left, from p(x*).
    """
    law = all_masked(conditionals)
    for interval in intervals:
        before, middle, after = interval
        if middle == 0:
            law = ancestral_law(conditionals, (before, 0.0), law)
            continue
        first_mass, second_mass = _masses(interval, log_time)
        w = 1.0 if after == 0 and (plain_end or not log_time) else weight(interval)
        slower = 1.0 if log_time else middle / before  # the rate at the first time, where that at the second is 1
        following = np.zeros_like(law)
        for state, chance in _possible(law):
            stars = _revealed(state, conditionals[state], -np.expm1(-first_mass))
            for star, share in _possible(stars):
                rates = np.maximum(0.0, w * conditionals[star] - (w - 1) * slower * conditionals[state])
                ends = _revealed(star, _normalised(rates), _chances(second_mass, rates))
                following += chance * share * ends
        law = following
    return law


def runge_kutta_law(conditionals: np.ndarray, intervals: Sequence[Interval]) -> np.ndarray:
    """theta-RK-2: the second pass starts from x again, for the whole interval.

    Its rate is `max(0, (1 - 1 / (2 theta)) p(x) + p(x*) / (2 theta))`; where x* has a token, p(x*) is not defined, and
    p(x) stands for it.
    """
    law = all_masked(conditionals)
    for before, middle, after in intervals:
        if middle == 0:
            law = ancestral_law(conditionals, (before, 0.0), law)
            continue
        share, mass = 0.5 * (before - after) / (before - middle), _log(before) - _log(after)
        following = np.zeros_like(law)
        for state, chance in _possible(law):
            stars = _revealed(state, conditionals[state], 1 - middle / before)
            for star, probability in _possible(stars):
                masked = np.array(star) == law.shape[0] - 1
                now = np.where(masked[:, None], conditionals[star], conditionals[state])
                rates = extrapolated(now, conditionals[state], share)
                ends = _revealed(state, _normalised(rates), _chances(mass, rates))
                following += chance * probability * ends
        law = following
    return law


def _masses(interval: Interval, log_time: bool) -> tuple[float, float]:
    """What the rate of a position integrates to in each pass."""
    before, middle, after = interval
    if log_time:
        return _log(before) - _log(middle), _log(middle) - _log(after)
    return (before - middle) / before, (middle - after) / middle if after else np.inf


# Counts that are planned --------------------------------------------------------------------------------------------


def counted_law(
    conditionals: np.ndarray,
    counts: Sequence[int],
    weight: Callable[[int, int], float] = counted_weight,
    subsets: Callable[[tuple[int, ...], int], Subsets] | None = None,
) -> np.ndarray:
    """Every pass reveals as many positions as planned; each second pass draws them from the extrapolated marginal.

    Args:
        counts: of each pass.
        weight: of the counts of an interval's two passes; `lambda first, second: 1.0` is the plain sampler.
        subsets: which of the masked positions a pass reveals, and how many; all sets are equally likely by default.
    """
    law, mask = all_masked(conditionals), conditionals.shape[-1]

    def outcomes(state: State, probs: np.ndarray, count: int) -> Iterator[tuple[State, float]]:
        masked = tuple(i for i, token in enumerate(state) if token == mask)
        if subsets is None:
            chosen = {
                tuple(masked[j] for j in sub): share for sub, share in uniform_subsets(len(masked), count).items()
            }
        else:
            chosen = dict(subsets(masked, count))
        for positions, chance in chosen.items():
            for tokens in product(range(mask), repeat=count):
                after, probability = list(state), chance
                for i, token in zip(positions, tokens, strict=True):
                    after[i] = token
                    probability *= probs[i, token]
                if probability:
                    yield tuple(after), probability

    for first, second in zip(counts[::2], [*counts[1::2], 0], strict=False):
        following = np.zeros_like(law)
        for state, chance in _possible(law):
            for star, share in outcomes(state, conditionals[state], first):
                if not second:
                    following[star] += chance * share
                    continue
                probs = _normalised(extrapolated(conditionals[star], conditionals[state], weight(first, second)))
                for after, probability in outcomes(star, probs, second):
                    following[after] += chance * share * probability
        law = following
    return law


# Tables -------------------------------------------------------------------------------------------------------------


def kl_divergence(joint: np.ndarray, law: np.ndarray) -> float:
    """`KL(joint || law)` in nats; infinite if the law leaves out what the joint has."""
    found = law[(slice(0, -1),) * law.ndim]
    with np.errstate(divide="ignore"):
        return float((joint * np.where(joint > 0, np.log(joint / found), 0.0)).sum())


def as_law(table: np.ndarray) -> Law:
    """The table as a `Law`, with `MASK` for the mask."""
    mask = table.shape[0] - 1
    return {tuple(MASK if token == mask else token for token in s): chance for s, chance in _possible(table)}


def _possible(table: np.ndarray) -> Iterator[tuple[State, float]]:
    for place in np.argwhere(table > 0):
        yield tuple(place.tolist()), float(table[tuple(place)])


def _revealed(state: State, probs: np.ndarray, chance: float | np.ndarray) -> np.ndarray:
    """The table after every masked position was revealed, or not, by itself.

    Args:
        probs: `(N, V)`, of the tokens.
        chance: that a position is revealed, one for all or `(N,)`.
    """
    num_positions, mask = probs.shape
    rows = np.zeros((num_positions, mask + 1))
    for i, (token, share) in enumerate(zip(state, np.broadcast_to(chance, num_positions), strict=True)):
        if token == mask:
            rows[i, :mask], rows[i, mask] = share * probs[i], 1 - share
        else:
            rows[i, token] = 1.0
    return reduce(np.multiply.outer, rows)


def _normalised(rates: np.ndarray) -> np.ndarray:
    total = rates.sum(-1, keepdims=True)
    return np.divide(rates, total, out=np.zeros_like(rates), where=total > 0)


def _chances(mass: float, rates: np.ndarray) -> np.ndarray:
    """That a position jumps: `(N,)`, 0 where it has no rate, also over an endless time."""
    total = rates.sum(-1)
    return np.where(total > 0, -np.expm1(-mass * np.maximum(total, 1e-300)), 0.0)


def _log(ratio: float) -> float:
    return float(np.log(ratio)) if ratio > 0 else -np.inf
