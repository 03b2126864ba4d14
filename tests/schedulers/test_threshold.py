"""Which positions pass a threshold or a factor, against plain Python; the least that a step reveals; tokens."""

from __future__ import annotations

from itertools import pairwise
from math import exp, fsum, log
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_maskdiff import ConfidenceScheduler, MaskGITScheduler, ThresholdScheduler

MASK, CODES = 9, 6


def scheduler_of(steps: int = 4, **config: object) -> ThresholdScheduler:
    scheduler = ThresholdScheduler(mask_token_id=MASK, codebook_size=CODES, **config)
    scheduler.set_timesteps(steps)
    return scheduler


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def peaked_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    """Positions from all but certain to all but flat."""
    generator = seeded(seed)
    scale = 8 * torch.rand(*shape, 1, generator=generator)
    return scale * torch.randn(*shape, CODES, generator=generator)


def certainty_in_python(logits: list[float], measure: str, temperature: float) -> float:
    """Larger is surer: a probability, or minus an entropy."""
    total = fsum(exp((z - max(logits)) / temperature) for z in logits)
    probs = sorted((exp((z - max(logits)) / temperature) / total for z in logits), reverse=True)
    if measure == "entropy":
        return fsum(p * log(p) for p in probs if p)
    return probs[0] - (probs[1] if measure == "margin" else 0)


@given(data=st.data())
@settings(max_examples=150)
def test_a_step_reveals_what_is_sure_in_each_row_and_never_less_than_the_least(data: st.DataObject) -> None:
    rows, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
    logits = peaked_logits(rows, length, seed=data.draw(st.integers(0, 2**32)))
    measure = data.draw(st.sampled_from(["confidence", "margin", "entropy"]))
    by_factor = measure != "entropy" and data.draw(st.booleans())
    value = data.draw(st.floats(0.05, 4 if by_factor or measure == "entropy" else 1))
    fewest, temperature = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1.0, 0.5, 2.0]))
    known = data.draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=rows, max_size=rows))
    sample = torch.full((rows, length), MASK).masked_fill(torch.tensor(known), 2)
    rule = {"threshold": None, "factor": value} if by_factor else {"threshold": value}
    scheduler = scheduler_of(measure=measure, min_count=fewest, temperature=temperature, **rule)
    after = scheduler.step(logits, 1.0, sample, generator=seeded()).prev_sample
    for row in range(rows):
        sure = {
            i: certainty_in_python(logits[row, i].tolist(), measure, temperature)
            for i in range(length)
            if not known[row][i]
        }
        order = sorted(sure, key=sure.get, reverse=True)
        if by_factor:
            room = [value - (r + 1) * (1 - sure[i]) for r, i in enumerate(order, start=1)]
        else:
            room = [sure[i] - (-value if measure == "entropy" else value) for i in order]
        count = max(fewest, *[r for r, left in enumerate(room, start=1) if left > 0], 0)
        assume(all(abs(left) > 1e-4 for left in room))
        assume(not fewest < len(order) or sure[order[fewest - 1]] - sure[order[fewest]] > 1e-4)
        assert set((after != sample)[row].nonzero().flatten().tolist()) == set(order[:count])


def revealed(scheduler: ThresholdScheduler, logits: torch.Tensor, **kwargs: object) -> list[list[int]]:
    """Positions revealed by each row in each step of a run."""
    samples = [torch.full(logits.shape[:2], MASK)]
    for t in scheduler.timesteps:
        samples.append(scheduler.step(logits, t, samples[-1], generator=seeded(), **kwargs).prev_sample)
    return [(before != after).sum(-1).tolist() for before, after in pairwise(samples)]


def test_the_last_step_reveals_all_that_is_left() -> None:
    flat = torch.zeros(2, 12, CODES)
    assert revealed(scheduler_of(threshold=0.9), flat) == [[1, 1]] * 3 + [[9, 9]]
    assert revealed(scheduler_of(threshold=0.1), flat) == [[12, 12]] + [[0, 0]] * 3
    assert revealed(scheduler_of(threshold=0.0), flat)[0] == [12, 12]
    assert revealed(scheduler_of(threshold=0.9, min_count=5), flat) == [[5, 5], [5, 5], [2, 2], [0, 0]]


def test_what_nothing_exceeds() -> None:
    """A threshold of 1 for probabilities and of 0 for entropies, even where a token is certain."""
    certain = torch.zeros(1, 6, CODES)
    certain[..., 3] = 1e4
    for config in ({"threshold": 1.0}, {"threshold": 1.0, "measure": "margin"}, {"threshold": 0, "measure": "entropy"}):
        assert revealed(scheduler_of(**config), certain) == [[1], [1], [1], [3]]
    assert revealed(scheduler_of(threshold=1.0 - 1e-6), certain)[0] == [6]


def test_on_schedule_a_step_reveals_its_share_however_far_a_row_is_ahead() -> None:
    logits = torch.zeros(2, 12, CODES)
    logits[1, :5, 0] = 1e4  # a row with five that are sure
    on = {"threshold": 0.9, "follow_schedule": True, "rounding": "even"}
    assert revealed(scheduler_of(**on), logits) == [[3, 5], [3, 3], [3, 3], [3, 1]]
    assert revealed(scheduler_of(steps=5, **on), logits) == [[3, 5], [3, 3], [2, 2], [2, 2], [2, 0]]
    table = on | {"rounding": "floor_masked", "masking_schedule": [1, 4, 12]}
    assert revealed(scheduler_of(steps=3, **table), logits) == [[1, 5], [3, 3], [8, 4]]
    # Half of the positions were known when the run began.
    half = torch.tensor([0.5, 1.0])
    assert revealed(scheduler_of(**on), logits, starting_mask_ratio=half) == [[2, 5], [2, 3], [1, 3], [7, 1]]
    alone = revealed(scheduler_of(**on), logits[:1], starting_mask_ratio=0.5)
    assert alone == [[2], [2], [1], [7]]


