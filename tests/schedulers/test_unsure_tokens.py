"""Tokens that make a position unsure: against LLaDA's loop, with the confidence of an end of text set to zero."""

from __future__ import annotations

import pytest
import torch

from hf_maskdiff import ConfidenceScheduler, ThresholdScheduler
from hf_maskdiff.sampling import Marginals

MASK, ENDS, LENGTH = 12, [3, 7], 14


def logits_of(sample: torch.Tensor) -> torch.Tensor:
    """Of a model whose ends of text are often likeliest, and surer than all else."""
    generator = torch.Generator().manual_seed(0)
    base = 2 * torch.randn(LENGTH, MASK + 1, generator=generator)
    base[::3, 3] += 6
    base[1::4, 7] += 6
    table = torch.randn(MASK + 1, MASK + 1, generator=generator)
    return base + table[sample.roll(1, 1)] + table.T[sample.roll(-1, 1)]


def llada(sample: torch.Tensor, steps: int, zero: bool) -> list[torch.Tensor]:
    """As its appendix B.4 describes it: the most probable token everywhere, the confidence of an end is zero."""
    states, masked = [], int((sample == MASK).sum())
    for step in range(steps):
        logits = logits_of(sample)[0].double()
        logits[:, MASK] = -torch.inf
        tokens = logits.argmax(-1)
        confidence = logits.softmax(-1).gather(1, tokens[:, None])[:, 0]
        if zero:
            confidence[(tokens == 3) | (tokens == 7)] = 0
        confidence[sample[0] != MASK] = -torch.inf
        count = masked // steps + (step < masked % steps)
        sample = sample.clone()
        chosen = confidence.sort(descending=True, stable=True).indices[:count]
        sample[0, chosen] = tokens[chosen]
        states.append(sample)
    return states


@pytest.mark.parametrize("steps", [3, 5, 14])
@pytest.mark.parametrize("zero", [False, True])
def test_the_confidence_of_an_end_of_text_is_zero_as_in_llada(steps: int, zero: bool) -> None:
    given = {"rounding": "even", "masking_schedule": "linear", "token_temperature": 0}
    scheduler = ConfidenceScheduler(mask_token_id=MASK, **given, unsure_token_ids=ENDS if zero else None)
    scheduler.set_timesteps(steps)
    sample = start = torch.full((1, LENGTH), MASK)
    for t, expected in zip(scheduler.timesteps, llada(start, steps, zero), strict=True):
        sample = scheduler.step(logits_of(sample), t, sample).prev_sample
        assert torch.equal(sample, expected)
    assert set(ENDS) & set(sample[0].tolist())  # they are written, if there is nothing else
    assert not torch.equal(llada(start, steps, True)[0], llada(start, steps, False)[0])


@pytest.mark.parametrize("measure", ["confidence", "margin", "entropy"])
def test_unsure_positions_come_last_with_every_measure(measure: str) -> None:
    sample = torch.full((1, LENGTH), MASK)
    config = {"measure": measure, "mask_token_id": MASK}
    scheduler = ConfidenceScheduler(**config, choice_temperature=2.0, unsure_token_ids=[*ENDS, 10_000])  # 10,000: none
    scheduler.set_timesteps(1)  # all positions, in their order
    order = scheduler.choose(logits_of(sample), 1.0, sample, max_count=LENGTH).positions[0]
    unsure = torch.isin(logits_of(sample)[0, :, :MASK].argmax(-1), torch.tensor(ENDS))
    assert 0 < unsure.sum() < LENGTH
    assert unsure[order].tolist() == sorted(unsure.tolist())


@pytest.mark.parametrize("measure", ["confidence", "margin", "entropy", "drawn"])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_an_unsure_position_passes_no_threshold(measure: str, threshold: float) -> None:
    """0.0 is passed by every certainty but zero; entropies must be below the threshold, so 0.3 stands for 5 nats."""
    sample = torch.full((1, LENGTH), MASK)
    if measure == "entropy":
        threshold = 5.0
    config = {"mask_token_id": MASK, "measure": measure, "threshold": threshold}
    sure, unsure = (ThresholdScheduler(**config, unsure_token_ids=ids) for ids in (None, ENDS))
    revealed = []
    for scheduler in (sure, unsure):
        scheduler.set_timesteps(LENGTH)
        generator = torch.Generator().manual_seed(3)
        revealed.append(scheduler.step(logits_of(sample), 1.0, sample, generator=generator).prev_sample[0])
    if measure == "drawn":
        kept = (revealed[0] != MASK) & ~torch.isin(revealed[0], torch.tensor(ENDS))
    else:
        ends = torch.isin(logits_of(sample)[0, :, :MASK].argmax(-1), torch.tensor(ENDS))
        kept = (revealed[0] != MASK) & ~ends
    assert 0 < kept.sum() < (revealed[0] != MASK).sum()
    assert torch.equal(revealed[1], revealed[0].where(kept, MASK))


def test_a_tie_with_an_unsure_token_is_unsure() -> None:
    logits = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 0.9, 0.0], [0.9, 1.0, 0.0]]])
    scheduler = ConfidenceScheduler(mask_token_id=2, unsure_token_ids=[1])
    scheduler.set_timesteps(3)
    marginals, context = scheduler.start_step(logits, 1.0, torch.full((1, 3), 2), 1.0, None)
    assert isinstance(marginals, Marginals)
    assert scheduler.score_positions(marginals, context).isneginf().tolist() == [[True, False, True]]


@pytest.mark.parametrize("scheduler_class", [ConfidenceScheduler, ThresholdScheduler])
@pytest.mark.parametrize("value", [3, "</s>", [-1], [1.5], [True]])
def test_what_is_no_list_of_tokens(scheduler_class: type, value: object) -> None:
    with pytest.raises(ValueError, match=r"`unsure_token_ids` must be token ids, in a list, got .* Pass for example"):
        scheduler_class(mask_token_id=MASK, unsure_token_ids=value)
