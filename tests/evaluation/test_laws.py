"""The integrals against brute force: every candidate vector, every order in which the winners may ring."""

from itertools import combinations, permutations, product
from math import log, prod

import numpy as np
import pytest

from hf_maskdiff.evaluation.laws import (
    MASK,
    Law,
    choose_then_sample_law,
    confidence_round_law,
    entropy_bounded_round_law,
    generation_law,
    hybrid_round_law,
    maskgit_round_law,
    moment_round_law,
    ordered_round_law,
    plain_round_law,
    race_probabilities,
    race_subsets,
    symmetric_round_distance,
    total_variation,
    uniform_round_law,
    uniform_subsets,
)

PEAKED = np.array([[0.90, 0.08, 0.02], [0.60, 0.30, 0.10], [0.40, 0.35, 0.25], [0.25, 0.70, 0.05]])
ALPHAS = [0.1, 0.3, 1.0, 6.0, 16.0]


def plackett_luce(weights: np.ndarray, subset: tuple[int, ...]) -> float:
    """Probability that draws without replacement in proportion to `weights` give `subset`, summed over orders."""
    total = 0.0
    for order in permutations(subset):
        left = [i for i in range(len(weights)) if i not in order]
        total += prod(
            weights[i] / (sum(weights[j] for j in order[r:]) + weights[left].sum()) for r, i in enumerate(order)
        )
    return total


