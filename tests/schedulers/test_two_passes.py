"""What the second pass of an interval remembers of the first: row by row, and no more than it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_maskdiff import (
    AncestralScheduler,
    ExtrapolatingScheduler,
    HaltonScheduler,
    KLASSScheduler,
    MaskedDiffusionScheduler,
    MomentScheduler,
    TrapezoidalScheduler,
    UniformScheduler,
)
from hf_maskdiff.orders import ranking
from hf_maskdiff.sampling import first_rows
from hf_maskdiff.schedulers import scheduling_extrapolating, scheduling_trapezoidal
from hf_maskdiff.schedulers.extrapolation import weight_of_counts
from hf_maskdiff.schedulers.two_passes import FirstPass

MASK, CODES, LENGTH = 9, 6, 12
MAKERS: dict[str, Callable[..., MaskedDiffusionScheduler]] = {
    "trapezoidal": TrapezoidalScheduler,
    "trapezoidal, cosine": lambda mask, **more: TrapezoidalScheduler(
        mask, masking_schedule="cosine", theta=0.3, top_k=4, **more
    ),
    "uniform": ExtrapolatingScheduler,
    "halton": lambda mask, **more: ExtrapolatingScheduler(mask, position_order="halton", **more),
    "moment": lambda mask, **more: ExtrapolatingScheduler(
        mask, position_order="moment", choice_temperature=3.0, masking_schedule="cosine", **more
    ),
}
every_one = pytest.mark.parametrize("name", MAKERS)


def scheduler_of(name: str, steps: int) -> MaskedDiffusionScheduler:
    scheduler = MAKERS[name](MASK, codebook_size=CODES)
    scheduler.set_timesteps(steps)
    return scheduler


def passes(steps: int, rows: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(steps, rows, LENGTH, CODES + 1, generator=torch.Generator().manual_seed(seed))


def generators(rows: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + row) for row in rows]


def run(
    scheduler: MaskedDiffusionScheduler, logits: Tensor, sample: Tensor, rows: list[int] | None = None, **more: object
) -> list[Tensor]:
    """The sample before and after every step of a run with a memory."""
    own = generators(list(range(len(sample))) if rows is None else rows)
    given = {"memory": scheduler.new_memory()} | more
    samples = [sample]
    for t, now in zip(scheduler.timesteps, logits, strict=True):
        samples.append(scheduler.step(now, t, samples[-1], generator=own, **given).prev_sample)
    return samples


def masked_rows(masks: list[int]) -> Tensor:
    """Rows with so many masks each, at random places among known tokens."""
    generator = torch.Generator().manual_seed(1)
    known = torch.randint(0, CODES, (len(masks), LENGTH), generator=generator)
    order = torch.stack([torch.randperm(LENGTH, generator=generator) for _ in masks])
    return known.masked_fill(order < torch.tensor(masks)[:, None], MASK)


@every_one
@given(
    steps=st.integers(1, 7), masks=st.lists(st.integers(0, LENGTH), min_size=1, max_size=4), seed=st.integers(0, 2**32)
)
@settings(max_examples=30)
def test_a_run_fills_in_its_masks_and_nothing_else(name: str, steps: int, masks: list[int], seed: int) -> None:
    scheduler, sample, logits = scheduler_of(name, steps), masked_rows(masks), passes(steps, len(masks), seed)
    ratio = (sample == MASK).double().mean(-1)
    samples = run(scheduler, logits, sample, starting_mask_ratio=ratio)
    planned = scheduler.planned_counts(torch.tensor(masks))
    for n, (before, after) in enumerate(pairwise(samples)):
        assert torch.equal(after[before != MASK], before[before != MASK])
        if planned is not None:
            assert torch.equal((before != after).sum(-1), planned[n])
    assert ((samples[-1] >= 0) & (samples[-1] < CODES)).all()
    for row in range(len(masks)):  # and each row alone is the same
        alone = run(scheduler, logits[:, [row]], sample[[row]], [row], starting_mask_ratio=ratio[[row]])
        assert all(torch.equal(one, many[[row]]) for one, many in zip(alone, samples, strict=True))


PLAIN = {
    "trapezoidal": AncestralScheduler(MASK, codebook_size=CODES),
    "uniform": UniformScheduler(MASK, codebook_size=CODES, masking_schedule="linear"),
    "halton": HaltonScheduler(MASK, codebook_size=CODES, masking_schedule="linear"),
    "moment": MomentScheduler(MASK, codebook_size=CODES, choice_temperature=3.0),
}


@pytest.mark.parametrize("name", PLAIN)
def test_without_a_memory_it_is_the_plain_sampler(name: str) -> None:
    """With one, first passes are its steps, but second passes are not; what stays the same is not extrapolated."""
    sample, plain, scheduler = masked_rows([LENGTH] * 20), PLAIN[name], scheduler_of(name, 5)
    plain.set_timesteps(5)
    logits = passes(5, 20)
    expected = run(plain, logits, sample)
    with pytest.warns(UserWarning, match=r"its second is a plain one\. Pass `memory=") as caught:
        found = run(scheduler, logits, sample, memory=None)
    assert {Path(one.filename) for one in caught} == {Path(__file__)}  # not in torch's or this package's
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    ours = run(scheduler, logits, sample)
    assert torch.equal(ours[1], expected[1])
    assert not torch.equal(ours[-1], expected[-1])
    same = logits[:1].expand_as(logits)
    if name not in ("trapezoidal", "uniform"):  # those keep the noise of the first pass for the second
        ours, expected = run(scheduler, same, sample), run(plain, same, sample)
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_the_moment_order_reads_the_second_pass() -> None:
    """Its positions are those of MomentScheduler from the same tokens; their tokens are not."""
    sample, scheduler, moment = masked_rows([LENGTH] * 40), scheduler_of("moment", 4), PLAIN["moment"]
    moment.set_timesteps(4)
    logits = passes(4, 40)
    before, after = run(scheduler, logits, sample)[1:3]
    own = generators(list(range(40)))
    moment.step(logits[0], moment.timesteps[0], sample, generator=own)
    theirs = moment.step(logits[1], moment.timesteps[1], before, generator=own).prev_sample
    assert torch.equal(theirs == MASK, after == MASK)
    assert not torch.equal(theirs, after)


@pytest.mark.parametrize("name", ["trapezoidal", "uniform", "halton", "moment"])
def test_what_is_kept(name: str) -> None:
    """Logits as they are given, of what the second pass may reveal; nothing after it has."""
    steps = 8
    scheduler, sample = scheduler_of(name, steps), masked_rows([LENGTH, 7, 0, 1])
    logits, memory = passes(steps, 4).bfloat16(), scheduler.new_memory()
    ratio, own = (sample == MASK).double().mean(-1), generators([0, 1, 2, 3])
    for n, t in enumerate(scheduler.timesteps):
        before = sample
        kept = memory._first
        sample = scheduler.step(logits[n], t, before, ratio, own, memory=memory).prev_sample
        revealed = (before != sample).flatten()
        if n % 2:
            assert kept is not None
            assert memory._first is None
            assert kept.logits.dtype == torch.bfloat16
            places = (kept.slots >= 0).nonzero()[:, 0]
            assert torch.equal(kept.logits[kept.slots[places]], logits[n - 1].flatten(0, 1)[places])
            assert (kept.slots[revealed] >= 0).all()  # all that was revealed had been kept
            assert (before.flatten()[places] == MASK).all()
            if name in ("uniform", "halton"):
                assert torch.equal(kept.slots >= 0, revealed)  # and nothing else
            if name == "trapezoidal" and n == 1:
                assert len(places) < 0.6 * int((before == MASK).sum())
        elif n < steps - 1:
            assert memory._first is not None


@every_one
def test_logits_of_some_places_channels_first_and_strides(name: str) -> None:
    steps, sample = 4, masked_rows([LENGTH, 5])
    scheduler, logits = scheduler_of(name, steps), passes(steps, 2)
    expected = run(scheduler, logits, sample)
    if name != "halton":  # whose order on a grid is another one
        grid = logits.transpose(2, 3).unflatten(3, (3, 4)).contiguous()
        found = run(scheduler, grid, sample.view(2, 3, 4))
        assert all(torch.equal(a.flatten(1), b) for a, b in zip(found, expected, strict=True))
    own, memory, now = generators([0, 1]), scheduler.new_memory(), sample
    for t, values in zip(scheduler.timesteps, logits, strict=True):
        places = (now == MASK).flatten().nonzero()[:, 0].flip(0)
        some = values.flatten(0, 1)[places][None]
        now = scheduler.step(some, t, now, generator=own, logits_at=places[None], memory=memory).prev_sample
    assert torch.equal(now, expected[-1])


@every_one
def test_an_accelerator_gives_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There all positions are drawn and kept, since picking some would make the host wait."""
    steps, sample = 5, masked_rows([LENGTH, 6, 0])
    scheduler, logits = scheduler_of(name, steps), passes(steps, 3)
    expected = run(scheduler, logits, sample)

    def all_places(wanted: Tensor, scores: Tensor, context: object, most: int | None) -> Tensor:
        order = ranking(scores, context.masked)[:, :most]  # type: ignore[attr-defined]
        assert not (wanted & ~torch.zeros_like(wanted).scatter(1, order, True)).any()
        return (order + first_rows(*wanted.shape, order.device)).flatten()

    for module in (scheduling_trapezoidal, scheduling_extrapolating):
        monkeypatch.setattr(module, "places_of", all_places)
    assert all(torch.equal(a, b) for a, b in zip(run(scheduler, logits, sample), expected, strict=True))
    if name.startswith("trapezoidal"):  # as the loop bounds it, by the masks of the fullest row
        samples, own, memory = [sample], generators([0, 1, 2]), scheduler.new_memory()
        for t, now in zip(scheduler.timesteps, logits, strict=True):
            most = int((samples[-1] == MASK).sum(-1).max())
            samples.append(
                scheduler.step(now, t, samples[-1], generator=own, max_count=most, memory=memory).prev_sample
            )
        assert all(torch.equal(a, b) for a, b in zip(samples, expected, strict=True))


