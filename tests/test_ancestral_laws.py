"""Ancestral and first-hitting sampling against exact enumeration, on a model whose tokens depend on one another.

Three positions, three tokens, and a joint law of which the model knows every conditional. The T-step law of ancestral
sampling follows by enumeration over all 4^3 states; first-hitting must give the joint law itself. False-alarm rate
1e-6; the rounds are those that reject each mutant with power 0.999.
"""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from chi_square import FALSE_ALARM, count_outcomes, goodness_of_fit, rounds_for_power

from hf_maskdiff import AncestralScheduler, FirstHittingScheduler, MaskedDiffusionScheduler
from hf_maskdiff.evaluation.laws import Law, State, total_variation
from hf_maskdiff.masking import mask_ratio

N, V = 3, 3
MASK_ID = V
MASKED = -1
OUTCOMES = list(product(range(V), repeat=N))
STATES = list(product(range(MASKED, V), repeat=N))


def joint_law() -> Law:
    """Neighbours like to be equal; no two positions are alike."""
    weights = {x: 4.0 ** ((x[0] == x[1]) + 2 * (x[1] == x[2])) * (1 + x[0]) * (1 + 0.5 * (x[2] == 1)) for x in OUTCOMES}
    total = sum(weights.values())
    return {x: w / total for x, w in weights.items()}


JOINT = joint_law()


def conditionals(state: State) -> np.ndarray:
    """The model: the law of each position given the known ones, `(N, V)`."""
    table = np.zeros((N, V))
    for outcome, chance in JOINT.items():
        if all(known in (MASKED, token) for known, token in zip(state, outcome, strict=True)):
            table[range(N), outcome] += chance
    return table / table.sum(1, keepdims=True)


MARGINALS = {state: conditionals(state) for state in STATES}
# Logits of every state, found by the state's digits in base V + 1, the mask being digit V.
LOGITS = torch.zeros((V + 1) ** N, N, V)
for state, table in MARGINALS.items():
    place = sum((token if token >= 0 else V) * (V + 1) ** i for i, token in enumerate(state))
    LOGITS[place] = torch.from_numpy(np.log(np.maximum(table, 1e-30)))


def model(sample: torch.Tensor) -> torch.Tensor:
    return LOGITS[(sample * (V + 1) ** torch.arange(N)).sum(-1)]


def independent_reveals(state: State, probability: float) -> Law:
    """One ancestral step: every masked position stays, or takes a token of its conditional law."""
    law: Law = {}
    choices = [
        [(token, 1.0)]
        if token >= 0
        else [(MASKED, 1 - probability), *((v, probability * MARGINALS[state][i, v]) for v in range(V))]
        for i, token in enumerate(state)
    ]
    for outcome in product(*choices):
        after = tuple(token for token, _ in outcome)
        law[after] = law.get(after, 0.0) + float(np.prod([chance for _, chance in outcome]))
    return law


def ancestral_law(num_steps: int, schedule: str = "linear", sharpen: float = 1.0) -> Law:
    """The exact law after T steps; `sharpen` multiplies the probability of a reveal, which makes a mutant."""
    times = 1 - torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    left = mask_ratio(schedule, times).tolist()
    law: Law = {(MASKED,) * N: 1.0}
    for before, after in pairwise(left):
        probability = min(1.0, sharpen * (1 - after / before)) if after else 1.0
        following: Law = {}
        for state, chance in law.items():
            for outcome, share in independent_reveals(state, probability).items():
                following[outcome] = following.get(outcome, 0.0) + chance * share
        law = following
    return {state: chance for state, chance in law.items() if chance > 0}


def generate(scheduler: MaskedDiffusionScheduler, num_steps: int, rounds: int, seed: int = 0) -> dict[State, int]:
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(num_steps)
    sample = torch.full((rounds, N), MASK_ID)
    for t in scheduler.timesteps:
        sample = scheduler.step(model(sample), t, sample, generator=generator).prev_sample
    return count_outcomes(sample.numpy(), MASK_ID)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "mdlm_cosine"])
