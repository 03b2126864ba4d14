"""The exact laws of one sampling round, and of a whole generation, for models small enough to enumerate.

A round is one step of a sampler; it reveals `k` of `N` masked positions. Its outcome is a partly masked sequence: a
tuple of length `N` with tokens at the revealed positions and `MASK` elsewhere. A `Law` is the distribution of the
outcomes: it maps each to its probability. So a sampler's implementation can be compared with its definition, and one
sampler with another, without sampling error.

This works because of Gumbel-top-k: adding Gumbel noise to log-rates and keeping the k largest is an exponential race.
Each position j has a bell that rings at rate `w_j`, and the k positions whose bells ring first win. Given the moment t
at which the last winner's bell rings, all positions are independent, so one integral over t replaces the sum over
orders and over the tokens of the losers. With `beta = 1 + 1/alpha`,
`phi_j(t) = sum_x p_j(x) exp(-t p_j(x)^(1/alpha))` and `m_j = sum_x p_j(x)^beta`:

    P_maskgit(I, x_I) = prod_{i in I} p_i(x_i)
                        * int_0^inf d/dt[ prod_{i in I} (1 - exp(-t p_i(x_i)^(1/alpha))) ] prod_{j not in I} phi_j(t) dt

    P_moment(I, x_I)  = prod_{i in I} p_i(x_i)^beta / m_i
                        * int_0^inf d/dt[ prod_{i in I} (1 - exp(-t m_i)) ] prod_{j not in I} exp(-t m_j) dt

The samplers are those of Hayakawa, Takida, Imaizumi, Wakaki, Mitsufuji, "Demystifying MaskGIT Sampler and Beyond:
Adaptive Order Selection in Masked Diffusion", arXiv 2510.04525. In all laws, the step that reveals a row's last masks
(`k == N`) draws its tokens from the plain marginals.

Arguments common to all laws: `marginals`, float64 of shape (N, V), the model's distribution at each masked position;
`k`, how many of them the round reveals; `choice_temperature`, the `alpha` of this round (not of the schedule).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, product
from math import comb

import numpy as np
from numpy.typing import ArrayLike

from .exponential_race import MASK, Law, State, Subsets, check_count, race_probabilities, race_subsets

RoundLaw = Callable[[np.ndarray, int, tuple[int, ...]], Law]


def choose_then_sample_law(subsets: Subsets, tokens: ArrayLike) -> Law:
    """The law of any sampler that first chooses positions (`subsets`), then draws each token from its row of `tokens`.

    The order within a tuple of `subsets` does not matter, since tokens of one round are independent.
    """
    tokens = np.asarray(tokens, dtype=np.float64)
    law: Law = {}
    for subset, chance in subsets.items():
        for values in product(range(tokens.shape[1]), repeat=len(subset)):
            outcome = [MASK] * len(tokens)
            for position, value in zip(subset, values, strict=True):
                outcome[position] = value
            probability = chance * float(np.prod(tokens[list(subset), list(values)]))
            law[tuple(outcome)] = law.get(tuple(outcome), 0.0) + probability
    return law


# One round of each sampler -----------------------------------------------------------------------------------------


def plain_round_law(marginals: ArrayLike) -> Law:
    """Reveal all positions, each token drawn from its own marginal: every sampler's last round, `prod_i p_i(x_i)`."""
    marginals = check_marginals(marginals)
    return choose_then_sample_law({tuple(range(len(marginals))): 1.0}, marginals)


def maskgit_round_law(marginals: ArrayLike, k: int, choice_temperature: float) -> Law:
    """Sample, then choose: draw `x_i ~ p_i`, and keep the k largest `log p_i(x_i) + alpha G_i`. Equation at the top.

    `choice_temperature` must be positive: at 0 the law would depend on how ties are broken. Use a small value instead.
    """
    marginals = check_marginals(marginals)
    return sample_then_choose_law(marginals, _log(marginals) / _check_alpha(choice_temperature), k)


def sample_then_choose_law(draws: ArrayLike, log_rates: ArrayLike, k: int) -> Law:
    """`maskgit_round_law` with separate candidate distributions and rates, (N, V) each: the law of a faulty sampler."""
    draws = check_marginals(draws)
    check_count(k, len(draws))
    outcomes = _outcomes(draws, k)
    probabilities = race_probabilities(draws, log_rates, outcomes)
    return dict(zip(map(tuple, outcomes.tolist()), probabilities.tolist(), strict=True))