def reveal(tokens: tuple[int, ...], subset: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(x if i in subset else MASK for i, x in enumerate(tokens))


def enumerated_maskgit(marginals: np.ndarray, k: int, alpha: float) -> Law:
    law: Law = {}
    for tokens in product(range(marginals.shape[1]), repeat=len(marginals)):
        candidates = marginals[range(len(marginals)), tokens]
        if not candidates.all():
            continue
        for subset in combinations(range(len(marginals)), k):
            chance = float(candidates.prod()) * plackett_luce(candidates ** (1 / alpha), subset)
            law[reveal(tokens, subset)] = law.get(reveal(tokens, subset), 0.0) + chance
    return law


def enumerated_moment(marginals: np.ndarray, k: int, alpha: float) -> Law:
    powers = marginals ** (1 + 1 / alpha)
    tokens = powers / powers.sum(1, keepdims=True)
    law: Law = {}
    for subset in combinations(range(len(marginals)), k):
        chance = plackett_luce(powers.sum(1), subset)
        for x in product(range(marginals.shape[1]), repeat=k):
            full = dict(zip(subset, x, strict=True))
            outcome = tuple(full.get(i, MASK) for i in range(len(marginals)))
            law[outcome] = chance * prod(tokens[i, v] for i, v in full.items())
    return law


def largest_difference(first: Law, second: Law) -> float:
    return max(abs(first.get(s, 0.0) - second.get(s, 0.0)) for s in first.keys() | second.keys())


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_integrals_agree_with_enumeration(k: int, alpha: float) -> None:
    for law, brute in (
        (maskgit_round_law(PEAKED, k, alpha), enumerated_maskgit(PEAKED, k, alpha)),
        (moment_round_law(PEAKED, k, alpha), enumerated_moment(PEAKED, k, alpha)),
    ):
        assert largest_difference(law, brute) < 1e-12
        assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
        assert all(sum(token != MASK for token in outcome) == k for outcome in law)


@pytest.mark.parametrize("seed", range(5))
def test_integrals_agree_with_enumeration_on_random_marginals(seed: int) -> None:
    marginals = np.random.default_rng(seed).dirichlet(np.full(2, 0.4), size=5)
    for alpha in (0.5, 2.0):
        assert (
            largest_difference(maskgit_round_law(marginals, 2, alpha), enumerated_maskgit(marginals, 2, alpha)) < 1e-12
        )
        assert largest_difference(moment_round_law(marginals, 3, alpha), enumerated_moment(marginals, 3, alpha)) < 1e-12


@pytest.mark.parametrize("alpha", [1e-3, 1e-2])
def test_rates_of_any_range_leave_no_mass_behind(alpha: float) -> None:
    # p^(1/alpha) underflows float64 here; in the limit the most probable pair of candidates wins.
    law = maskgit_round_law(PEAKED, 2, alpha)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    # Position 3's 0.7 outranks position 1's 0.6, and both lose only to position 0's 0.9.
    if alpha == 1e-3:
        assert law[(0, MASK, MASK, 1)] == pytest.approx(0.9 * 0.7, abs=1e-9)


def test_impossible_tokens_and_certain_positions() -> None:
    marginals = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    law = maskgit_round_law(marginals, 2, 0.7)
    assert largest_difference(law, enumerated_maskgit(marginals, 2, 0.7)) < 1e-12
    assert law[(1, 0, MASK)] == 0.0
    assert largest_difference(moment_round_law(marginals, 2, 0.7), enumerated_moment(marginals, 2, 0.7)) < 1e-12


@pytest.mark.parametrize("alpha", ALPHAS)
def test_final_round_is_plain_for_every_sampler(alpha: float) -> None:
    plain = plain_round_law(PEAKED)
    assert plain[(0, 1, 2, 0)] == pytest.approx(0.9 * 0.3 * 0.25 * 0.25)
    for law in (
        maskgit_round_law(PEAKED, 4, alpha),
        moment_round_law(PEAKED, 4, alpha),
        uniform_round_law(PEAKED, 4, alpha),
        ordered_round_law(PEAKED, 4, [2, 0, 3, 1], alpha),
        confidence_round_law(PEAKED, 4, "margin", alpha),
        hybrid_round_law(PEAKED, 4, uniform_subsets(4, 2), alpha),
    ):
        assert largest_difference(law, plain) < 1e-13


def test_moment_tokens_are_at_temperature_one_over_beta() -> None:
    alpha = 2.0
    law = moment_round_law(PEAKED, 1, alpha)
    logits = np.log(PEAKED[0])
    tempered = np.exp(logits / (alpha / (1 + alpha)))
    conditional = np.array([law[(v, MASK, MASK, MASK)] for v in range(3)])
    np.testing.assert_allclose(conditional / conditional.sum(), tempered / tempered.sum(), atol=1e-13)


def test_uniform_and_ordered() -> None:
    law = uniform_round_law(PEAKED, 2)
    assert len(law) == 54
    assert law[(MASK, 0, MASK, 1)] == pytest.approx(0.6 * 0.7 / 6)
    law = ordered_round_law(PEAKED, 2, [3, 1, 0, 2])
    assert len(law) == 9
    assert law[(MASK, 0, MASK, 1)] == pytest.approx(0.6 * 0.7)
    sharp = PEAKED**1.5 / (PEAKED**1.5).sum(1, keepdims=True)
    assert ordered_round_law(PEAKED, 1, [3, 1, 0, 2], 2.0)[(MASK,) * 3 + (1,)] == pytest.approx(sharp[3, 1])
    assert sum(uniform_round_law(PEAKED, 3, 0.3).values()) == pytest.approx(1.0, abs=1e-13)


@pytest.mark.parametrize(("measure", "first_two"), [("confidence", (0, 3)), ("margin", (0, 3)), ("entropy", (0, 3))])
def test_confidence_orders(measure: str, first_two: tuple[int, int]) -> None:
    law = confidence_round_law(PEAKED, 2, measure)
    assert {tuple(i for i, x in enumerate(s) if x != MASK) for s in law} == {tuple(sorted(first_two))}
    # A vanishing choice temperature is the deterministic order; a large one forgets it.
    cold = confidence_round_law(PEAKED, 2, measure, choice_temperature=1e-3)
    assert total_variation(law, cold) < 1e-9
    hot = confidence_round_law(PEAKED, 2, measure, choice_temperature=1e5)
    assert total_variation(hot, uniform_round_law(PEAKED, 2)) < 1e-4


def test_measures_disagree_where_they_should() -> None:
    marginals = np.array([[0.50, 0.49, 0.01], [0.48, 0.26, 0.26]])
    assert confidence_round_law(marginals, 1, "confidence")[(0, MASK)] == pytest.approx(0.5)
    assert confidence_round_law(marginals, 1, "margin")[(MASK, 0)] == pytest.approx(0.48)
    assert confidence_round_law(marginals, 1, "entropy")[(0, MASK)] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="tie at the cut"):
        confidence_round_law(np.array([[0.5, 0.5], [0.5, 0.5]]), 1)


@pytest.mark.parametrize("bound", [0.0, 0.3, 0.4, 1.0, 1.2, 2.0, 2.1, float("inf")])
def test_entropy_bounded_reveals_the_largest_set_within_the_bound(bound: float) -> None:
    entropies = [-sum(p * log(p) for p in row) for row in PEAKED]
    sets = [s for k in range(1, 5) for s in combinations(range(4), k)]
    allowed = [s for s in sets if sum(entropies[i] for i in s) - max(entropies[i] for i in s) <= bound]
    most = max(map(len, allowed))
    # Of the sets of that size the one with the least entropy.
    best = min((s for s in allowed if len(s) == most), key=lambda s: sum(entropies[i] for i in s))
    law = entropy_bounded_round_law(PEAKED, bound)
    assert {tuple(i for i, x in enumerate(s) if x != MASK) for s in law} == {best}
    assert largest_difference(law, ordered_round_law(PEAKED, most, [*best, *set(range(4)).difference(best)])) < 1e-15