@every_one
def test_what_a_callback_masks_anew_is_filled_in_too(name: str) -> None:
    """Between the passes of an interval: nothing was kept of such positions, and they are drawn plainly."""
    scheduler, sample, logits = scheduler_of(name, 4), masked_rows([LENGTH, LENGTH]), passes(4, 2)
    memory, own = scheduler.new_memory(), generators([0, 1])
    for n, t in enumerate(scheduler.timesteps):
        sample = scheduler.step(logits[n], t, sample, generator=own, memory=memory).prev_sample
        if n in (0, 2):
            sample = sample.clone()
            sample[:, :6] = MASK
    assert ((sample >= 0) & (sample < CODES)).all()


@every_one
def test_a_run_may_begin_between_the_passes_of_an_interval(name: str) -> None:
    scheduler, sample, logits = scheduler_of(name, 6), masked_rows([LENGTH, 7]), passes(6, 2)
    ratio = (sample == MASK).double().mean(-1)
    memory, results = scheduler.new_memory(), []
    for used in (memory, None):
        own, now = generators([0, 1]), sample
        for n in range(3, 6):
            kept = used if n < 5 else None  # step 5 would extrapolate from step 4
            now = scheduler.step(logits[n], scheduler.timesteps[n], now, ratio, own, memory=kept).prev_sample
            if n == 4:
                results.append(now)
        assert not (now == MASK).any()
    assert torch.equal(*results)


