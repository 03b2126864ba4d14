"""Looking ahead: the candidates of a step, what each is worth, which is taken, and the law of whole runs of the loop.

A model of four positions and three tokens that knows no more than the left neighbour, so that every state can be
enumerated. False-alarm rate 1e-6; the rounds are those that reject each mutant with power 0.999.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from chi_square import FALSE_ALARM, count_outcomes, goodness_of_fit, rounds_for_power
from torch import Tensor

from hf_maskdiff import ConfidenceScheduler, HaltonScheduler, MaskedDiffusionScheduler, MomentScheduler
from hf_maskdiff.evaluation import laws
from hf_maskdiff.evaluation.laws import Law, State
from hf_maskdiff.evaluation.lookahead_laws import best_of_law, information_gain, lookahead_run_law
from hf_maskdiff.pipelines.denoising import denoise

N, V = 4, 3
MASK_ID = V
START: State = (laws.MASK,) * N
PROMPT: State = (laws.MASK, 2, laws.MASK, laws.MASK)
ALPHA = 1.5
# Marginals of each position given its left neighbour's token, the mask being the last.
_ROWS = np.array([[0.90, 0.08, 0.02], [0.60, 0.30, 0.10], [0.40, 0.35, 0.25], [0.25, 0.70, 0.05]])


def _warmed(row: np.ndarray, left: int, position: int) -> np.ndarray:
    powers = np.roll(row, left) ** (1 / ((0.4, 1.0, 2.2, 1.2)[left] + 0.013 * position))
    return powers / powers.sum()


TABLE = np.stack([[_warmed(_ROWS[i], left, i) for left in range(V + 1)] for i in range(N)])
LOG_PROBS = torch.from_numpy(np.log(TABLE)).float()


def model(state: State) -> np.ndarray:
    return np.stack([TABLE[i, state[i - 1]] for i in range(N)])


def logits_of(tokens: Tensor) -> Tensor:
    return LOG_PROBS[torch.arange(N), tokens.flatten(1).roll(1, dims=1)]


def moment(**config: Any) -> MomentScheduler:
    shared = {"mask_token_id": MASK_ID, "codebook_size": V, "choice_temperature": ALPHA}
    return MomentScheduler(choice_temperature_schedule="constant", **(shared | config))


def run(scheduler: MaskedDiffusionScheduler, rows: int, state: State = START) -> dict[State, int]:
    """Outcomes of the pipelines' loop."""
    steps = len(scheduler.config.masking_schedule)
    scheduler.set_timesteps(steps)
    sample = torch.tensor([MASK_ID if token == laws.MASK else token for token in state]).expand(rows, N).clone()
    bar = SimpleNamespace(update=lambda: None)
    filled = denoise(
        lambda tokens, t, rows: logits_of(tokens),
        scheduler,
        sample,
        torch.Generator().manual_seed(0),
        progress_bar=lambda total: nullcontext(bar),
        on_step_end=lambda i, t, sample: sample,
    )
    return count_outcomes(filled.numpy(), MASK_ID)


def moment_law(counts: list[int], start: State, candidates: int, cost: float = 1.0) -> Law:
    steps = [lambda p, k, masked: laws.moment_round_law(p, k, ALPHA)] * len(counts)
    return lookahead_run_law(model, steps, counts, start, candidates, cost)


# --- the mathematics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_candidates", [1, 2, 3])
def test_the_law_of_the_best_is_that_of_all_sets_of_candidates(num_candidates: int) -> None:
    """With equals among the outcomes."""
    law: Law = {(0,): 0.1, (1,): 0.25, (2,): 0.3, (3,): 0.05, (4,): 0.3}
    worth = {(0,): 1.0, (1,): -0.5, (2,): 1.0, (3,): 2.0, (4,): 0.0}
    expected = dict.fromkeys(law, 0.0)
    for drawn in product(law, repeat=num_candidates):
        best = max(drawn, key=lambda outcome: worth[outcome])  # of equals the first
        expected[best] += float(np.prod([law[outcome] for outcome in drawn]))
    best = best_of_law(law, worth, num_candidates)
    assert best == pytest.approx(expected, abs=1e-15)
    assert sum(best.values()) == pytest.approx(1)


def test_information_gain_by_hand() -> None:
    before, after = (2, -1, -1, 0), (2, 1, -1, 0)

    def entropy(row: np.ndarray) -> float:
        return float(-(row * np.log(row)).sum())

    expected = -0.5 * entropy(TABLE[1, 2]) - entropy(TABLE[2, 1])
    assert information_gain(model, before, after, 0.5) == pytest.approx(expected, abs=1e-12)


# --- a step -----------------------------------------------------------------------------------------------------------

SCHEDULERS: dict[str, Callable[..., MaskedDiffusionScheduler]] = {
    "moment": moment,
    "halton": lambda **config: HaltonScheduler(mask_token_id=MASK_ID, codebook_size=V, **config),
    "confidence": lambda **config: ConfidenceScheduler(
        mask_token_id=MASK_ID, codebook_size=V, choice_temperature=0.3, **config
    ),
}