def moment_round_law(marginals: ArrayLike, k: int, choice_temperature: float) -> Law:
    """Choose k positions in proportion to `m_i = sum_x p_i(x)^beta`, then draw tokens from `p_i^beta / m_i`."""
    marginals = check_marginals(marginals)
    if k == len(marginals):
        return plain_round_law(marginals)
    log_moments, tokens = moments(marginals, choice_temperature)
    return choose_then_sample_law(race_subsets(log_moments, k), tokens)


def uniform_round_law(marginals: ArrayLike, k: int, choice_temperature: float | None = None) -> Law:
    """All sets of k positions are equally likely; tokens from `p_i`, or from `p_i^beta / m_i` if alpha is given."""
    marginals = check_marginals(marginals)
    return choose_then_sample_law(uniform_subsets(len(marginals), k), _tokens(marginals, k, choice_temperature))


def ordered_round_law(
    marginals: ArrayLike, k: int, order: Sequence[int], choice_temperature: float | None = None
) -> Law:
    """Reveal the first k positions of a fixed `order`, such as Halton's; tokens as in `uniform_round_law`."""
    marginals = check_marginals(marginals)
    check_count(k, len(marginals))
    if sorted(order) != list(range(len(marginals))):
        raise ValueError(
            f"`order` must be a permutation of the {len(marginals)} positions, got {tuple(order)}. "
            "Rank the masked positions among themselves."
        )
    return choose_then_sample_law({tuple(order[:k]): 1.0}, _tokens(marginals, k, choice_temperature))


def confidence_round_law(
    marginals: ArrayLike, k: int, measure: str = "confidence", choice_temperature: float | None = None
) -> Law:
    """Reveal the positions of which the model is most certain; tokens from `p_i`.

    Args:
        marginals: (N, V).
        k: number of positions revealed.
        measure: "confidence" (`max p_i`), "margin" (largest minus second largest) or "entropy" (`exp(-H(p_i))`).
        choice_temperature: None takes the k largest measures, which must not tie; a number alpha adds `alpha G_i` to
            the logarithm of the measure.
    """
    marginals = check_marginals(marginals)
    check_count(k, len(marginals))
    log_measures = log_confidence(marginals, measure)
    if choice_temperature is not None:
        return choose_then_sample_law(race_subsets(log_measures / _check_alpha(choice_temperature), k), marginals)
    order = np.argsort(-log_measures, kind="stable")
    if k < len(order) and np.isclose(log_measures[order[k - 1]], log_measures[order[k]], rtol=0, atol=1e-6):
        raise ValueError(
            f"The {measure} of the positions {order[k - 1]} and {order[k]} must differ, got a tie at the cut. "
            "Ties are broken by the implementation: choose other marginals."
        )
    return ordered_round_law(marginals, k, order.tolist())


def entropy_bounded_round_law(marginals: ArrayLike, entropy_bound: float) -> Law:
    """Reveal the longest prefix by ascending entropy with `sum H - max H <= entropy_bound`; tokens from `p_i`.

    Args:
        marginals: (N, V).
        entropy_bound: in nats. Entropies must not tie at the end of the prefix, and no sum may equal the bound.
    """
    marginals = check_marginals(marginals)
    entropies = -log_confidence(marginals, "entropy")
    order = np.argsort(entropies, kind="stable")
    spent = np.cumsum(entropies[order])[:-1]  # sums of the first 1, 2, ...: if within the bound, one more fits
    k = 1 + int((spent <= entropy_bound).sum())
    tie = k < len(order) and np.isclose(entropies[order[k - 1]], entropies[order[k]], rtol=0, atol=1e-6)
    if tie or np.isclose(spent, entropy_bound, rtol=0, atol=1e-6).any():
        raise ValueError(
            f"Entropies and their sums must be clear of each other and of the bound {entropy_bound}, got a tie at the "
            f"cut, {np.sort(entropies)}. Rounding breaks ties: choose other marginals."
        )
    return ordered_round_law(marginals, k, order.tolist())