def test_an_upper_bound_of_the_caller_keeps_the_surest() -> None:
    logits, sample = peaked_logits(1, 12), torch.full((1, 12), MASK)
    scheduler = scheduler_of(threshold=0.3)
    everything = scheduler.choose(logits, 1.0, sample)
    count = int(everything.count)
    assert 4 < count < 12
    for most in (1, 3, count, 30):
        choice = scheduler.choose(logits, 1.0, sample, max_count=most)
        assert choice.count.tolist() == [min(most, count)]
        assert torch.equal(choice.positions[0, : min(most, count)], everything.positions[0, : min(most, count)])


def test_greedy_and_drawn_tokens_stand_at_the_same_positions() -> None:
    logits, sample = peaked_logits(8, 12), torch.full((8, 12), MASK)
    greedy = scheduler_of(threshold=0.4, token_temperature=0).step(logits, 1.0, sample).prev_sample
    drawn = scheduler_of(threshold=0.4).step(logits, 1.0, sample, generator=seeded()).prev_sample
    assert torch.equal(greedy == MASK, drawn == MASK)
    assert not torch.equal(greedy, drawn)
    assert torch.equal(greedy[greedy != MASK], logits.argmax(-1)[greedy != MASK])


def test_of_positions_equally_sure_the_first_are_revealed() -> None:
    """With `top_k=1` every token drawn is certain; SDAR's original leaves the order of equals to `torch.topk`."""
    logits, sample = peaked_logits(2, 9), torch.full((2, 9), MASK)
    sample[:, [1, 2]] = 4
    scheduler = scheduler_of(threshold=1.0, min_count=3, measure="drawn", top_k=1)
    after = scheduler.step(logits, 1.0, sample, generator=seeded()).prev_sample
    expected = sample.clone()
    expected[:, [0, 3, 4]] = logits.argmax(-1)[:, [0, 3, 4]]
    assert torch.equal(after, expected)


def test_drawn_tokens_that_are_sure_are_those_of_maskgit() -> None:
    """Both draw everywhere with the same noise, and MaskGIT without Gumbel noise keeps the most probable draws."""
    logits, sample = peaked_logits(64, 12), torch.full((64, 12), MASK)
    theirs = MaskGITScheduler(mask_token_id=MASK, codebook_size=CODES, choice_temperature=0.0)
    theirs.set_timesteps(4)
    drawn = theirs.step(logits, 1.0, sample, generator=seeded()).pred_original_sample
    probability = logits.softmax(-1).gather(-1, drawn[..., None])[..., 0]
    ours = scheduler_of(threshold=0.5, measure="drawn").step(logits, 1.0, sample, generator=seeded()).prev_sample
    best = torch.zeros_like(drawn, dtype=torch.bool).scatter_(1, probability.argmax(-1, keepdim=True), True)
    assert torch.equal(ours, torch.where((probability > 0.5) | best, drawn, MASK))


def test_a_sampling_temperature_of_a_call() -> None:
    """It is that of the draws; what counts as sure it changes only where sure is what was drawn."""
    plain, drawn = scheduler_of(threshold=0.5), scheduler_of(threshold=0.5, measure="drawn", temperature=0.7)
    config: Any = plain.with_sampling_temperature(0.3).config
    assert (config.token_temperature, config.temperature) == (0.3, 1.0)
    config = drawn.with_sampling_temperature(0.3).config
    assert (config.token_temperature, config.temperature, config.measure) == (1.0, 0.3, "drawn")
    config = drawn.with_sampling_temperature(0).config
    assert (config.token_temperature, config.temperature, config.measure) == (0, 0.7, "confidence")


def test_the_order_is_that_of_certainty() -> None:
    """Partial caching draws the surest first."""
    logits, sample = peaked_logits(3, 12), torch.full((3, 12), MASK)
    ours = scheduler_of(threshold=0.2, min_count=12).choose(logits, 1.0, sample)
    surest = ConfidenceScheduler(mask_token_id=MASK, codebook_size=CODES, masking_schedule=[12, 13])
    surest.set_timesteps(2)
    assert torch.equal(ours.positions, surest.choose(logits, 1.0, sample).positions)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"threshold": -0.5}, r"`threshold` must be a number of at least 0, got -0\.5\. Try 0\.9"),
        ({"threshold": None}, "`threshold` must be a number of at least 0, got None"),
        ({"threshold": float("nan")}, "`threshold` must be a number of at least 0, got nan"),
        ({"threshold": "high"}, "`threshold` must be a number of at least 0, got 'high'"),
        ({"factor": 1.0}, r"`threshold` must be None where `factor` is given, got 0\.9\. Pass `threshold=None`"),
        ({"threshold": None, "factor": 0}, "`factor` must be a number above 0, got 0"),
        ({"threshold": None, "factor": 1.0, "measure": "entropy"}, "`measure` must be a probability .*, got 'entropy'"),
        ({"measure": "sure"}, "`measure` must be one of .*'drawn'.*, got 'sure'"),
        ({"min_count": 0}, "`min_count` must be an integer of at least 1, got 0"),
        ({"measure": "drawn", "token_temperature": 0}, "`token_temperature` must be 1 where .*, got 0. Pass `temp"),
        ({"token_temperature": -1}, "`token_temperature` must be a number of at least 0, got -1"),
        ({"block_length": 0}, "`block_length` must be an integer of at least 1, got 0"),
    ],
)
def test_settings_that_cannot_work(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scheduler_of(**config)
