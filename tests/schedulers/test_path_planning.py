"""Path planning beside its law: measures, a planner, settings."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_maskdiff import ConfidenceScheduler, MomentScheduler, PathPlanningScheduler, UniformScheduler

MASK, CODES = 12, 10


def logits_of(n: int, rows: int = 4, length: int = 20) -> Tensor:
    return 2 * torch.randn(rows, length, CODES, generator=torch.Generator().manual_seed(n))


def run(scheduler: Any, steps: int = 8, sample: Tensor | None = None) -> list[Tensor]:
    scheduler.set_timesteps(steps)
    sample = torch.full((4, 20), MASK) if sample is None else sample
    memory, generator, samples = scheduler.new_memory(), torch.Generator().manual_seed(5), [sample]
    for n, t in enumerate(scheduler.timesteps):
        taken = scheduler.step(logits_of(n, *sample.shape), t, samples[-1], 1.0, generator, memory=memory)
        samples.append(taken.prev_sample)
    return samples


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def took_back(samples: list[Tensor]) -> bool:
    return any(((after == MASK) & (before != MASK)).any() for before, after in pairwise(samples))


@pytest.mark.parametrize("measure", ["confidence", "margin", "entropy"])
def test_eta_of_zero_is_the_order_alone(measure: str) -> None:
    ours = run(PathPlanningScheduler(MASK, eta=0.0, measure=measure, token_temperature=0.5))
    theirs = run(ConfidenceScheduler(MASK, masking_schedule="linear", measure=measure, token_temperature=0.5))
    assert same(ours, theirs)


def test_eta_of_zero_with_the_moment_order_is_the_moment_sampler() -> None:
    ours = run(PathPlanningScheduler(MASK, eta=0.0, measure="moment", choice_temperature=3.0))
    assert same(ours, run(MomentScheduler(MASK, masking_schedule="linear", choice_temperature=3.0)))


def test_eta_of_zero_at_random_reveals_at_random() -> None:
    ours = run(PathPlanningScheduler(MASK, eta=0.0, measure="uniform"))
    assert same(ours, run(UniformScheduler(MASK, masking_schedule="linear")))


@pytest.mark.parametrize("measure", ["drawn", "confidence", "margin", "entropy", "moment", "uniform"])
@pytest.mark.parametrize("standing", [True, False])
def test_every_measure_takes_back(measure: str, standing: bool) -> None:
    temperature = {"choice_temperature": 3.0} if measure == "moment" else {}
    scheduler = PathPlanningScheduler(MASK, eta=3.0, measure=measure, standing=standing, **temperature)
    samples = run(scheduler)
    assert took_back(samples)
    planned = scheduler.planned_counts(torch.full((4,), 20))
    assert torch.equal(torch.stack([(s == MASK).sum(-1) for s in samples[1:]]), 20 - planned.cumsum(0))


def test_the_least_probable_standing_tokens_go() -> None:
    """One step by hand: standing tokens with given log-probabilities against confidences."""
    scheduler = PathPlanningScheduler(
        MASK, eta=2.0, measure="confidence", token_temperature=0, masking_schedule="linear"
    )
    scheduler.set_timesteps(4)
    probs = torch.full((1, 4, CODES), 0.02)
    for place, (token, p) in enumerate([(1, 0.5), (2, 0.82), (3, 0.6), (4, 0.3)]):
        probs[0, place] = (1 - p) / (CODES - 1)
        probs[0, place, token] = p
    sample = torch.tensor([[1, 2, MASK, MASK]])
    given = torch.zeros_like(sample, dtype=torch.bool)
    # Scores 2 log .5 = -1.39, 2 log .82 = -.40, log .6 = -.51, log .3 = -1.20; one mask stays after the third step.
    after = scheduler.step(probs.log(), 0.5, sample, given=given).prev_sample
    assert after.tolist() == [[MASK, 2, 3, 4]]
    given[0, 0] = True  # then three of the positions are free, and the least likely of them waits
    after = scheduler.step(probs.log(), 0.5, sample, given=given).prev_sample
    assert after.tolist() == [[1, 2, 3, MASK]]


def test_a_planner_scores_what_stands_there() -> None:
    """One that doubts even tokens has them taken back; it sees no mask, and all given tokens."""
    seen: list[Tensor] = []

    def planner(tokens: Tensor) -> Tensor:
        seen.append(tokens)
        logits = torch.zeros(*tokens.shape, CODES)
        logits[..., ::2] = -8.0
        return logits

    scheduler = PathPlanningScheduler(mask_token_id=MASK, eta=1.0).with_planner(planner)
    sample = torch.full((4, 20), MASK)
    sample[:, :2] = 4
    samples = run(scheduler, 8, sample)
    assert len(seen) == 7  # the last step takes nothing back
    assert all(not (tokens == MASK).any() and (tokens[:, :2] == 4).all() for tokens in seen)
    assert took_back(samples)
    assert torch.equal(samples[-1][:, :2], sample[:, :2])
    gone = torch.cat([before[(after == MASK) & (before != MASK)] for before, after in pairwise(samples)])
    assert (gone % 2 == 0).double().mean() > 0.7
    kept = scheduler.with_sampling_temperature(0.5)
    assert kept.planner is planner
    assert scheduler.with_planner(None).planner is None


def test_temperatures() -> None:
    drawn = PathPlanningScheduler(mask_token_id=MASK)
    assert drawn.with_sampling_temperature(0.5).config.temperature == 0.5
    greedy = drawn.with_sampling_temperature(0).config
    assert (greedy.measure, greedy.token_temperature) == ("drawn", 0)
    same_order = PathPlanningScheduler(MASK, measure="confidence", token_temperature=0)
    assert same(run(PathPlanningScheduler(MASK, token_temperature=0)), run(same_order))
    assert (
        PathPlanningScheduler(mask_token_id=MASK, measure="margin")
        .with_sampling_temperature(0)
        .config.token_temperature
        == 0
    )
    moment = PathPlanningScheduler(mask_token_id=MASK, measure="moment", choice_temperature=2.0)
    assert moment.with_sampling_temperature(0).config.top_k == 1


def test_settings() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"eta": -1.0}, r"`eta` must be a number of at least 0, got -1\.0"),
        ({"measure": "halton"}, "`measure` must be one of"),
        ({"token_temperature": 0.5}, "`token_temperature` must be 0 or 1 where the measure is 'drawn'"),
    ]
    for config, message in wrong:
        with pytest.raises(ValueError, match=message):
            PathPlanningScheduler(MASK, **config)