def hybrid_round_law(
    marginals: ArrayLike,
    k: int,
    exploration: Subsets,
    choice_temperature: float,
    plain_exploration: bool = False,
) -> Law:
    """Reveal some positions of an exploration order, then let the moment sampler choose among the rest: a mixture,

        P(I, x_I) = sum_{J within I} P_explore(J) P_moment(I minus J | rest) prod_{i in I} q_i(x_i).

    Args:
        marginals: (N, V).
        k: number of positions revealed, including the explored ones.
        exploration: probability of each tuple of explored positions, at most k long; for example the result of
            `race_subsets` or `uniform_subsets`, or `{(first, second): 1.0}`.
        choice_temperature: `alpha` of the weights `m_i` and of the tokens `q_i = p_i^beta / m_i`.
        plain_exploration: draw the tokens of explored positions from `p_i` instead.
    """
    marginals = check_marginals(marginals)
    check_count(k, len(marginals))
    if k == len(marginals):
        return plain_round_law(marginals)
    log_moments, tempered = moments(marginals, choice_temperature)
    law: Law = {}
    for explored, chance in exploration.items():
        if len(explored) > k:
            raise ValueError(f"`exploration` must hold at most k = {k} positions, got {explored}. Cut it to the first.")
        tokens = tempered.copy()
        if plain_exploration:
            tokens[list(explored)] = marginals[list(explored)]
        rest = [i for i in range(len(marginals)) if i not in explored]
        exploited = race_subsets(log_moments[rest], k - len(explored)) if len(explored) < k else {(): 1.0}
        subsets = {(*explored, *(rest[i] for i in s)): chance * c for s, c in exploited.items()}
        accumulate(law, choose_then_sample_law(subsets, tokens), 1.0)
    return law


# Ingredients -------------------------------------------------------------------------------------------------------