def others() -> Iterator[object]:
    yield KLASSScheduler(MASK).new_memory()
    yield UniformScheduler(MASK).new_memory()


@pytest.mark.parametrize("memory", others(), ids=lambda memory: type(memory).__name__)
@pytest.mark.parametrize("maker", [TrapezoidalScheduler, ExtrapolatingScheduler])
def test_another_scheduler_s_memory_is_refused(maker: type[MaskedDiffusionScheduler], memory: object) -> None:
    scheduler = maker(MASK)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match=r"must come from `new_memory\(\)` of this .*Scheduler, got a .*Memory"):
        scheduler.step(passes(1, 1)[0], 1.0, masked_rows([3]), memory=memory)  # type: ignore[arg-type]


@pytest.mark.parametrize("theta", [0, 1, -0.5, "half", True])
def test_theta_is_checked(theta: object) -> None:
    with pytest.raises(ValueError, match="`theta` must be above 0 and below 1"):
        TrapezoidalScheduler(MASK, theta=theta)  # type: ignore[arg-type]


def test_the_order_is_checked() -> None:
    with pytest.raises(ValueError, match="`position_order` must be one of"):
        ExtrapolatingScheduler(MASK, position_order="random")


@pytest.mark.parametrize(("steps", "theta"), [(4, 0.5), (5, 0.5), (6, 0.25)])
def test_the_intervals_of_a_run(steps: int, theta: float) -> None:
    scheduler = TrapezoidalScheduler(MASK, theta=theta)
    scheduler.set_timesteps(steps)
    for n in range(steps):
        before, middle, after = scheduler.interval(n)
        start = n - n % 2
        assert before == pytest.approx(1 - start / steps)
        assert after == pytest.approx(max(0, 1 - (start + 2) / steps))
        assert middle == (0 if start == steps - 1 else pytest.approx(before - theta * (before - after)))


