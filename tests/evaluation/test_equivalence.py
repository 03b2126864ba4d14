"""The distance of a MaskGIT round from a moment round: against enumeration, and its closed form."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from hf_maskdiff.evaluation import laws
from hf_maskdiff.evaluation.equivalence import Rounds, leading_constant, symmetric_distance
from hf_maskdiff.evaluation.markov_chain import MarkovChain
from hf_maskdiff.masking import MASKING_SCHEDULES, planned_counts

ALPHAS = (0.05, 0.3, 1.0, 6.0, 50.0)


def marginals(num_positions: int, num_tokens: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(num_tokens, 0.5), num_positions)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("num_positions", "k"), [(4, 1), (4, 2), (5, 3)])
def test_every_outcome_against_enumeration(num_positions: int, k: int, alpha: float) -> None:
    p = marginals(num_positions, 3)
    maskgit, moment = laws.maskgit_round_law(p, k, alpha), laws.moment_round_law(p, k, alpha)
    outcomes = [outcome for outcome in moment if maskgit[outcome] > 1e-9]
    positions = [[i for i, token in enumerate(outcome) if token != laws.MASK] for outcome in outcomes]
    tokens = [[token for token in outcome if token != laws.MASK] for outcome in outcomes]
    expected = [math.log(maskgit[outcome] / moment[outcome]) for outcome in outcomes]
    np.testing.assert_allclose(Rounds(np.log(p), alpha).log_ratio(positions, tokens), expected, atol=1e-6)


@pytest.mark.parametrize("alpha", [1.0, *(pytest.param(a, marks=pytest.mark.exhaustive) for a in (0.3, 6.0))])
def test_the_mean_over_draws_is_the_total_variation(alpha: float) -> None:
    """Within 4.5 standard errors: a false alarm in 7e-6; half the distance, or 1.1 times it, would be refused."""
    p = marginals(5, 3, seed=1)
    exact = laws.total_variation(laws.maskgit_round_law(p, 3, alpha), laws.moment_round_law(p, 3, alpha))
    found = Rounds(np.log(p), alpha).distance(3, 40_000, np.random.default_rng(2))
    assert abs(found.total_variation - exact) < 4.5 * found.standard_error
    assert 4.5 * found.standard_error < 0.05 * exact


def test_draws_are_those_of_the_moment_round() -> None:
    p = marginals(4, 3)
    positions, tokens = Rounds(np.log(p), 1.0).draw(2, 100_000, np.random.default_rng(0))
    states = np.full((len(positions), 4), laws.MASK)
    np.put_along_axis(states, positions, tokens, 1)
    law = laws.moment_round_law(p, 2, 1.0)
    counts = dict.fromkeys(law, 0)
    for state in map(tuple, states.tolist()):
        counts[state] += 1
    expected = {state: chance * len(states) for state, chance in law.items() if chance * len(states) > 5}
    chi_square = sum((counts[state] - mean) ** 2 / mean for state, mean in expected.items())
    assert chi_square < len(expected) + 6 * math.sqrt(2 * len(expected))


def test_marginals_with_zeros_and_the_last_round() -> None:
    p = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    with np.errstate(divide="ignore"):
        rounds = Rounds(np.log(p), 1.0)
    exact = laws.total_variation(laws.maskgit_round_law(p, 2, 1.0), laws.moment_round_law(p, 2, 1.0))
    found = rounds.distance(2, 20_000, np.random.default_rng(0))
    assert abs(found.total_variation - exact) < 4.5 * found.standard_error + 1e-12
    assert rounds.distance(3, 8, np.random.default_rng(0)).total_variation == 0
    with pytest.raises(ValueError, match=r"`k` must lie between 1 and the 3 masked positions, got 4\. "):
        rounds.distance(4, 8, np.random.default_rng(0))


@pytest.mark.parametrize("alpha", [1.0, 4.0, 16.0])
def test_the_closed_form_is_within_two_percent_at_512(alpha: float) -> None:
    for marginal in (marginals(1, 4, seed=3)[0], np.array([0.4, 0.3, 0.2, 0.1]), marginals(1, 6, seed=4)[0]):
        for k in (1, 2, 4):
            closed = leading_constant(marginal, alpha, k) * k**1.5 / 512
            assert abs(symmetric_distance(marginal, 512, k, alpha) / closed - 1) < 0.02


def test_the_constant_of_large_k_is_the_limit_of_the_others() -> None:
    marginal = np.array([0.4, 0.3, 0.2, 0.1])
    limit = leading_constant(marginal, 1.0)
    gaps = [leading_constant(marginal, 1.0, k) / limit - 1 for k in (1, 4, 16, 40)]
    assert all(later < earlier for earlier, later in itertools.pairwise(gaps))
    assert abs(gaps[-1]) < 0.03
    rounds = Rounds(np.log(np.repeat(marginal[None], 512, 0)), 1.0)
    assert math.isclose(rounds.first_order(40), limit * 41 / 40 * 40**1.5 / 512, rel_tol=1e-9)


def test_two_exact_sums_agree() -> None:
    """Over sequences and over multisets."""
    marginal = np.array([0.5, 0.3, 0.2])
    for k in (1, 2, 3):
        ours = symmetric_distance(marginal, 16, k, 1.0)
        assert math.isclose(ours, laws.symmetric_round_distance(marginal, 16, k, 1.0), rel_tol=1e-9)


def test_the_first_order_holds_for_unlike_positions() -> None:
    """Against the exact distance of 256 positions, each with its own marginal; normal approximation at k = 16."""
    rounds = Rounds(np.log(marginals(256, 6, seed=5)), 6.0)
    found = rounds.distance(16, 4000, np.random.default_rng(0))
    assert abs(found.total_variation / found.first_order - 1) < 0.15


CHAIN = MarkovChain.random(length=5, num_states=3, sharpness=2.0)


@functools.cache
def denoiser(state: laws.State) -> np.ndarray:
    sample = torch.tensor([[3 if token == laws.MASK else token for token in state]])
    return CHAIN(sample)[0].exp().numpy()


def round_laws(law: Callable[[np.ndarray, int, float], laws.Law], alpha: float, steps: int) -> list[laws.RoundLaw]:
    """Annealed linearly, the last round plain."""

    def at(temperature: float) -> laws.RoundLaw:
        return lambda p, k, masked: law(p, k, temperature) if k < len(p) else laws.plain_round_law(p)

    return [at(max(alpha * (1 - (n + 1) / steps), 1e-3)) for n in range(steps)]


@pytest.mark.parametrize("schedule", sorted(MASKING_SCHEDULES))
@pytest.mark.parametrize("alpha", [1.0, 4.0, 6.0, 16.0])
def test_whole_generations_lie_within_the_sum_of_the_steps(schedule: str, alpha: float) -> None:
    start = (laws.MASK,) * 5
    for steps in (2, 4):
        counts = planned_counts(torch.tensor([5]), steps, schedule, "floor_masked").flatten().tolist()
        moment, maskgit = (round_laws(law, alpha, steps) for law in (laws.moment_round_law, laws.maskgit_round_law))
        generations = [laws.generation_law(denoiser, rounds, counts, start) for rounds in (moment, maskgit)]
        true = laws.total_variation(*generations)
        for first, second in ((moment, maskgit), (maskgit, moment)):
            terms = laws.step_distances(denoiser, first, second, counts, start)
            assert terms[-1] < 1e-12
            assert 0 < true <= sum(terms) + 1e-12


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((2, 3)), np.log([[0.5, 0.4]])])
def test_what_is_no_marginal_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"`log_marginals` must be \(N, V\) log-probabilities"):
        Rounds(bad, 1.0)


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`choice_temperature` must be positive, got 0\.0"):
        Rounds(np.log([[0.5, 0.5]]), 0.0)
    with pytest.raises(ValueError, match=r"`marginal` must be \(V,\) probabilities"):
        leading_constant([0.5, 0.6], 1.0)