def moments(marginals: ArrayLike, choice_temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """`log m_i = log sum_x p_i(x)^beta`, (N,), and the tempered marginals `p_i^beta / m_i`, (N, V)."""
    logits = (1.0 + 1.0 / _check_alpha(choice_temperature)) * _log(check_marginals(marginals))
    peak = logits.max(axis=1, keepdims=True)
    log_moments = peak + np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
    return log_moments[:, 0], np.exp(logits - log_moments)


def log_confidence(marginals: ArrayLike, measure: str) -> np.ndarray:
    """The logarithm of each position's certainty, (N,): log of `max p` or of the margin, or minus the entropy."""
    marginals = check_marginals(marginals)
    ranked = np.sort(marginals, axis=1)[:, ::-1]
    if measure == "confidence":
        return np.log(ranked[:, 0])
    if measure == "margin":
        return _log(ranked[:, 0] - ranked[:, 1])
    if measure == "entropy":
        return (marginals * np.log(np.where(marginals > 0, marginals, 1.0))).sum(axis=1)
    raise ValueError(f"`measure` must be 'confidence', 'margin' or 'entropy', got {measure!r}. Pass one of these.")


def uniform_subsets(num_positions: int, k: int) -> Subsets:
    """All sets of k positions, with equal probabilities."""
    check_count(k, num_positions)
    return dict.fromkeys(combinations(range(num_positions), k), 1.0 / comb(num_positions, k))


# A whole generation ------------------------------------------------------------------------------------------------


def generation_law(
    denoiser: Callable[[State], ArrayLike],
    round_laws: Iterable[RoundLaw],
    counts: Iterable[int],
    start: State,
) -> Law:
    """The law of the sequence after several rounds, computed by enumerating all partly masked sequences on the way.

    Args:
        denoiser: maps a state to marginals of shape (N, V); rows of known positions are ignored.
        round_laws: one for each step, called as `round_law(marginals of the masked positions, k, masked positions)`.
        counts: how many positions each step reveals, unless a `round_law` decides by itself. If the steps do not
            reveal all positions, the result is a law of partly masked sequences.
        start: the first state; `(MASK,) * N` if all positions are masked. Known tokens never change.

    Returns:
        The law over states after the last step.

    Example, MaskGIT in three steps on four positions:

        laws = [lambda p, k, masked, a=a: maskgit_round_law(p, k, a) for a in (4.0, 2.0, 1.0)]
        law = generation_law(denoiser, laws, counts=[1, 1, 2], start=(MASK,) * 4)
    """
    law: Law = {start: 1.0}
    for round_law, k in zip(round_laws, counts, strict=True):
        following: Law = {}
        for state, chance in law.items():
            masked = tuple(i for i, token in enumerate(state) if token == MASK)
            if not masked:
                accumulate(following, {state: 1.0}, chance)
                continue
            marginals = check_marginals(np.asarray(denoiser(state), dtype=np.float64)[list(masked)])
            completed: Law = {}
            for outcome, probability in round_law(marginals, k, masked).items():
                tokens = list(state)
                for position, token in zip(masked, outcome, strict=True):
                    tokens[position] = token
                completed[tuple(tokens)] = probability
            accumulate(following, completed, chance)
        law = following
    return law


def step_distances(
    denoiser: Callable[[State], ArrayLike],
    round_laws: Sequence[RoundLaw],
    other_laws: Sequence[RoundLaw],
    counts: Sequence[int],
    start: State,
) -> list[float]:
    """The distance between two samplers' rounds in each step, averaged over the states that the first sampler meets.

    The sum of the distances bounds the total variation between the two generations: replace the first sampler's rounds
    by the second's, starting with the last; each replacement changes the law by at most the expected distance of its
    step. Arguments as in `generation_law`.
    """
    law: Law = {start: 1.0}
    distances = []
    for round_law, other_law, k in zip(round_laws, other_laws, counts, strict=True):
        distance = 0.0
        following: Law = {}
        for state, chance in law.items():
            ours = generation_law(denoiser, [round_law], [k], state)
            distance += chance * total_variation(ours, generation_law(denoiser, [other_law], [k], state))
            accumulate(following, ours, chance)
        distances.append(distance)
        law = following
    return distances


# Distances ---------------------------------------------------------------------------------------------------------


def total_variation(first: Mapping[State, float], second: Mapping[State, float]) -> float:
    """Half the sum of absolute differences, which is the largest difference in the probability of any event."""
    return 0.5 * sum(abs(first.get(s, 0.0) - second.get(s, 0.0)) for s in first.keys() | second.keys())


def symmetric_round_distance(marginal: ArrayLike, num_masked: int, k: int, choice_temperature: float) -> float:
    """Total variation between a MaskGIT and a moment round when all positions share one marginal, for any N.

    By symmetry every subset has the same law of tokens, so one subset represents all `binom(N, k)` of them, and the
    positions that stay masked enter as a power:

        TV = 1/2 sum_{x in V^k} | binom(N, k) P_maskgit({1..k}, x) - prod_i p(x_i)^beta / m |,

    which falls as `C k^1.5 / N`: the two rounds agree in the limit of N large compared with k^2 (arXiv 2510.04525).

    Args:
        marginal: (V,) the distribution at every position.
        num_masked: N; thousands are possible.
        k: number of positions revealed, below N; the sum has V^k terms.
        choice_temperature: `alpha`.
    """
    row = check_marginals(np.asarray(marginal, dtype=np.float64)[None])
    check_count(k, num_masked)
    if k == num_masked:
        return 0.0
    tokens = np.array(list(product(range(row.shape[1]), repeat=k)))
    outcomes = np.concatenate([tokens, np.full((len(tokens), 1), MASK)], axis=1)
    draws = np.repeat(row, k + 1, axis=0)
    log_rates = _log(draws) / _check_alpha(choice_temperature)
    maskgit = race_probabilities(draws, log_rates, outcomes, copies=[1] * k + [num_masked - k])
    moment = np.prod(moments(row, choice_temperature)[1][0][tokens], axis=1)
    return float(0.5 * np.abs(comb(num_masked, k) * maskgit - moment).sum())


# -------------------------------------------------------------------------------------------------------------------


def _tokens(marginals: np.ndarray, k: int, choice_temperature: float | None) -> np.ndarray:
    if choice_temperature is None or k == len(marginals):
        return marginals
    return moments(marginals, choice_temperature)[1]


def _outcomes(marginals: np.ndarray, k: int) -> np.ndarray:
    tokens = np.array(list(product(range(marginals.shape[1]), repeat=k)))
    subsets = np.array(list(combinations(range(len(marginals)), k)))
    outcomes = np.full((len(subsets), len(tokens), len(marginals)), MASK)
    np.put_along_axis(outcomes, np.broadcast_to(subsets[:, None], (*outcomes.shape[:2], k)), tokens[None], axis=2)
    return outcomes.reshape(-1, len(marginals))


def accumulate(law: Law, part: Law, chance: float) -> None:
    for state, probability in part.items():
        if probability > 0:  # do not call the denoiser for states that cannot occur
            law[state] = law.get(state, 0.0) + chance * probability


def _log(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(values)


def check_marginals(marginals: ArrayLike) -> np.ndarray:
    marginals = np.asarray(marginals, dtype=np.float64)
    if marginals.ndim != 2 or not (marginals >= 0).all() or not np.allclose(marginals.sum(axis=1), 1.0, atol=1e-9):
        raise ValueError(
            "`marginals` must be (N, V) with non-negative rows that sum to 1, got shape "
            f"{marginals.shape}. Normalise them in float64."
        )
    return marginals


def _check_alpha(choice_temperature: float) -> float:
    if not choice_temperature > 0:
        raise ValueError(
            f"`choice_temperature` must be positive, got {choice_temperature}. Pass a small number such as 0.01 for "
            "a nearly greedy choice."
        )
    return choice_temperature