def test_a_round_that_counts_by_itself_may_end_early() -> None:
    rounds = [lambda p, k, _: entropy_bounded_round_law(p, float("inf"))] * 3
    law = generation_law(denoiser, rounds, [1, 1, 1], (MASK,) * 3)
    assert largest_difference(law, plain_round_law(denoiser((MASK,) * 3))) < 1e-15


@pytest.mark.parametrize("plain_exploration", [False, True])
def test_hybrid_is_the_mixture_by_brute_force(plain_exploration: bool) -> None:
    alpha, k = 1.3, 3
    powers = PEAKED ** (1 + 1 / alpha)
    tempered = powers / powers.sum(1, keepdims=True)
    exploration = {(2, 0): 0.5, (1, 3): 0.2, (0, 2): 0.3}
    expected: Law = {}
    for explored, chance in exploration.items():
        rest = [i for i in range(4) if i not in explored]
        for taken in rest:
            weight = chance * powers[taken].sum() / powers[rest].sum()
            for x in product(range(3), repeat=k):
                full = dict(zip((*explored, taken), x, strict=True))
                outcome = tuple(full.get(i, MASK) for i in range(4))
                rows = [(PEAKED if plain_exploration and i in explored else tempered)[i, v] for i, v in full.items()]
                expected[outcome] = expected.get(outcome, 0.0) + weight * prod(rows)
    law = hybrid_round_law(PEAKED, k, exploration, alpha, plain_exploration)
    assert largest_difference(law, expected) < 1e-12
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)


def test_hybrid_ends_are_its_two_orders() -> None:
    exploit_only = hybrid_round_law(PEAKED, 2, {(): 1.0}, 1.5)
    assert largest_difference(exploit_only, moment_round_law(PEAKED, 2, 1.5)) < 1e-13
    explore_only = hybrid_round_law(PEAKED, 2, uniform_subsets(4, 2), 1.5)
    assert largest_difference(explore_only, uniform_round_law(PEAKED, 2, 1.5)) < 1e-13
    # The moment order explores as it exploits: drawing without replacement in two stages changes nothing.
    weights = np.log((PEAKED ** (1 + 1 / 1.5)).sum(1))
    both = hybrid_round_law(PEAKED, 2, race_subsets(weights, 1), 1.5)
    assert largest_difference(both, exploit_only) < 1e-13


def test_race_on_selected_outcomes_scales_to_many_positions() -> None:
    rng = np.random.default_rng(0)
    marginals = rng.dirichlet(np.ones(8), size=50)
    outcomes = np.full((200, 50), MASK)
    for row in outcomes:
        row[rng.choice(50, 16, replace=False)] = rng.integers(8, size=16)
    chances = race_probabilities(marginals, np.log(marginals) / 2, outcomes)
    assert (chances > 0).all()
    # Relabelling positions is immaterial.
    order = rng.permutation(50)
    shuffled = race_probabilities(marginals[order], np.log(marginals[order]) / 2, outcomes[:, order])
    np.testing.assert_allclose(shuffled, chances, rtol=1e-10)


@pytest.mark.parametrize("alpha", [1.0, 6.0])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("marginal", [(0.7, 0.2, 0.1), (0.5, 0.3, 0.2), (0.98, 0.01, 0.01)])
def test_distance_falls_as_one_over_n(marginal: tuple[float, ...], k: int, alpha: float) -> None:
    sizes = np.array([256, 512, 1024, 2048])
    distances = [symmetric_round_distance(marginal, n, k, alpha) for n in sizes]
    slope = np.polyfit(np.log(sizes), np.log(distances), 1)[0]
    assert -1.05 < slope < -0.95