@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_ancestral_sampling_has_its_exact_law(num_steps: int, schedule: str) -> None:
    law = ancestral_law(num_steps, schedule)
    # Mutants: 10 % too eager, another number of steps, another schedule.
    other = "cosine" if schedule == "linear" else "linear"
    mutants = [ancestral_law(num_steps + 1, schedule)]
    if num_steps > 1:
        mutants += [ancestral_law(num_steps, schedule, sharpen=1.1), ancestral_law(num_steps, other)]
    rounds = max(rounds_for_power(law, mutant) for mutant in mutants)
    assert rounds < 2_000_000
    scheduler = AncestralScheduler(mask_token_id=MASK_ID, masking_schedule=schedule)
    counts = generate(scheduler, num_steps, rounds)
    assert goodness_of_fit(counts, law).p_value > FALSE_ALARM
    for mutant in mutants:
        assert goodness_of_fit(counts, mutant).p_value < FALSE_ALARM


def test_first_hitting_has_the_joint_law_and_ancestral_sampling_has_not() -> None:
    mutants = [ancestral_law(1), ancestral_law(N), ancestral_law(8)]
    rounds = max(rounds_for_power(JOINT, mutant) for mutant in mutants)
    counts = generate(FirstHittingScheduler(mask_token_id=MASK_ID), N, rounds)
    assert goodness_of_fit(counts, JOINT).p_value > FALSE_ALARM
    for num_steps in (1, N, 8):
        counts = generate(AncestralScheduler(mask_token_id=MASK_ID), num_steps, rounds)
        assert goodness_of_fit(counts, JOINT).p_value < FALSE_ALARM


@pytest.mark.parametrize("schedule", ["linear", "cosine", "mdlm_cosine"])
def test_the_distance_to_the_joint_law_falls_as_one_over_the_steps(schedule: str) -> None:
    steps = [32, 64, 128]
    distances = [total_variation(ancestral_law(n, schedule), JOINT) for n in steps]
    slope = np.polyfit(np.log(steps), np.log(distances), 1)[0]
    assert -1.06 < slope < -0.9, distances


def test_a_step_may_reveal_nothing_and_rows_differ() -> None:
    scheduler = AncestralScheduler(mask_token_id=MASK_ID)
    scheduler.set_timesteps(50)
    sample = torch.full((400, N), MASK_ID)
    after = scheduler.step(model(sample), scheduler.timesteps[0], sample).prev_sample
    revealed = (after != MASK_ID).sum(-1)
    assert (revealed == 0).sum() > 300
    assert (revealed > 0).any()


def test_the_probability_of_a_reveal_is_the_schedule_s() -> None:
    linear = AncestralScheduler(mask_token_id=MASK_ID)
    linear.set_timesteps(8)
    assert [linear.reveal_probability(n) for n in range(8)] == pytest.approx([1 / (8 - n) for n in range(8)])
    cosine = AncestralScheduler(mask_token_id=MASK_ID, masking_schedule="mdlm_cosine")
    cosine.set_timesteps(2)
    assert cosine.reveal_probability(0) == pytest.approx(np.cos(np.pi / 4))
    assert cosine.reveal_probability(1) == 1.0


@pytest.mark.parametrize("num_masked", [[3, 1, 0], [0, 0, 0]])
def test_first_hitting_reveals_one_position_of_each_row_at_a_time(num_masked: list[int]) -> None:
    scheduler = FirstHittingScheduler(mask_token_id=MASK_ID)
    scheduler.set_timesteps(2)
    scheduler.fit_timesteps(torch.tensor(num_masked))
    assert scheduler.num_inference_steps == max(1, *num_masked)
    plan = scheduler.planned_counts(torch.tensor(num_masked))
    assert plan.sum(0).tolist() == num_masked
    sample = torch.where(torch.arange(N) < torch.tensor(num_masked)[:, None], MASK_ID, 0)
    for t, counts in zip(scheduler.timesteps, plan, strict=True):
        before, sample = sample, scheduler.step(model(sample), t, sample).prev_sample
        assert (before != sample).sum(-1).tolist() == counts.tolist()
    assert not (sample == MASK_ID).any()
