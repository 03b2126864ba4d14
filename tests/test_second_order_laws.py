"""Samplers of second order against exact enumeration: their laws, their order, and what they cannot mend.

Three positions of three tokens, or four of two, whose tokens depend on one another so that some of the extrapolated
marginals are cut off at 0 and others are not. False-alarm rate 1e-6; the rounds are those that reject each mutant with
power 0.999.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from chi_square import FALSE_ALARM, count_outcomes, goodness_of_fit, rounds_for_power

from hf_maskdiff import ExtrapolatingScheduler, MaskedDiffusionScheduler, TrapezoidalScheduler
from hf_maskdiff.evaluation.second_order_laws import (
    ancestral_law,
    as_law,
    conditionals_of,
    counted_law,
    counted_weight,
    intervals_of,
    kl_divergence,
    runge_kutta_law,
    trapezoidal_law,
    weight_of,
)
from hf_maskdiff.masking import mask_ratio
from hf_maskdiff.sampling import Marginals
from hf_maskdiff.schedulers.extrapolation import (
    draw_extrapolated,
    extrapolate_,
    weight_of_counts,
    weight_of_times,
)


def neighbours(num_positions: int, num_tokens: int, strength: float = 3.0) -> np.ndarray:
    """A joint law in which neighbours like to be equal, and no two positions or tokens are alike."""
    joint = np.zeros((num_tokens,) * num_positions)
    for tokens in product(range(num_tokens), repeat=num_positions):
        equal = sum((i + 1) * (a == b) for i, (a, b) in enumerate(pairwise(tokens)))
        joint[tokens] = strength**equal * (1 + tokens[0]) * (1 + 0.5 * (tokens[-1] == 1))
    return joint / joint.sum()


THREE, FOUR = (conditionals_of(neighbours(*shape)) for shape in ((3, 3), (4, 2)))


def generate(
    scheduler: MaskedDiffusionScheduler, conditionals: np.ndarray, num_steps: int, rounds: int, run: int | None = None
) -> dict[tuple[int, ...], int]:
    """Outcomes of runs of `num_steps`, of which only the first `run` steps are taken."""
    num_positions, mask = conditionals.shape[-2:]
    logits = torch.from_numpy(np.log(np.maximum(conditionals, 1e-30)))
    scheduler.set_timesteps(num_steps)
    memory, generator = scheduler.new_memory(), torch.Generator().manual_seed(0)
    sample = torch.full((rounds, num_positions), mask)
    for t in scheduler.timesteps[:run]:
        model = logits[tuple(sample.unbind(-1))]
        sample = scheduler.step(model, t, sample, generator=generator, memory=memory).prev_sample
    return count_outcomes(sample.numpy(), mask)


def times(num_steps: int, schedule: str = "linear") -> list[float]:
    return mask_ratio(schedule, 1 - torch.arange(num_steps + 1, dtype=torch.float64) / num_steps).tolist()


def accepts(law: np.ndarray, mutants: Sequence[np.ndarray], draw: Callable[[int], dict[tuple[int, ...], int]]) -> None:
    """The law is not rejected, and every mutant is, with as many rounds as that takes."""
    laws = [(as_law(law), as_law(mutant)) for mutant in mutants]
    rounds = max(rounds_for_power(*pair) for both in laws for pair in (both, both[::-1]))
    assert rounds < 1_500_000
    counts = draw(rounds)
    assert goodness_of_fit(counts, as_law(law)).p_value > FALSE_ALARM
    for mutant in mutants:
        assert goodness_of_fit(counts, as_law(mutant)).p_value < FALSE_ALARM


TRAPEZOIDAL = [(2, "linear", 0.5), (3, "linear", 0.5), (4, "linear", 0.3), (4, "cosine", 0.5)]


@pytest.mark.parametrize(("num_steps", "schedule", "theta"), TRAPEZOIDAL)
def test_trapezoidal_runs_have_their_law(num_steps: int, schedule: str, theta: float) -> None:
    left = times(num_steps, schedule)
    intervals = intervals_of(left, theta)
    law = trapezoidal_law(THREE, intervals)
    mutants = [  # nothing extrapolated; a third too much; a lonely or a plain last pass; the two passes of equal time
        trapezoidal_law(THREE, intervals, weight=lambda interval: 1.0),
        trapezoidal_law(THREE, intervals, weight=lambda interval: 1.33 * weight_of(interval)),
        ancestral_law(THREE, left),
    ]
    if num_steps % 2 == 0:
        mutants.append(trapezoidal_law(THREE, intervals, plain_end=True))
    if theta != 0.5:
        mutants.append(trapezoidal_law(THREE, intervals_of(left)))
    scheduler = TrapezoidalScheduler(mask_token_id=3, masking_schedule=schedule, theta=theta)
    accepts(law, mutants, lambda rounds: generate(scheduler, THREE, num_steps, rounds))


def test_an_interval_has_its_law_with_what_stays_masked() -> None:
    """Where more is cut off, more is revealed: the mass of the rate is part of the law."""
    intervals = intervals_of(times(4))[:1]
    law = trapezoidal_law(THREE, intervals)
    before, middle, after = intervals[0]
    half = middle - 0.5 * (middle - after)
    mutants = [
        ancestral_law(THREE, (before, middle, after)),
        trapezoidal_law(THREE, [(before, middle, after - 0.04)], weight=lambda interval: 2.0),
        trapezoidal_law(THREE, intervals, weight=lambda interval: 1.8),
        ancestral_law(THREE, (before, half)),
    ]
    accepts(law, mutants, lambda rounds: generate(TrapezoidalScheduler(mask_token_id=3), THREE, 4, rounds, run=2))


@pytest.mark.parametrize("num_steps", [2, 3])
def test_extrapolating_runs_have_their_law(num_steps: int) -> None:
    scheduler = ExtrapolatingScheduler(mask_token_id=2, masking_schedule="linear")
    scheduler.set_timesteps(num_steps)
    counts = scheduler.planned_counts(torch.tensor([4])).flatten().tolist()
    assert counts == {2: [2, 2], 3: [2, 1, 1]}[num_steps]
    law = counted_law(FOUR, counts)
    mutants = [
        counted_law(FOUR, counts, weight=lambda first, second: 1.0),
        counted_law(FOUR, counts, weight=lambda first, second: (first + second) ** 2 / (2 * first * second)),
        counted_law(FOUR, counts, subsets=in_order),
    ]
    accepts(law, mutants, lambda rounds: generate(scheduler, FOUR, num_steps, rounds))


def in_order(masked: tuple[int, ...], count: int) -> dict[tuple[int, ...], float]:
    return {masked[:count]: 1.0}


def bit_reversed(masked: tuple[int, ...], count: int) -> dict[tuple[int, ...], float]:
    return {tuple(i for i in (0, 2, 1, 3) if i in masked)[:count]: 1.0}


def test_extrapolation_combines_with_a_fixed_order() -> None:
    law = counted_law(FOUR, (2, 2), subsets=bit_reversed)
    mutants = [counted_law(FOUR, (2, 2)), counted_law(FOUR, (2, 2), lambda n, m: 1.0, bit_reversed)]
    scheduler = ExtrapolatingScheduler(mask_token_id=2, position_order="halton")
    accepts(law, mutants, lambda rounds: generate(scheduler, FOUR, 2, rounds))


# --- what the laws say ------------------------------------------------------------------------------------------------


def weak(num_positions: int, num_tokens: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """A joint law so near to independence that nothing is cut off, and its conditionals."""
    joint = np.random.default_rng(0).uniform(0.8, 1.2, (num_tokens,) * num_positions)
    joint /= joint.sum()
    return joint, conditionals_of(joint)


@pytest.mark.parametrize("theta", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("num_steps", [2, 4, 6])
def test_two_positions_are_exact_in_any_even_number_of_passes(num_steps: int, theta: float) -> None:
    joint, conditionals = weak(2, 3)
    for schedule in ("linear", "cosine"):
        law = trapezoidal_law(conditionals, intervals_of(times(num_steps, schedule), theta))
        assert kl_divergence(joint, law) < 1e-14
    assert kl_divergence(joint, ancestral_law(conditionals, times(num_steps))) > 1e-5


def test_the_error_falls_with_the_fourth_power_of_the_passes() -> None:
    joint, conditionals = weak(3)
    passes = [4, 8, 16]
    laws = [trapezoidal_law(conditionals, intervals_of(times(n))) for n in passes]
    slopes = np.diff(np.log([kl_divergence(joint, law) for law in laws])) / np.diff(np.log(passes))
    assert (slopes < -3.8).all(), slopes
    for other in (ancestral_law, lambda model, left: runge_kutta_law(model, intervals_of(left))):
        errors = [kl_divergence(joint, other(conditionals, times(n))) for n in passes]
        slopes = np.diff(np.log(errors)) / np.diff(np.log(passes))
        assert (np.abs(slopes + 2) < 0.2).all(), slopes


def test_runge_kutta_forgets_what_its_first_pass_has_drawn() -> None:
    """So that at theta = 1/2 it errs as ancestral sampling does with half the passes."""
    joint, conditionals = weak(3)
    for n in (4, 8):
        ours = kl_divergence(joint, runge_kutta_law(conditionals, intervals_of(times(n))))
        assert ours == pytest.approx(kl_divergence(joint, ancestral_law(conditionals, times(n // 2))), rel=0.02)


def test_planned_counts_gain_in_uniform_order_and_lose_in_a_fixed_one() -> None:
    """With positions that depend on one another in pairs."""
    joint = neighbours(4, 2, strength=1.2)
    conditionals = conditionals_of(joint)

    def error(weight: Callable[[int, int], float], subsets: object = None) -> float:
        return kl_divergence(joint, counted_law(conditionals, (2, 2), weight, subsets))

    def plain(first: int, second: int) -> float:
        return 1.0

    assert error(counted_weight) < 0.02 * error(plain) < error(lambda n, m: 2.0)  # 2 is the limit of many positions
    assert error(counted_weight, in_order) > 1.1 * error(plain, in_order)
    for weight in (0.9, 1.1):  # in a fixed order the plain marginal is the best there is
        assert error(lambda n, m, w=weight: w, in_order) > error(plain, in_order)


# --- the mathematics --------------------------------------------------------------------------------------------------


def test_weights() -> None:
    assert weight_of_times(1.0, 0.75, 0.5) == 2.0
    assert weight_of_times(0.6, 0.5, 0.1) == pytest.approx(1 / (2 * 0.2 * 0.8))
    first, second = (torch.tensor(column) for column in zip(*product(range(1, 9), repeat=2), strict=True))
    expected = [counted_weight(n, m) for n, m in zip(first.tolist(), second.tolist(), strict=True)]
    assert weight_of_counts(first, second).tolist() == pytest.approx(expected)
    assert weight_of_counts(torch.tensor([0, 3, 0]), torch.tensor([3, 0, 0])).tolist() == [1.0] * 3
    assert (weight_of_counts(first, second) >= 1).all()


def test_the_extrapolated_marginal() -> None:
    now, before = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.7, 0.1]])
    found = extrapolate_(now, before.clone(), torch.tensor([[2.0]]))
    assert torch.allclose(found, torch.tensor([[0.8, 0.0, 0.3]]))
    assert torch.allclose(extrapolate_(now, before.clone(), torch.tensor([[1.0]])), now)


@pytest.mark.parametrize("num_tokens", [5, 1500])  # drawn in one pass over the tokens, or in chunks
def test_draws_follow_the_extrapolated_marginal(num_tokens: int) -> None:
    """At the middle of each token's share of the noise, whatever the order of the kept rows, tempered alike."""
    generator = torch.Generator().manual_seed(0)
    now, before = (2 * torch.randn(1, 2, num_tokens, generator=generator) for _ in range(2))
    beta, weight = torch.tensor([1.0, 1.7]).double(), torch.tensor([2.0, 1.5]).double()
    p, old = ((logits[0] * beta[:, None]).softmax(-1) for logits in (now, before))
    rates = (weight[:, None] * p - (weight[:, None] - 1) * old).clamp(min=0)
    edges = torch.nn.functional.pad(rates.cumsum(-1) / rates.sum(-1, keepdim=True), (1, 0))
    middles, likely = (edges[:, :-1] + edges[:, 1:]) / 2, rates > 1e-4 * rates.sum(-1, keepdim=True)
    for row in range(2):
        tokens = likely[row].nonzero()[:, 0]
        rows = torch.full_like(tokens, row)
        given = (Marginals(now, 10**6), rows, Marginals(before.flip(1), 10**6), 1 - rows)
        drawn, mass = draw_extrapolated(*given, weight[rows], middles[row, tokens], beta[rows])
        assert torch.equal(drawn, tokens)
        assert torch.allclose(mass, rates[row].sum().double().expand(len(mass)), rtol=1e-5)
        assert 1 < float(mass[0]) < float(weight[row])
        _, mass = draw_extrapolated(*given[:3], rows - row - 1, weight[rows], middles[row, tokens], beta[rows])
        assert torch.allclose(mass, torch.ones_like(mass))  # rows without a first pass