@pytest.mark.parametrize("alpha", [1.0, 6.0])
@pytest.mark.parametrize("k", [1, 2])
def test_distance_falls_as_one_over_n_for_moderate_n_and_mixed_marginals(k: int, alpha: float) -> None:
    mixed = np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]])
    sizes = np.array([8, 16, 32, 64])
    distances = []
    for n in sizes:
        marginals = np.tile(mixed, (n // 2, 1))
        distances.append(total_variation(maskgit_round_law(marginals, k, alpha), moment_round_law(marginals, k, alpha)))
    slope = np.polyfit(np.log(sizes), np.log(distances), 1)[0]
    assert -1.1 < slope < -0.9


def test_distance_grows_as_k_to_the_three_halves() -> None:
    counts = np.array([2, 4, 8])
    distances = [symmetric_round_distance((0.7, 0.3), 4096, k, 1.0) for k in counts]
    slope = np.polyfit(np.log(counts), np.log(distances), 1)[0]
    assert 1.2 < slope < 1.8


def test_symmetric_distance_is_the_distance() -> None:
    marginals = np.tile([0.6, 0.3, 0.1], (6, 1))
    for k in (1, 2, 3):
        direct = total_variation(maskgit_round_law(marginals, k, 0.8), moment_round_law(marginals, k, 0.8))
        assert symmetric_round_distance(marginals[0], 6, k, 0.8) == pytest.approx(direct, abs=1e-12)
    assert symmetric_round_distance(marginals[0], 6, 6, 0.8) == 0.0


def denoiser(state: tuple[int, ...]) -> np.ndarray:
    """Marginals that lean on the left neighbour, so that the order of revealing matters."""
    rows = []
    for i in range(len(state)):
        left = state[i - 1]
        rows.append([0.5, 0.3, 0.2] if left == MASK else np.roll([0.8, 0.15, 0.05], left))
    return np.array(rows)


def test_generation_by_hand() -> None:
    """Two positions, one at a time, uniformly: 1/2 for each order, chain rule along it."""
    law = generation_law(denoiser, [lambda p, k, _: uniform_round_law(p, k)] * 2, [1, 1], (MASK, MASK))
    empty = denoiser((MASK, MASK))
    for x, y in product(range(3), repeat=2):
        forward = empty[0, x] * denoiser((x, MASK))[1, y]
        backward = empty[1, y] * denoiser((MASK, y))[0, x]
        assert law[(x, y)] == pytest.approx(0.5 * forward + 0.5 * backward, abs=1e-15)


def test_generation_laws_sum_to_one_keep_known_tokens_and_obey_the_bound() -> None:
    alphas = (4.0, 2.0, 1.0)
    maskgit = [lambda p, k, _, a=a: maskgit_round_law(p, k, a) for a in alphas]
    moment = [lambda p, k, _, a=a: moment_round_law(p, k, a) for a in alphas]
    counts, start = [1, 1, 2], (MASK,) * 4
    laws = [generation_law(denoiser, sampler, counts, start) for sampler in (maskgit, moment)]
    for law in laws:
        assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
        assert len(law) == 3**4
    # At most the sum of the expected distances of the steps; the last step's is zero.
    bound = 0.0
    for step in range(3):
        before = generation_law(denoiser, maskgit[:step], counts[:step], start)
        for state, chance in before.items():
            masked = tuple(i for i, x in enumerate(state) if x == MASK)
            p = denoiser(state)[list(masked)]
            rounds = (sampler[step](p, counts[step], masked) for sampler in (maskgit, moment))
            distance = total_variation(*rounds)
            assert step < 2 or distance < 1e-12
            bound += chance * distance
    assert 0 < total_variation(*laws) <= bound

    infilled = generation_law(denoiser, maskgit[:2], [1, 1], (MASK, 2, MASK, MASK))
    assert all(state[1] == 2 and state.count(MASK) == 1 for state in infilled)


def test_total_variation() -> None:
    assert total_variation({(0,): 1.0}, {(1,): 1.0}) == 1.0
    assert total_variation({(0,): 0.75, (1,): 0.25}, {(0,): 0.5, (1,): 0.5}) == pytest.approx(0.25)
    law = choose_then_sample_law({(0,): 1.0}, PEAKED)
    assert total_variation(law, law) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: maskgit_round_law(PEAKED, 5, 1.0), "`k` must lie between 1 and the 4 masked positions, got 5"),
        (lambda: maskgit_round_law(PEAKED, 0, 1.0), "`k` must lie between"),
        (lambda: moment_round_law(PEAKED, 2, 0.0), "`choice_temperature` must be positive, got 0"),
        (lambda: moment_round_law(PEAKED * 2, 2, 1.0), "`marginals` must be"),
        (lambda: uniform_round_law(PEAKED[0], 1), "`marginals` must be"),
        (lambda: ordered_round_law(PEAKED, 2, [0, 1]), "`order` must be a permutation of the 4 positions"),
        (lambda: confidence_round_law(PEAKED, 2, "certainty"), "`measure` must be .* got 'certainty'"),
        (
            lambda: entropy_bounded_round_law([[0.5, 0.5]] * 2, 0.1),
            "clear of each other and of the bound 0.1, got a tie",
        ),
        (lambda: entropy_bounded_round_law([[0.5, 0.5], [0.4, 0.6]], log(0.4**-0.4 * 0.6**-0.6)), "got a tie"),
        (lambda: hybrid_round_law(PEAKED, 1, {(0, 1): 1.0}, 1.0), "at most k = 1 positions"),
        (lambda: race_probabilities(PEAKED, PEAKED, [[MASK] * 4]), "must reveal a position"),
        (lambda: race_probabilities(PEAKED, PEAKED[:2], [[0] * 4]), "must be \\(N, V\\)"),
    ],
)
def test_errors(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
