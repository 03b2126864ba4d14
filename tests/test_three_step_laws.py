"""Runs of three steps against exact enumeration, of what changes the order of positions from step to step.

Five positions of two tokens, revealed one, two and two at a time, and a model that knows no more than the left
neighbour: what one step reveals decides which positions are free in the next, and how sure the model is of them.
False-alarm rate 1e-6; the rounds are those that reject each mutant with power 0.999.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from chi_square import FALSE_ALARM, count_outcomes, goodness_of_fit, rounds_for_power

from hf_maskdiff import ConfidenceScheduler, MaskedDiffusionScheduler, MomentScheduler
from hf_maskdiff.evaluation import laws
from hf_maskdiff.evaluation.adaptive_laws import apart_subsets
from hf_maskdiff.evaluation.laws import Law, State

N, V = 5, 2
MASK_ID = V
COUNTS = [1, 2, 2]
ALPHA = 0.7
# The probability of token 0 at each position, given its left neighbour's token, the mask being the last.
_FIRST = np.array([[0.93, 0.35, 0.62], [0.15, 0.81, 0.44], [0.57, 0.06, 0.71], [0.33, 0.88, 0.52], [0.97, 0.22, 0.39]])
TABLE = np.stack([_FIRST, 1 - _FIRST], -1)
SHARED = {
    "mask_token_id": MASK_ID,
    "codebook_size": V,
    "masking_schedule": np.cumsum(COUNTS).tolist(),
    "choice_temperature": ALPHA,
    "choice_temperature_schedule": "constant",
}
StepLaw = Callable[[np.ndarray, int, tuple[int, ...]], Law]


def denoiser(state: State) -> np.ndarray:
    return np.stack([TABLE[i, state[i - 1]] for i in range(N)])


def run_law(*steps: StepLaw) -> Law:
    """Of two steps, and a last one that draws what is left."""
    rounds = [*steps, lambda p, k, masked: laws.plain_round_law(p)]
    return laws.generation_law(denoiser, rounds, COUNTS, (laws.MASK,) * N)


def generate(scheduler: MaskedDiffusionScheduler, rows: int) -> Mapping[State, int]:
    generator, log_probs = torch.Generator().manual_seed(5), torch.from_numpy(np.log(TABLE)).float()
    scheduler.set_timesteps(len(COUNTS))
    sample, memory = torch.full((rows, N), MASK_ID), scheduler.new_memory()
    for t in scheduler.timesteps:
        logits = log_probs[torch.arange(N), sample.roll(1, dims=1)]
        sample = scheduler.step(logits, t, sample, generator=generator, memory=memory).prev_sample
    return count_outcomes(sample.numpy(), MASK_ID)


def accept(scheduler: MaskedDiffusionScheduler, law: Law, mutants: Mapping[str, Law]) -> None:
    rounds = max(rounds_for_power(law, mutant) for mutant in mutants.values())
    assert rounds < 400_000
    counts = generate(scheduler, rounds)
    assert goodness_of_fit(counts, law).p_value > FALSE_ALARM
    for name, mutant in mutants.items():
        assert goodness_of_fit(counts, mutant).p_value < FALSE_ALARM, name


@pytest.mark.parametrize("distance", [2, 3])
def test_positions_that_lie_apart(distance: int) -> None:
    """Distances are those of the sequence, whichever positions are masked; those of an earlier step do not count."""

    def step(distance: int, of_the_sequence: bool = True) -> StepLaw:
        def law(p: np.ndarray, k: int, masked: tuple[int, ...]) -> Law:
            log_moments, tokens = laws.moments(p, ALPHA)
            places = masked if of_the_sequence else None
            return laws.choose_then_sample_law(apart_subsets(log_moments, k, distance, places), tokens)

        return law

    accept(
        MomentScheduler(**SHARED, min_distance=distance),
        run_law(step(1), step(distance)),
        {
            "no distance": run_law(step(1), step(1)),
            "another distance": run_law(step(1), step(5 - distance)),
            "distances among what is masked": run_law(step(1), step(distance, of_the_sequence=False)),
        },
    )


def test_certainty_weighed_by_frequency_and_place() -> None:
    """The decay counts from the beginning of the row in every step, whatever is masked."""
    prior, limit, decay = np.array([0.75, 0.2]), 0.5, 0.3

    def step(decay: float = decay, prior: np.ndarray = prior, limit: float = limit, by_rank: bool = False) -> StepLaw:
        def law(p: np.ndarray, k: int, masked: tuple[int, ...]) -> Law:
            surprisal = -np.log(prior[p.argmax(1)] + 1e-9)
            places = np.arange(len(p)) if by_rank else np.array(masked)
            log_weights = np.log(np.minimum(limit, p.max(1) * surprisal)) - decay * places
            return laws.choose_then_sample_law(laws.race_subsets(log_weights / ALPHA, k), p)

        return law

    def twice(law: StepLaw) -> Law:
        return run_law(law, law)

    accept(
        ConfidenceScheduler(**SHARED, token_prior=prior, prior_limit=limit, position_decay=decay),
        twice(step()),
        {
            "no decay": twice(step(decay=0)),
            "no prior": twice(step(prior=np.full(V, np.exp(-1)))),
            "no limit": twice(step(limit=10.0)),
            "places among what is masked": twice(step(by_rank=True)),
            "no decay in the second step": run_law(step(), step(decay=0)),
        },
    )
