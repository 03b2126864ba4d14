"""Samplers that take tokens back, black box through `step`, against exact enumeration: one step, and runs of three.

Three positions, three tokens, a joint law whose conditionals given all *other* positions the model knows, at known
positions too. False-alarm rate 1e-6 a test; the rounds are those that reject each mutant with power 0.999, and the
mutants, run as schedulers, are rejected. Seeds are fixed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from chi_square import FALSE_ALARM, count_outcomes, goodness_of_fit, rounds_for_power
from torch import Tensor

from hf_maskdiff import (
    AncestralScheduler,
    EditingScheduler,
    FreeCorrectionScheduler,
    MaskedDiffusionScheduler,
    PathPlanningScheduler,
    ReMDMScheduler,
    revising,
)
from hf_maskdiff.evaluation.laws import Law, State
from hf_maskdiff.evaluation.revising_laws import (
    StepLaw,
    changing_run_law,
    corrected_run_law,
    counted_step_law,
    doubtful_run_law,
    editing_step_law,
    independent_step_law,
    moment_planned_step_law,
    planned_step_law,
    revising_run_law,
)
from hf_maskdiff.masking import mask_ratio

N, V, T = 3, 3, 3
MASK_ID, MASKED = V, -1
OUTCOMES = list(product(range(V), repeat=N))
EMPTY: State = (MASKED,) * N
PROMPT: State = (2, MASKED, MASKED)
MOST = 400_000


def conditionals(state: State) -> np.ndarray:
    """The law of each position given the other known ones, `(N, V)`."""
    table = np.zeros((N, V))
    for x in OUTCOMES:
        weight = 4.0 ** ((x[0] == x[1]) + 2 * (x[1] == x[2])) * (1 + 0.9 * x[0]) * (1 + 0.5 * (x[2] == 1))
        for i in range(N):
            if all(state[j] in (MASKED, x[j]) for j in range(N) if j != i):
                table[i, x[i]] += weight
    return table / table.sum(1, keepdims=True)


MARGINALS = {state: conditionals(state) for state in product(range(MASKED, V), repeat=N)}
LOGITS = torch.zeros((V + 1) ** N, N, V)
for known, marginals in MARGINALS.items():
    place = sum((token if token >= 0 else V) * (V + 1) ** i for i, token in enumerate(known))
    LOGITS[place] = torch.from_numpy(np.log(marginals))


def model(sample: Tensor) -> Tensor:
    return LOGITS[(sample * (V + 1) ** torch.arange(N)).sum(-1)]


def generate(
    scheduler: MaskedDiffusionScheduler, start: State, rounds: int, steps: int, first: int = 0, num_steps: int = T
) -> dict:
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(num_steps)
    sample = torch.tensor(start).masked_fill(torch.tensor(start) == MASKED, MASK_ID).expand(rounds, N)
    memory, ratio = scheduler.new_memory(), start.count(MASKED) / N
    for t in scheduler.timesteps[first : first + steps]:
        sample = scheduler.step(model(sample), t, sample, ratio, generator, memory=memory).prev_sample
    return count_outcomes(sample.numpy(), MASK_ID)


@dataclass
class Case:
    """A scheduler, its law after some steps, the laws of its mutants, and mutants that can be run."""

    scheduler: MaskedDiffusionScheduler
    law: Law
    mutants: dict[str, Law]
    built: dict[str, MaskedDiffusionScheduler] = field(default_factory=dict)
    start: State = EMPTY
    steps: int = T


# --- ReMDM ------------------------------------------------------------------------------------------------------------


def shares(n: int, schedule: str = "linear") -> tuple[float, float]:
    times = torch.tensor([1 - n / T, 1 - (n + 1) / T], dtype=torch.float64)
    before, after = (1 - mask_ratio(schedule, times)).tolist()
    return before, after


def remdm_steps(sigma: Any, compensated: bool = True) -> list[tuple[float, float]]:
    """(reveal, sigma) of each step; `sigma(before, after)`, or a number that is cut to the largest."""
    steps = []
    for n in range(T - 1):
        before, after = shares(n)
        largest = min(1.0, (1 - after) / before) if before else 1.0
        used = min(sigma(before, after) if callable(sigma) else sigma, largest)
        plain = (after - before) / (1 - before)
        reveal = (after - (1 - used) * before) / (1 - before) if compensated else plain
        steps.append((reveal, used))
    return [*steps, (1.0, 0.0)]


def remdm_law(sigma: Any, start: State, steps: int, compensated: bool = True) -> Law:
    each: list[StepLaw] = [independent_step_law(*step) for step in remdm_steps(sigma, compensated)]
    return revising_run_law(MARGINALS.__getitem__, each[:steps], start)


class Uncompensated(ReMDMScheduler):
    """What is taken back is not revealed besides."""

    def probabilities(self, step_index: int) -> tuple[float, float]:
        _, sigma = super().probabilities(step_index)
        before, after = shares(step_index)
        return (after - before) / (1 - before), sigma


class TooOften(ReMDMScheduler):
    """Takes back two fifths more than it should, in a law whose masks are right."""

    def probabilities(self, step_index: int) -> tuple[float, float]:
        _, sigma = super().probabilities(step_index)
        before, after = shares(step_index)
        sigma = min(1.4 * sigma, revising.largest_remasking(before, after))
        return revising.reveal_probability(before, after, sigma), sigma


def largest(before: float, after: float) -> float:
    return min(1.0, (1 - after) / before) if before else 1.0


def remdm(start: State, steps: int, sigma: Any, **config: Any) -> Case:
    config |= {"mask_token_id": MASK_ID}

    def more(before: float, after: float) -> float:
        used = min(sigma(before, after) if callable(sigma) else sigma, largest(before, after))
        return min(1.4 * used, largest(before, after))

    mutants = {
        "nothing taken back": remdm_law(0.0, start, steps),
        "what is taken back is not revealed besides": remdm_law(sigma, start, steps, compensated=False),
    }
    built: dict[str, MaskedDiffusionScheduler] = {
        "nothing taken back": AncestralScheduler(MASK_ID),
        "what is taken back is not revealed besides": Uncompensated(**config),
    }
    if config["remasking"] != "forward_backward":  # there sigma is the largest in one step of the three
        mutants["two fifths more"] = remdm_law(more, start, steps)
        built["two fifths more"] = TooOften(**config)
    return Case(ReMDMScheduler(**config), remdm_law(sigma, start, steps), mutants, built, start, steps)


def conf(start: State) -> Case:
    steps = [(shares(n)[1] - shares(n)[0]) / (1 - shares(n)[0]) for n in range(T - 1)]
    plan = [*((a, largest(*shares(n))) for n, a in enumerate(steps)), (1.0, 0.0)]
    law = doubtful_run_law(MARGINALS.__getitem__, plan, start)
    evenly = [(a, sigma / 2) for a, sigma in plan]
    mutants = {
        "nothing taken back": remdm_law(0.0, start, T),
        "half of sigma": doubtful_run_law(MARGINALS.__getitem__, evenly, start),
        "sigma is no share": revising_run_law(
            MARGINALS.__getitem__, [independent_step_law(*step) for step in plan], start
        ),
    }
    scheduler = ReMDMScheduler(MASK_ID, remasking="conf")
    return Case(scheduler, law, mutants, {"nothing taken back": AncestralScheduler(MASK_ID)}, start)


def counted(start: State, sigma: float) -> Case:
    """`masking_schedule` (1, 2, 3) of three positions, so that each step leaves one mask less."""
    masks = start.count(MASKED)
    table = {2: [1, 2, 2], 3: [1, 2, 3]}[masks]
    left = [masks - k for k in table]
    law_of = {
        factor: revising_run_law(
            MARGINALS.__getitem__,
            [counted_step_law(n, min(1.0, factor * sigma)) for n in left[:-1]] + [counted_step_law(0, 0.0)],
            start,
        )
        for factor in (0.0, 1.0, 1.2)
    }
    scheduler = ReMDMScheduler(MASK_ID, remasking="cap", eta=sigma, exact_order="uniform")
    other = ReMDMScheduler(MASK_ID, remasking="cap", eta=1.2 * sigma, exact_order="uniform")
    mutants = {"nothing taken back": law_of[0.0], "a fifth more": law_of[1.2]}
    return Case(scheduler, law_of[1.0], mutants, {"a fifth more": other}, start)


# --- path planning ----------------------------------------------------------------------------------------------------


def planned(start: State, steps: int = T, **config: Any) -> Case:
    masks = start.count(MASKED)
    left = [masks - (masks * (n + 1)) // T for n in range(T)]
    arguments = {name: config[name] for name in ("eta", "measure", "standing") if name in config}

    def law(**changed: Any) -> Law:
        each = [planned_step_law(n, **(arguments | changed)) for n in left]
        return revising_run_law(MARGINALS.__getitem__, each[:steps], start)

    eta = arguments["eta"]
    mutants = {"nothing taken back": law(eta=0.0), "eta the other way round": law(eta=1 / eta if eta != 1 else 3.0)}
    built: dict[str, MaskedDiffusionScheduler] = {
        "nothing taken back": PathPlanningScheduler(MASK_ID, **(config | {"eta": 0.0})),
        "eta the other way round": PathPlanningScheduler(MASK_ID, **(config | {"eta": 1 / eta if eta != 1 else 3.0})),
    }
    if config.get("measure", "drawn") == "drawn":
        other = not config.get("standing", True)
        mutants["the other tokens are scored"] = law(standing=other)
        built["the other tokens are scored"] = PathPlanningScheduler(MASK_ID, **(config | {"standing": other}))
    return Case(
        PathPlanningScheduler(MASK_ID, rounding="floor_revealed", **config), law(), mutants, built, start, steps
    )


def planned_by_moments(start: State, steps: int = T, eta: float = 0.6, alpha: float = 1.5) -> Case:
    masks = start.count(MASKED)
    left = [masks - (masks * (n + 1)) // T for n in range(T)]

    def law(eta: float = eta, alpha: float = alpha) -> Law:
        middle = [moment_planned_step_law(n, eta, alpha) for n in left[:-1]]
        return revising_run_law(MARGINALS.__getitem__, [*middle, planned_step_law(0, eta)][:steps], start)

    def scheduler(eta: float = eta, alpha: float = alpha) -> PathPlanningScheduler:
        config = {"choice_temperature": alpha, "choice_temperature_schedule": "constant", "measure": "moment"}
        return PathPlanningScheduler(MASK_ID, rounding="floor_revealed", eta=eta, **config)

    mutants = {"eta twice": law(eta=2 * eta), "alpha twice": law(alpha=2 * alpha)}
    built = {"eta twice": scheduler(eta=2 * eta), "alpha twice": scheduler(alpha=2 * alpha)}
    return Case(scheduler(), law(), mutants, built, start, steps)


# --- editing ----------------------------------------------------------------------------------------------------------


def edited(start: State, edits: str, threshold: float = 0.6, editing_threshold: float = 0.3, steps: int = T) -> Case:
    to_mask, masks = edits == "mask", start.count(MASKED)
    # The shares of an even schedule; the last step reveals all, and makes no masks.
    fewest = [masks // T + (n < masks % T) for n in range(T)]

    def law(editing: float, other: bool = False) -> Law:
        middle = [editing_step_law(threshold, editing, max(1, n), to_mask ^ other) for n in fewest[:-1]]
        last = editing_step_law(threshold, 2.0 if to_mask ^ other else editing, N)
        return revising_run_law(MARGINALS.__getitem__, [*middle, last][:steps], start)

    config = {"threshold": threshold, "drawn": True, "editing_threshold": editing_threshold, "edits": edits}
    mutants = {"no edits": law(1.0), "edits at .5": law(0.5), "the other kind of edits": law(editing_threshold, True)}
    built: dict[str, MaskedDiffusionScheduler] = {
        "no edits": EditingScheduler(MASK_ID, **(config | {"editing_threshold": 1.0})),
        "edits at .5": EditingScheduler(MASK_ID, **(config | {"editing_threshold": 0.5})),
        "the other kind of edits": EditingScheduler(
            MASK_ID, **(config | {"edits": "overwrite" if to_mask else "mask"})
        ),
    }
    return Case(EditingScheduler(MASK_ID, **config), law(editing_threshold), mutants, built, start, steps)


def improbable(start: State, editing_threshold: float, threshold: float = 0.6) -> Case:
    """Masked again: what has become improbable."""
    masks = start.count(MASKED)
    fewest = [max(1, masks // T + (n < masks % T)) for n in range(T - 1)]

    def law(editing: float) -> Law:
        def is_doubted(i: int, state: State, p: np.ndarray) -> bool:
            return bool(p[i, state[i]] < editing)

        middle = [editing_step_law(threshold, 0, n, doubt=is_doubted) for n in fewest]
        last = editing_step_law(threshold, 0, N, doubt=lambda i, state, p: False)
        return revising_run_law(MARGINALS.__getitem__, [*middle, last], start)

    def scheduler(editing: float, doubt: str = "improbable") -> EditingScheduler:
        settings = {"drawn": True, "edits": "mask", "threshold": threshold}
        return EditingScheduler(MASK_ID, **settings, doubt=doubt, editing_threshold=editing)

    other = editing_threshold / 2
    plain = edited(start, "mask", threshold, editing_threshold)
    return Case(
        scheduler(editing_threshold),
        law(editing_threshold),
        {"half the threshold": law(other), "other tokens": plain.law},
        {"half the threshold": scheduler(other), "other tokens": scheduler(editing_threshold, "other")},
        start,
    )


CASES = {
    "cap": lambda: remdm(EMPTY, T, 0.4, remasking="cap", eta=0.4),
    "cap, two steps": lambda: remdm(EMPTY, 2, 0.4, remasking="cap", eta=0.4),
    "cap, with a prompt": lambda: remdm(PROMPT, T, 0.4, remasking="cap", eta=0.4),
    "rescale": lambda: remdm(EMPTY, T, lambda a, b: 0.5 * largest(a, b), remasking="rescale", eta=0.5),
    "forward backward": lambda: remdm(EMPTY, T, lambda a, b: (b - a) / a if a else 1.0, remasking="forward_backward"),
    "conf": lambda: conf(EMPTY),
    "conf, with a prompt": lambda: conf(PROMPT),
    "exact counts": lambda: counted(EMPTY, 0.6),
    "planned": lambda: planned(EMPTY, eta=1.0),
    "planned, two steps": lambda: planned(EMPTY, 2, eta=1.5),
    "planned, redrawn": lambda: planned(EMPTY, eta=1.5, standing=False),
    "editing": lambda: edited(EMPTY, "overwrite"),
    "editing, two steps": lambda: edited(EMPTY, "overwrite", steps=2),
    "editing, with a prompt": lambda: edited(PROMPT, "overwrite"),
    "editing to masks": lambda: edited(EMPTY, "mask"),
    "masks for what is improbable": lambda: improbable(EMPTY, 0.4),
    "masks for what is improbable, with a prompt": lambda: improbable(PROMPT, 0.4),
    "planned at random": lambda: planned(EMPTY, eta=2.0, measure="uniform"),
    "planned by moments": lambda: planned_by_moments(EMPTY),
    "planned by moments, two steps": lambda: planned_by_moments(EMPTY, 2),
    "planned by moments, with a prompt": lambda: planned_by_moments(PROMPT),
}


@pytest.mark.parametrize("name", CASES)
def test_law(name: str) -> None:
    case = CASES[name]()
    assert sum(case.law.values()) == pytest.approx(1.0)
    telling = {mutant: law for mutant, law in case.mutants.items() if differs(law, case.law)}
    assert telling
    needed = {mutant: max(20_000, rounds_for_power(case.law, law)) for mutant, law in telling.items()}
    rounds = max(needed.values())
    assert rounds < MOST, needed
    fit = goodness_of_fit(generate(case.scheduler, case.start, rounds, case.steps), case.law)
    assert fit.p_value > FALSE_ALARM
    for mutant, scheduler in case.built.items():
        if mutant in telling:
            found = goodness_of_fit(generate(scheduler, case.start, needed[mutant], case.steps), case.law)
            assert found.p_value < FALSE_ALARM, mutant


@pytest.mark.parametrize("start", [EMPTY, PROMPT])
def test_masks_for_what_has_changed_since_the_last_pass(start: State) -> None:
    """Five steps, so that there are passes to compare that are not those in which tokens were drawn."""
    fewest = [1, 1, 1, 1, N]

    def law(most_change: float, since_drawn: bool = False) -> Law:
        return changing_run_law(MARGINALS.__getitem__, 0.6, most_change, fewest, start, since_drawn)

    right, mutants = law(0.2), [law(0.2, since_drawn=True), law(0.4), law(1.0)]
    telling = [mutant for mutant in mutants if differs(mutant, right)]
    assert len(telling) >= 2
    rounds = max(20_000, *(rounds_for_power(right, mutant) for mutant in telling))
    settings = {"drawn": True, "edits": "mask", "threshold": 0.6, "doubt": "changed"}
    scheduler = EditingScheduler(MASK_ID, **settings, editing_threshold=0.2)
    counts = generate(scheduler, start, rounds, len(fewest), num_steps=len(fewest))
    assert goodness_of_fit(counts, right).p_value > FALSE_ALARM
    for mutant in telling:
        assert goodness_of_fit(counts, mutant).p_value < FALSE_ALARM


def differs(law: Law, other: Law) -> bool:
    return sum(abs(law.get(s, 0) - other.get(s, 0)) for s in {*law, *other}) > 1e-3


# --- FreeCorrection: four positions of two tokens, so that there are means to compare ---------------------------------

FOUR = list(product(range(2), repeat=4))


def judged(state: State) -> np.ndarray:
    """The law of each of four positions given the other known ones, (4, 2)."""
    table = np.zeros((4, 2))
    for x in FOUR:
        weight = 3.0 ** ((x[0] == x[1]) + 2 * (x[1] == x[2]) - (x[2] == x[3])) * (1 + 0.7 * x[0]) * (1 + 0.4 * x[3])
        for i in range(4):
            if all(state[j] in (MASKED, x[j]) for j in range(4) if j != i):
                table[i, x[i]] += weight
    return table / table.sum(1, keepdims=True)


@pytest.mark.parametrize("start", [(MASKED,) * 4, (MASKED, 1, MASKED, MASKED)])
def test_law_of_free_correction(start: State) -> None:
    masks = start.count(MASKED)
    logits = torch.zeros(3**4, 4, 2)
    for state in product(range(MASKED, 2), repeat=4):
        place = sum((token if token >= 0 else 2) * 3**i for i, token in enumerate(state))
        logits[place] = torch.from_numpy(np.log(judged(state)))
    left = [masks - 1 - n for n in range(masks)]
    law, none, more = (corrected_run_law(judged, [(n, budget) for n in left], start) for budget in (1, 0, 2))
    assert sum(law.values()) == pytest.approx(1.0)
    mutants = [other for other in (none, more) if differs(other, law)]
    rounds = max(20_000, *(rounds_for_power(law, mutant) for mutant in mutants))
    assert rounds < MOST

    def counts(shares: list[float]) -> dict:
        scheduler = FreeCorrectionScheduler(
            2,
            masking_schedule="linear",
            corrected_shares=shares,
            correction_start=0.0,
            order="uniform",
            choice_temperature=None,
        )
        scheduler.set_timesteps(masks)
        generator, memory = torch.Generator().manual_seed(0), scheduler.new_memory()
        sample = torch.tensor(start).masked_fill(torch.tensor(start) == MASKED, 2).expand(rounds, 4)
        for t in scheduler.timesteps:
            seen = logits[(sample * 3 ** torch.arange(4)).sum(-1)]
            sample = scheduler.step(seen, t, sample, masks / 4, generator, memory=memory).prev_sample
        return count_outcomes(sample.numpy(), 2)

    assert goodness_of_fit(counts([1 / masks]), law).p_value > FALSE_ALARM
    assert goodness_of_fit(counts([0.0]), law).p_value < FALSE_ALARM
    if differs(more, law):
        assert goodness_of_fit(counts([2 / masks]), law).p_value < FALSE_ALARM
