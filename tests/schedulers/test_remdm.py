"""ReMDM beside its law: what it doubts, exact counts, its edges, settings."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_maskdiff import AncestralScheduler, ReMDMScheduler, UniformScheduler, revising

MASK, CODES = 12, 10


def logits_of(n: int, rows: int = 4, length: int = 20) -> Tensor:
    return 2 * torch.randn(rows, length, CODES, generator=torch.Generator().manual_seed(n))


def run(scheduler: Any, steps: int = 8, sample: Tensor | None = None, memory: Any = None, **more: Any) -> list[Tensor]:
    scheduler.set_timesteps(steps)
    sample = torch.full((4, 20), MASK) if sample is None else sample
    memory, generator, samples = memory or scheduler.new_memory(), torch.Generator().manual_seed(5), [sample]
    ratio = (sample == MASK).double().mean(-1)
    for n, t in enumerate(scheduler.timesteps):
        taken = scheduler.step(logits_of(n, *sample.shape), t, samples[-1], ratio, generator, memory=memory, **more)
        samples.append(taken.prev_sample)
    return samples


def test_without_remasking_it_is_ancestral_sampling() -> None:
    ours, theirs = run(ReMDMScheduler(MASK, eta=0.0)), run(AncestralScheduler(MASK))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    ours = run(ReMDMScheduler(MASK, eta=0.0, exact_order="uniform", masking_schedule="cosine"))
    theirs = run(UniformScheduler(MASK))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_share_of_masks_follows_the_schedule_whatever_sigma_is() -> None:
    """On average over many positions: 3 standard errors of 40 000 of them."""
    for config in (
        {"eta": 0.3},
        {"remasking": "rescale", "eta": 0.9},
        {"remasking": "forward_backward"},
        {"remasking": "dfm"},
    ):
        scheduler = ReMDMScheduler(MASK, masking_schedule="cosine", **config)
        samples = run(scheduler, 6, torch.full((20, 2000), MASK))
        for n, sample in enumerate(samples[:-1]):
            expected = torch.sin(torch.tensor(torch.pi / 2 * (1 - n / 6))).item()
            error = 3 * (expected * (1 - expected) / sample.numel()) ** 0.5
            assert (sample == MASK).double().mean().item() == pytest.approx(expected, abs=error + 1e-9)


@pytest.mark.parametrize("order", ["uniform", "confidence", "entropy", "halton", "moment"])
@pytest.mark.parametrize("strategy", ["cap", "rescale", "conf", "forward_backward", "dfm"])
def test_exact_counts(strategy: str, order: str) -> None:
    temperature = {"choice_temperature": 3.0} if order == "moment" else {}
    scheduler = ReMDMScheduler(MASK, remasking=strategy, eta=0.4, exact_order=order, **temperature)
    samples = run(scheduler, 10)
    planned = scheduler.planned_counts(torch.full((4,), 20))
    masks = torch.stack([(sample == MASK).sum(-1) for sample in samples[1:]])
    assert torch.equal(masks, 20 - planned.cumsum(0))
    assert any(((after == MASK) & (before != MASK)).any() for before, after in pairwise(samples))


def test_tokens_that_nobody_drew_are_not_doubted() -> None:
    """Such as those that an image began with: they are revealed, and their probabilities are not known."""
    scheduler = ReMDMScheduler(MASK, remasking="conf")
    start = torch.full((4, 20), MASK)
    start[:, :8] = 3
    samples = run(scheduler, 12, start, given=torch.zeros_like(start, dtype=torch.bool))
    assert all(torch.equal(sample[:, :8], start[:, :8]) for sample in samples)
    assert any(((after == MASK) & (before != MASK)).any() for before, after in pairwise(samples))


def test_unlikely_tokens_are_doubted_most() -> None:
    probabilities = torch.tensor([[0.1, 0.9, 0.5, torch.nan, 0.3]])
    shares = revising.doubt_shares(probabilities, torch.tensor([[True, True, False, True, True]]))
    expected = torch.tensor([0.1, 0.9, 0.3]).neg().softmax(0)
    torch.testing.assert_close(shares, torch.tensor([[expected[0], expected[1], 0.0, 0.0, expected[2]]]))
    assert not revising.doubt_shares(probabilities, torch.zeros(1, 5, dtype=torch.bool)).any()


def test_without_a_memory_of_draws_nothing_is_doubted() -> None:
    scheduler = ReMDMScheduler(MASK, remasking="conf")
    samples = run(scheduler, given=torch.zeros(4, 20, dtype=torch.bool), memory=UniformScheduler(MASK).new_memory())
    assert not any(((after == MASK) & (before != MASK)).any() for before, after in pairwise(samples))


def test_the_loop_stays_at_its_share() -> None:
    scheduler = ReMDMScheduler(MASK, remasking="loop", eta=0.2, loop_start=0.7, loop_end=0.2, loop_share=0.5)
    samples = run(scheduler, 20, torch.full((20, 1000), MASK))
    shares = [(sample != MASK).double().mean().item() for sample in samples]
    assert shares[3] == pytest.approx(0.25, abs=0.02)
    assert all(share == pytest.approx(0.5, abs=0.02) for share in shares[6:17])
    assert shares[18] == pytest.approx(0.75, abs=0.02)
    assert shares[20] == 1


@pytest.mark.parametrize("strategy", ["cap", "rescale", "conf", "loop", "forward_backward", "dfm"])
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_probabilities_are_probabilities(strategy: str, steps: int) -> None:
    for schedule in ("linear", "cosine", "arccos", "square", "mdlm_cosine"):
        scheduler = ReMDMScheduler(MASK, remasking=strategy, eta=1.0, masking_schedule=schedule)
        scheduler.set_timesteps(steps)
        for n in range(steps):
            reveal, sigma = scheduler.probabilities(n)
            assert 0 <= reveal <= 1
            assert 0 <= sigma <= 1
        assert (reveal, sigma) == (1.0, 0.0)


def test_of_the_largest_sigma_one_takes_a_share_and_the_other_cuts_at_it() -> None:
    """In the third of four linear steps half of what is revealed can be masked again."""
    for remasking, expected in (("rescale", 0.3), ("cap", 0.5)):
        scheduler = ReMDMScheduler(MASK, remasking=remasking, eta=0.6, masking_schedule="linear")
        scheduler.set_timesteps(4)
        assert scheduler.probabilities(2)[1] == pytest.approx(expected)


def test_shares_of_the_loop() -> None:
    assert revising.loop_shares(1.0, 0.9, 0.5, 0.1, 0.8) == pytest.approx((0.0, 0.16, False))
    assert revising.loop_shares(0.1, 0.05, 0.5, 0.1, 0.8) == pytest.approx((0.8, 0.9, False))


def test_settings() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"remasking": "caps"}, r"`remasking` must be one of .*, got 'caps'\. Pick one"),
        ({"eta": 1.5}, r"`eta` must be in \[0, 1\], got 1\.5\. Try"),
        ({"loop_start": 0.05, "loop_end": 0.5}, "must be two times between 0 and 1, the end first"),
        ({"loop_share": 1.0}, "`loop_share` must be between 0 and 1"),
        ({"exact_order": "drawn"}, "`exact_order` must be one of"),
        ({"exact_order": "uniform", "remasking": "loop"}, "`exact_order` must be None where `remasking` is 'loop'"),
    ]
    for config, message in wrong:
        with pytest.raises(ValueError, match=message):
            ReMDMScheduler(MASK, **config)
