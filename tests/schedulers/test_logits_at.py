"""Logits of some positions alone, with `logits_at`: every scheduler takes the step that it takes with all logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_maskdiff import ChooseThenSampleScheduler, ConfidenceScheduler, MaskedDiffusionScheduler, MaskGITScheduler

MASK, CODES, LENGTH, STEPS = 20, 19, 12, 5
ROWS = torch.tensor([12, 5, 0, 1])  # masks of each row; the third is finished


def seeds() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(row) for row in range(len(ROWS))]


def some_tokens() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    known = torch.randint(0, CODES, (len(ROWS), LENGTH), generator=generator)
    order = torch.stack([torch.randperm(LENGTH, generator=generator) for _ in ROWS])
    return known.masked_fill(order < ROWS[:, None], MASK)


def compact(logits: Tensor, sample: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
    """The logits of the masked positions in another order, filled up with nonsense; and where they belong."""
    most = int(ROWS.max()) + 1
    values, places = torch.full((len(rows), most, logits.shape[-1]), torch.nan), torch.full((len(rows), most), -1)
    for i, row in enumerate(rows):
        columns = (sample[row] == MASK).nonzero()[:, 0].flip(0)
        values[i, 1 : len(columns) + 1] = logits[row, columns]
        places[i, 1 : len(columns) + 1] = row * LENGTH + columns
    return values, places


@pytest.mark.parametrize("step", [0, 2, STEPS - 1])
def test_it_is_the_step_with_all_logits(scheduler_class: type[MaskedDiffusionScheduler], step: int) -> None:
    scheduler = scheduler_class(mask_token_id=MASK, codebook_size=CODES, masking_schedule="linear")
    scheduler.set_timesteps(STEPS)
    sample = some_tokens()
    logits = 3 * torch.randn(len(ROWS), LENGTH, CODES + 2, generator=torch.Generator().manual_seed(2))
    t, ratio = scheduler.timesteps[step], torch.full((len(ROWS),), 0.9)
    whole = scheduler.step(logits, t, sample, ratio, seeds()).prev_sample
    values, places = compact(logits, sample, [3, 0, 1])
    some = scheduler.step(values, t, sample, ratio, seeds(), logits_at=places)
    assert torch.equal(some.prev_sample, whole)
    if isinstance(scheduler, ChooseThenSampleScheduler):
        chosen = scheduler.choose(values, t, sample, ratio, seeds(), logits_at=places)
        expected = scheduler.choose(logits, t, sample, ratio, seeds())
        assert torch.equal(chosen.positions[chosen.valid], expected.positions[expected.valid])
        if scheduler.chooses_without_logits:
            ahead = scheduler.choose(None, t, sample, ratio, seeds())
            assert torch.equal(ahead.positions, expected.positions)


def test_the_last_step_reads_none_but_those_of_masked_positions() -> None:
    scheduler = ConfidenceScheduler(mask_token_id=MASK, codebook_size=CODES)
    scheduler.set_timesteps(1)
    values, places = compact(torch.zeros(len(ROWS), LENGTH, CODES), some_tokens(), [0, 1, 3])
    done = scheduler.step(values, 1.0, some_tokens(), 1.0, seeds(), logits_at=places).prev_sample
    assert not (done == MASK).any()


@pytest.mark.parametrize("scheduler_class", [ConfidenceScheduler, MaskGITScheduler])
def test_a_masked_position_without_logits_is_refused(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    scheduler = scheduler_class(mask_token_id=MASK, codebook_size=CODES)
    scheduler.set_timesteps(2)
    values, places = compact(torch.zeros(len(ROWS), LENGTH, CODES), some_tokens(), [0, 1])  # not of the last row
    with pytest.raises(ValueError, match=r"`logits_at` must name every masked position"):
        scheduler.step(values, 1.0, some_tokens(), 1.0, logits_at=places)
    with pytest.raises(ValueError, match=r"`logits_at` must say where each of the logits belongs"):
        scheduler.step(values, 1.0, some_tokens(), 1.0, logits_at=places[:, :-1])


def test_choices_of_some_rows() -> None:
    scheduler = ConfidenceScheduler(mask_token_id=MASK, codebook_size=CODES)
    scheduler.set_timesteps(2)
    logits = torch.randn(len(ROWS), LENGTH, CODES, generator=torch.Generator().manual_seed(3))
    choice = scheduler.choose(logits, 1.0, some_tokens(), 1.0, seeds())
    some = choice.of_rows(torch.tensor([3, 0]))
    assert torch.equal(some.positions, choice.positions[[3, 0]])
    assert torch.equal(some.tokens, choice.tokens[[3, 0]])
    assert some.count.tolist() == [int(choice.count[3]), int(choice.count[0])]
