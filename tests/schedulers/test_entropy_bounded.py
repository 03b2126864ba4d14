"""The accepted set against plain Python and diffusers' own rule, the passes of a run, and what may cut a set short."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import exp, fsum, inf, log
from pathlib import Path

import pytest
import torch
from diffusers.schedulers.scheduling_entropy_bound import EntropyBoundScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_maskdiff import ConfidenceScheduler, EntropyBoundedScheduler, MaskGITPipeline

MASK, CODES = 9, 6


def scheduler_of(bound: float, steps: int = 4, **config: object) -> EntropyBoundedScheduler:
    scheduler = EntropyBoundedScheduler(mask_token_id=MASK, codebook_size=CODES, entropy_bound=bound, **config)
    scheduler.set_timesteps(steps)
    return scheduler


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def peaked_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    """Positions from all but certain to all but flat."""
    generator = seeded(seed)
    scale = 8 * torch.rand(*shape, 1, generator=generator)
    return scale * torch.randn(*shape, CODES, generator=generator)


# --- the accepted set -------------------------------------------------------------------------------------------------


def entropy_in_python(logits: list[float], temperature: float, top_k: int | None) -> float:
    kept = sorted((z / temperature for z in logits), reverse=True)[:top_k]
    total = fsum(exp(z - kept[0]) for z in kept)
    return fsum(-exp(z - kept[0]) / total * (z - kept[0] - log(total)) for z in kept)


def accepted_in_python(entropies: dict[int, float], bound: float) -> set[int]:
    """The largest allowed prefix by trying all of them, from the longest; skips a case that rounding could decide."""
    order = sorted(entropies, key=entropies.get)
    for size in range(len(order), 0, -1):
        values = [entropies[i] for i in order[:size]]
        spent = fsum(values) - max(values)
        assume(abs(spent - bound) > 1e-4 or size == 1)
        if spent <= bound or size == 1:
            assume(size == len(order) or entropies[order[size]] - values[-1] > 1e-4)
            return set(order[:size])
    return set()


@given(data=st.data())
@settings(max_examples=150)
def test_a_step_reveals_the_largest_allowed_prefix_of_each_row(data: st.DataObject) -> None:
    rows, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
    logits = peaked_logits(rows, length, seed=data.draw(st.integers(0, 2**32)))
    bound = data.draw(st.floats(0, 12))
    temperature, top_k = data.draw(st.sampled_from([1.0, 0.5, 2.0])), data.draw(st.sampled_from([None, 3]))
    known = data.draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=rows, max_size=rows))
    sample = torch.full((rows, length), MASK).masked_fill(torch.tensor(known), 2)
    scheduler = scheduler_of(bound, temperature=temperature, top_k=top_k)
    after = scheduler.step(logits, 1.0, sample, sample.eq(MASK).double().mean(-1), seeded()).prev_sample
    for row in range(rows):
        entropies = {
            i: entropy_in_python(logits[row, i].tolist(), temperature, top_k)
            for i in range(length)
            if not known[row][i]
        }
        assert set((after != sample)[row].nonzero().flatten().tolist()) == accepted_in_python(entropies, bound)


@pytest.mark.parametrize("bound", [0.0, 0.1, 1.0, 3.0, 20.0])
def test_the_accepted_set_is_that_of_diffusers_rule(bound: float) -> None:
    """diffusers has the rule for uniform corruption: there every position is open in every step."""
    logits = peaked_logits(64, 16)
    theirs = EntropyBoundScheduler(entropy_bound=bound, t_max=1.0, t_min=1.0, num_inference_steps=4)
    accepted = theirs.step(logits, 0, torch.zeros(64, 16, dtype=torch.int64)).accepted_index
    sample = torch.full((64, 16), MASK)
    ours = scheduler_of(bound).step(logits, 1.0, sample).prev_sample != MASK
    assert torch.equal(ours, accepted)
    assert bound in (0.0, 20.0) or len(set(ours.sum(-1).tolist())) > 3  # each row has its own count


def test_certain_positions_are_free() -> None:
    logits = torch.zeros(1, 6, CODES)
    logits[0, [1, 4], 3] = 1e4
    sample = torch.full((1, 6), MASK)
    after = scheduler_of(0.0).step(logits, 1.0, sample).prev_sample
    # Both certain ones, and one more: the last one's own entropy does not count.
    assert (after != MASK).tolist() == [[True, True, False, False, True, False]]
    assert after[0, [1, 4]].tolist() == [3, 3]


def test_no_bound_is_one_pass_and_a_bound_of_zero_one_position_a_step() -> None:
    logits, sample = peaked_logits(3, 10), torch.full((3, 10), MASK)
    at_once = scheduler_of(inf).step(logits, 1.0, sample, generator=seeded()).prev_sample
    # What any scheduler's only step draws from the same noise: each token from its own marginal.
    plain = ConfidenceScheduler(mask_token_id=MASK, codebook_size=CODES)
    plain.set_timesteps(1)
    assert torch.equal(at_once, plain.step(logits, 1.0, sample, generator=seeded()).prev_sample)

    zero, one = scheduler_of(0.0, steps=10), ConfidenceScheduler(mask_token_id=MASK, measure="entropy", rounding="even")
    one.set_timesteps(10)
    left = sample
    for n, t in enumerate(zero.timesteps):
        after = zero.step(logits, t, left, generator=seeded(n)).prev_sample
        assert torch.equal(after, one.step(logits, t, left, generator=seeded(n)).prev_sample)
        assert ((after != left).sum(-1) == 1).all()
        left = after


# --- the last step, the schedule, and an upper bound ------------------------------------------------------------------


def revealed(scheduler: EntropyBoundedScheduler, logits: torch.Tensor, **kwargs: object) -> list[list[int]]:
    """Positions revealed by each row in each step of a run."""
    samples = [torch.full(logits.shape[:2], MASK)]
    for t in scheduler.timesteps:
        samples.append(scheduler.step(logits, t, samples[-1], generator=seeded(), **kwargs).prev_sample)
    return [(before != after).sum(-1).tolist() for before, after in pairwise(samples)]


def test_the_last_step_reveals_all_that_is_left() -> None:
    flat = torch.zeros(2, 12, CODES)  # log 6 nats each
    assert revealed(scheduler_of(0.0), flat) == [[1, 1]] * 3 + [[9, 9]]
    assert revealed(scheduler_of(1.5 * log(6)), flat) == [[2, 2]] * 3 + [[6, 6]]
    assert revealed(scheduler_of(4.5 * log(6)), flat) == [[5, 5], [5, 5], [2, 2], [0, 0]]
    last = scheduler_of(0.0).choose(flat, 0.25, torch.full((2, 12), MASK))
    assert last.count.tolist() == [12, 12]


def test_with_the_schedule_a_step_reveals_what_the_larger_of_both_says() -> None:
    logits = torch.zeros(2, 12, CODES)
    logits[1, :, 0] = 1e4  # a row without doubt
    even = {"follow_schedule": True, "rounding": "even"}
    assert revealed(scheduler_of(0.0, **even), logits) == [[3, 12], [3, 0], [3, 0], [3, 0]]
    assert revealed(scheduler_of(3.5 * log(6), **even), logits) == [[4, 12], [4, 0], [4, 0], [0, 0]]
    # A bound below the plan is the entropy order on the schedule, token by token.
    tight = scheduler_of(0.0, follow_schedule=True)
    order = ConfidenceScheduler(mask_token_id=MASK, codebook_size=CODES, measure="entropy")
    order.set_timesteps(4)
    logits, ours, theirs = peaked_logits(3, 12), torch.full((3, 12), MASK), torch.full((3, 12), MASK)
    for t in tight.timesteps:
        ours = tight.step(logits, t, ours, generator=seeded()).prev_sample
        theirs = order.step(logits, t, theirs, generator=seeded()).prev_sample
        assert torch.equal(ours, theirs)


def test_an_upper_bound_of_the_caller_cuts_the_set_short() -> None:
    logits, sample = torch.zeros(1, 12, CODES), torch.full((1, 12), MASK)
    scheduler = scheduler_of(4.5 * log(6))
    for most, expected in ((3, 3), (5, 5), (8, 5), (30, 5)):
        choice = scheduler.choose(logits, 1.0, sample, max_count=most)
        assert choice.count.tolist() == [expected]
        assert choice.positions.shape[1] == min(most, 12)
        after = scheduler.step(logits, 1.0, sample, max_count=most).prev_sample
        assert (after != MASK).sum() == expected


def test_a_preset_without_a_bound_survives_a_file(tmp_path: Path) -> None:
    scheduler_of(inf).save_pretrained(tmp_path)
    assert EntropyBoundedScheduler.from_pretrained(tmp_path).config.entropy_bound == inf


# --- in the pipeline --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("follow_schedule", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 16, 40])
@pytest.mark.parametrize("bound", [0.0, 4.0, 16.0, inf])
def test_a_pipeline_makes_at_most_as_many_passes_as_it_was_given(
    make_pipeline: Callable[..., MaskGITPipeline], bound: float, steps: int, follow_schedule: bool
) -> None:
    scheduler = EntropyBoundedScheduler(mask_token_id=16, entropy_bound=bound, follow_schedule=follow_schedule)
    pipe, masks = make_pipeline(scheduler), []
    pipe.transformer.register_forward_pre_hook(lambda _, args: masks.append((args[0] == 16).flatten(1).sum(1)))
    latents = pipe([0, 1, 2, 0], num_inference_steps=steps, generator=seeded(), output_type="latent").images
    assert not (latents == 16).any()
    assert pipe.num_timesteps == len(masks) <= min(steps, 16)
    # Every row that is passed has masks, fewer from pass to pass; a row without any takes part in no further pass.
    assert all(int(left.min()) > 0 for left in masks)
    assert all(len(after) <= len(before) for before, after in pairwise(masks))
    assert all(int(after.sum()) < int(before.sum()) for before, after in pairwise(masks))
    if bound == 0.0 and not follow_schedule:
        assert len(masks) == min(steps, 16)
    if bound == inf:
        assert len(masks) == 1
    if bound == 4.0 and steps == 40:
        assert 1 < len(masks) < 16