def test_weights_of_rows_are_their_own() -> None:
    """Rows with other counts in one batch: with one position in each pass, the weight is 1 and the draw is plain."""
    scheduler, sample, logits = scheduler_of("uniform", 2), masked_rows([LENGTH, *[2] * 20]), passes(2, 21)
    ratio = (sample == MASK).double().mean(-1)
    assert weight_of_counts(torch.tensor([6, 1]), torch.tensor([6, 1])).tolist() == pytest.approx([11 / 6, 1.0])
    samples = run(scheduler, logits, sample, starting_mask_ratio=ratio)
    assert torch.equal((samples[1] == MASK).sum(-1), torch.tensor([6, *[1] * 20]))
    own, memory = generators(list(range(21))), scheduler.new_memory()
    scheduler.step(logits[0], 1.0, sample, ratio, own, memory=memory)
    kept = memory.take(1)
    assert kept is not None
    first = FirstPass(0, kept.noise, kept.count, torch.full_like(kept.logits, -torch.inf), kept.slots)
    first.logits[:, 0] = 0.0  # all mass on token 0: where that is subtracted, it is drawn no more
    memory.keep(first)
    after = scheduler.step(logits[1], 0.5, samples[1], ratio, own, memory=memory).prev_sample
    revealed = samples[1] == MASK
    unlikely = logits[1, ..., :CODES].softmax(-1)[..., 0] < 5 / 11
    assert not bool((after[0] == 0)[revealed[0] & unlikely[0]].any())
    assert bool((after[1:] == 0)[revealed[1:] & unlikely[1:]].any())  # nothing is subtracted in rows of weight 1


@every_one
def test_a_first_pass_is_of_its_own_interval(name: str) -> None:
    """A memory that holds the first pass of a step further back gives none."""
    scheduler, sample, logits = scheduler_of(name, 6), masked_rows([LENGTH] * 8), passes(6, 8)
    memory = scheduler.new_memory()
    sample = scheduler.step(
        logits[0], scheduler.timesteps[0], sample, generator=generators([*range(8)]), memory=memory
    )[0]
    given = (logits[3], scheduler.timesteps[3], sample)
    found = [scheduler.step(*given, generator=generators([*range(8)]), memory=one)[0] for one in (memory, None)]
    assert torch.equal(*found)
