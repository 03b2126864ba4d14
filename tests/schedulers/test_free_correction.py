"""FreeCorrection: means over a life against a reference, budgets, orders, settings; its law by enumeration."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_maskdiff import FreeCorrectionScheduler, HaltonScheduler, MaskGITScheduler, MomentScheduler
from hf_maskdiff.schedulers.run_memory import RunMemory

MASK, CODES = 12, 10


def logits_of(n: int, rows: int = 4, length: int = 64) -> Tensor:
    return 2 * torch.randn(rows, length, CODES, generator=torch.Generator().manual_seed(n))


def run(scheduler: Any, steps: int = 10, memory: RunMemory | None = None) -> list[Tensor]:
    scheduler.set_timesteps(steps)
    memory, generator = memory or scheduler.new_memory(), torch.Generator().manual_seed(5)
    samples = [torch.full((4, 64), MASK)]
    none = torch.zeros(4, 64, dtype=torch.bool)
    for n, t in enumerate(scheduler.timesteps):
        taken = scheduler.step(logits_of(n), t, samples[-1], 1.0, generator, memory=memory, given=none)
        samples.append(taken.prev_sample)
    return samples


def taken_back(before: Tensor, after: Tensor) -> Tensor:
    return (before != MASK) & (after == MASK)


def test_the_lowest_means_are_taken_back_as_many_as_the_share_says() -> None:
    shares = [0.2, 0.05]
    scheduler = FreeCorrectionScheduler(MASK, corrected_shares=shares, correction_start=0.5)
    samples, lives = run(scheduler), [[[] for _ in range(64)] for _ in range(4)]
    seen = 0
    for n, (before, after) in enumerate(pairwise(samples)):
        probs, back = logits_of(n).softmax(-1), taken_back(before, after)
        for row in range(4):
            for i in range(64):
                token = int(before[row, i])
                lives[row][i] = [] if token == MASK else [*lives[row][i], float(probs[row, i, token])]
            means = {i: sum(life) / len(life) for i, life in enumerate(lives[row]) if life}
            number = 0 if n < 5 else int(shares[n >= 8] * 64)
            number = min(number, len(means), int((after[row] == MASK).sum()))
            lowest = sorted(means, key=lambda i: means[i])[:number]
            assert set(back[row].nonzero()[:, 0].tolist()) == set(lowest)
            seen += number
    assert seen > 20


@pytest.mark.parametrize("order", ["drawn", "moment", "uniform", "confidence", "entropy", "margin", "halton"])
def test_every_order_fills_the_masks_that_it_leaves(order: str) -> None:
    temperature = {"choice_temperature": 3.0 if order in ("drawn", "moment") else None}
    scheduler = FreeCorrectionScheduler(MASK, corrected_shares=[0.2], order=order, **temperature)
    samples = run(scheduler)
    planned = scheduler.planned_counts(torch.full((4,), 64))
    assert torch.equal(torch.stack([(s == MASK).sum(-1) for s in samples[1:]]), 64 - planned.cumsum(0))
    assert any(taken_back(*pair).any() for pair in pairwise(samples))


def test_without_corrections_it_is_the_order_alone() -> None:
    for order, other, temperature in (
        ("drawn", MaskGITScheduler, 3.0),
        ("moment", MomentScheduler, 3.0),
        ("halton", HaltonScheduler, None),
    ):
        ours = FreeCorrectionScheduler(MASK, corrected_shares=[0.0], order=order, choice_temperature=temperature)
        theirs = other(MASK, choice_temperature=temperature)
        assert all(torch.equal(a, b) for a, b in zip(run(ours), run(theirs), strict=True))


def test_without_a_memory_of_lives_nothing_is_taken_back() -> None:
    samples = run(FreeCorrectionScheduler(MASK, corrected_shares=[0.5]), memory=MomentScheduler(MASK).new_memory())
    assert not any(taken_back(*pair).any() for pair in pairwise(samples))


def test_settings() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"corrected_shares": []}, r"`corrected_shares` must be one or more shares in \[0, 1\], got \[\]"),
        ({"corrected_shares": [2.0]}, "`corrected_shares` must be one or more shares"),
        ({"correction_start": 1.5}, r"`correction_start` must be in \[0, 1\], got 1\.5"),
        ({"order": "surest"}, "`order` must be one of"),
    ]
    for config, message in wrong:
        with pytest.raises(ValueError, match=message):
            FreeCorrectionScheduler(MASK, **config)