@pytest.mark.parametrize("grid", [(N,), (2, 2)])
@pytest.mark.parametrize("cost", [1.0, 0.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_candidates_scores_and_choice_are_those_of_enumeration(name: str, cost: float, grid: tuple[int, ...]) -> None:
    """Every candidate's worth, computed anew in float64, and the best of each row; rows with a prompt among them."""
    scheduler = SCHEDULERS[name](masking_schedule=[1, 2, 4], num_candidates=5, candidate_cost=cost)
    scheduler.set_timesteps(3)
    sample = torch.full((60, N), MASK_ID)
    sample[::3, 1] = 2
    sample = sample.view(-1, *grid)
    ratio = (sample == MASK_ID).flatten(1).double().mean(-1)
    arguments = (logits_of(sample), scheduler.timesteps[1], sample, ratio)
    candidates = scheduler.propose(*arguments, generator=torch.Generator().manual_seed(3))
    plain = SCHEDULERS[name](masking_schedule=[1, 2, 4])
    plain.set_timesteps(3)
    expected = plain.step(*arguments, generator=torch.Generator().manual_seed(3)).prev_sample
    assert torch.equal(candidates.samples[0], expected)  # the first is the step without looking ahead
    known = sample != MASK_ID
    assert all(torch.equal(one[known], sample[known]) for one in candidates.samples)

    numbers, rows = candidates.to_score()
    best = scheduler.pick(candidates, logits_of(candidates.samples[numbers, rows]), numbers, rows)
    scored = set(zip(rows.tolist(), numbers.tolist(), strict=True))
    several = 0
    for row in range(len(sample)):
        before, *states = (
            tuple(np.where(one.flatten() == MASK_ID, laws.MASK, one.flatten()).tolist())
            for one in (sample[row], *candidates.samples[:, row])
        )
        firsts = {state: states.index(state) for state in reversed(states)}
        assert {number for of_row, number in scored if of_row == row} == set(firsts.values())  # each once
        worth = [information_gain(model, before, state, cost) for state in states]
        assert worth[int(best[row])] == pytest.approx(max(worth), abs=1e-6)
        assert int(best[row]) in firsts.values()
        several += len(firsts) > 1
    assert several > len(sample) // 2 or name == "confidence"


def test_what_leaves_no_mask_is_not_scored_and_the_last_step_has_one_candidate() -> None:
    scheduler = moment(masking_schedule=[2, 4], num_candidates=3)
    scheduler.set_timesteps(2)
    sample = torch.full((2, N), MASK_ID)
    sample[1, :3] = 0
    first, last = (
        scheduler.propose(logits_of(sample), t, sample, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps
    )
    assert first.samples.shape == (3, 2, N)
    assert set(first.to_score()[1].tolist()) == {0}
    assert last.samples.shape == (1, 2, N)
    assert not len(last.to_score()[0])


def test_a_step_without_a_model_says_that_it_does_not_look_ahead() -> None:
    scheduler = moment(masking_schedule=[2, 4], num_candidates=3)
    scheduler.set_timesteps(2)
    sample = torch.full((1, N), MASK_ID)
    with pytest.warns(UserWarning, match="takes the first of 3 candidates"):
        scheduler.step(logits_of(sample), 1.0, sample)


@pytest.mark.parametrize(("setting", "value"), [("num_candidates", 0), ("num_candidates", 1.5), ("candidate_cost", -1)])
def test_settings_that_cannot_work(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"`{setting}` must be"):
        moment(masking_schedule="linear", **{setting: value})


# --- runs of the loop -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [START, PROMPT], ids=["from nothing", "with a prompt"])
@pytest.mark.parametrize(
    ("table", "num_candidates", "cost"),
    [([1, 2, 4], 3, 1.0), pytest.param([2, 3, 4], 2, 0.3, marks=pytest.mark.exhaustive), ([1, 2, 3], 2, 0.0)],
)
def test_three_steps_have_the_law_of_enumeration(
    table: list[int], num_candidates: int, cost: float, start: State
) -> None:
    masks = sum(token == laws.MASK for token in start)
    table = [*(total for total in table[:-1] if total < masks), masks]
    counts = np.diff([0, *table]).tolist()
    law = moment_law(counts, start, num_candidates, cost)
    mutants = {
        "no lookahead": moment_law(counts, start, 1, cost),
        "one candidate less": moment_law(counts, start, num_candidates - 1, cost),
        "one candidate more": moment_law(counts, start, num_candidates + 1, cost),
        "another cost": moment_law(counts, start, num_candidates, 1 - cost),
        "what is unsure": moment_law(counts, start, num_candidates, -5.0),
    }
    rounds = max(rounds_for_power(law, mutant) for mutant in mutants.values())
    assert rounds < 150_000
    observed = run(moment(masking_schedule=table, num_candidates=num_candidates, candidate_cost=cost), rounds, start)
    assert goodness_of_fit(observed, law).p_value > FALSE_ALARM
    for name, mutant in mutants.items():
        assert goodness_of_fit(observed, mutant).p_value < FALSE_ALARM, name


def test_the_law_without_lookahead_is_the_schedulers() -> None:
    counts = [1, 1, 2]
    plain = laws.generation_law(model, [lambda p, k, masked: laws.moment_round_law(p, k, ALPHA)] * 3, counts, START)
    assert moment_law(counts, START, 1) == pytest.approx(plain, abs=1e-14)
