"""A prior of tokens and a decay of positions, against plain Python; and what is refused."""

from __future__ import annotations

import json
from math import exp, inf, log
from pathlib import Path

import pytest
import torch

from hf_maskdiff import ConfidenceScheduler

V, LENGTH = 6, 8
PRIOR = [0.5, 0.2, 0.15, 0.1, 0.05, 0.0]


def logits_of(rows: int = 2) -> torch.Tensor:
    return 2 * torch.randn(rows, LENGTH, V + 1, generator=torch.Generator().manual_seed(4))


def expected(logits: list[float], place: int, limit: float, decay: float) -> float:
    total = sum(exp(z) for z in logits[:V])
    token = max(range(V), key=lambda v: logits[v])
    certainty = min(limit, -exp(logits[token]) / total * log(PRIOR[token] + 1e-9))
    return log(certainty) - decay * place


@pytest.mark.parametrize("limit", [0.3, 1.0, 10.0])
@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_scores(limit: float, decay: float) -> None:
    scheduler = ConfidenceScheduler(V, token_prior=PRIOR, prior_limit=limit, position_decay=decay)
    scheduler.set_timesteps(4)
    sample, logits = torch.full((2, LENGTH), V), logits_of()
    scores = scheduler.score_positions(*scheduler.start_step(logits, 1.0, sample, 1.0, None))
    for row in range(2):
        found = [expected(z, i, limit, decay) for i, z in enumerate(logits[row].tolist())]
        torch.testing.assert_close(scores[row].double(), torch.tensor(found).double(), rtol=1e-5, atol=1e-6)


def test_a_token_that_is_all_of_the_prior_comes_last_and_breaks_nothing() -> None:
    scheduler = ConfidenceScheduler(2, token_prior=[1.0, 1e-3], position_decay=0.5, token_temperature=0)
    scheduler.set_timesteps(3)
    sample = torch.full((1, 3), 2)
    logits = torch.tensor([[[9.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    for t, revealed in zip(scheduler.timesteps, ([2], [0, 2], [0, 1, 2]), strict=True):
        sample = scheduler.step(logits, t, sample).prev_sample
        assert (sample[0] != 2).nonzero()[:, 0].tolist() == revealed


@pytest.mark.parametrize("measure", ["confidence", "margin"])
def test_the_decay_alone(measure: str) -> None:
    sample = torch.full((2, LENGTH), V)
    plain, decayed = (ConfidenceScheduler(V, measure=measure, position_decay=d) for d in (0.0, 0.5))
    scores = []
    for scheduler in (plain, decayed):
        scheduler.set_timesteps(4)
        scores.append(scheduler.score_positions(*scheduler.start_step(logits_of(), 1.0, sample, 1.0, None)))
    torch.testing.assert_close(scores[0].double() - scores[1], 0.5 * torch.arange(LENGTH).double().expand(2, -1))
    # A row of one position after the other, if the decay is large.
    steep = ConfidenceScheduler(V, measure=measure, position_decay=1e3)
    steep.set_timesteps(1)  # all of them, in their order
    assert steep.choose(logits_of(), 1.0, sample, max_count=LENGTH).positions.tolist() == [list(range(LENGTH))] * 2


def test_it_is_saved_as_a_list_and_unsure_tokens_count_too(tmp_path: Path) -> None:
    prior = torch.tensor([2.0, 1.0, 1.0, 0.0, 0.0, 0.0]) / 4
    scheduler = ConfidenceScheduler(V, token_prior=prior, unsure_token_ids=[int(logits_of()[0, 0, :V].argmax())])
    scheduler.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["token_prior"] == [0.5, 0.25, 0.25, 0, 0, 0]
    loaded = ConfidenceScheduler.from_pretrained(tmp_path)
    loaded.set_timesteps(4)
    sample = torch.full((2, LENGTH), V)
    assert loaded.score_positions(*loaded.start_step(logits_of(), 1.0, sample, 1.0, None))[0, 0] == -inf


BAD = [
    ({"token_prior": [0.5, 1.5]}, r"`token_prior` must be frequencies in \[0, 1\], one for each token, got 1.5. Pass"),
    ({"token_prior": [0.5, -0.1]}, "`token_prior` must be frequencies .*, got -0.1"),
    ({"token_prior": [0.5, float("nan")]}, "`token_prior` must be frequencies"),
    ({"token_prior": [[0.5, 0.5]]}, r"`token_prior` must be frequencies .*, got 'shape \(1, 2\)'"),
    ({"token_prior": []}, r"`token_prior` must be frequencies .*, got 'shape \(0,\)'"),
    ({"token_prior": [[0.5], [0.5, 0.1]]}, "`token_prior` must be frequencies"),
    ({"token_prior": "common"}, "`token_prior` must be frequencies .*, got 'common'"),
    ({"token_prior": 0.5}, r"`token_prior` must be frequencies .*, got 'shape \(\)'"),
    ({"token_prior": PRIOR, "measure": "margin"}, "`measure` must be 'confidence' with a `token_prior`, got 'margin'"),
    ({"prior_limit": 0}, "`prior_limit` must be a number above 0, got 0. Try"),
    ({"position_decay": -1}, "`position_decay` must be a number of at least 0, got -1. Try"),
    ({"position_decay": inf}, "`position_decay` must be a number of at least 0, got inf"),
    ({"position_decay": 0.1, "measure": "entropy"}, "`position_decay` must be 0 for the measure 'entropy', got 0.1"),
]


@pytest.mark.parametrize(("config", "message"), BAD)
def test_settings_that_cannot_work(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConfidenceScheduler(V, **config)


def test_a_prior_for_fewer_tokens_than_may_be_drawn() -> None:
    scheduler = ConfidenceScheduler(V, token_prior=PRIOR[:4])
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=r"`token_prior` must be one for each of 6 tokens, got 4\. Count"):
        scheduler.step(logits_of(), 1.0, torch.full((2, LENGTH), V))
    few = ConfidenceScheduler(V, codebook_size=4, token_prior=PRIOR)  # more are no harm
    few.set_timesteps(1)
    assert few.step(logits_of(), 1.0, torch.full((2, LENGTH), V)).prev_sample.max() < 4
