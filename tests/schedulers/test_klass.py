"""What is ready, against plain Python over the steps of a run; and the memory that belongs to the run, row by row."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import exp, fsum, log
from threading import Thread

import pytest
import torch
from torch import Tensor

from hf_maskdiff import ConfidenceScheduler, HaltonScheduler, KLASSScheduler, MaskGITPipeline, MomentScheduler

MASK, CODES, LENGTH, STEPS = 9, 6, 12, 6


def scheduler_of(steps: int = STEPS, **config: object) -> KLASSScheduler:
    rule = {"confidence_threshold": 0.3, "kl_threshold": 0.05, "token_temperature": 0, "rounding": "even"}
    scheduler = KLASSScheduler(mask_token_id=MASK, codebook_size=CODES, **rule | config)
    scheduler.set_timesteps(steps)
    return scheduler


def passes(rows: int, seed: int = 0, steps: int = STEPS) -> list[Tensor]:
    """Logits of each pass: some positions hardly change, some much."""
    generator = torch.Generator().manual_seed(seed)
    logits = [
        3 * torch.rand(rows, LENGTH, 1, generator=generator) * torch.randn(rows, LENGTH, CODES, generator=generator)
    ]
    restless = 0.05 + torch.rand(rows, LENGTH, 1, generator=generator) ** 3
    for _ in range(steps - 1):
        logits.append(logits[-1] + restless * torch.randn(rows, LENGTH, CODES, generator=generator))
    return logits


def run(
    scheduler: KLASSScheduler, logits: list[Tensor], sample: Tensor | None = None, memory: bool = True
) -> list[Tensor]:
    samples = [torch.full(logits[0].shape[:2], MASK) if sample is None else sample]
    kept = scheduler.new_memory() if memory else None
    generators = [torch.Generator().manual_seed(row) for row in range(len(samples[0]))]
    for t, now in zip(scheduler.timesteps, logits, strict=True):
        samples.append(scheduler.step(now, t, samples[-1], generator=generators, memory=kept).prev_sample)
    return samples


def law(logits: list[float]) -> list[float]:
    weights = [exp(z - max(logits)) for z in logits]
    return [weight / fsum(weights) for weight in weights]


def in_python(logits: list[Tensor], row: int, history: int, strategy: str) -> list[set[int]]:
    """The positions that each step of a run reveals; the last one reveals all."""
    masked, stable, revealed = set(range(LENGTH)), dict.fromkeys(range(LENGTH), 0), []
    for n, now in enumerate(logits):
        p = {i: law(now[row, i].tolist()) for i in masked}
        kl = {}
        for i in masked if n else ():
            q = law(logits[n - 1][row, i].tolist())
            kl[i] = fsum(a * (log(a) - log(b)) for a, b in zip(p[i], q, strict=True))
            stable[i] = stable[i] + 1 if kl[i] < 0.05 else 0
        order = sorted(masked, key=lambda i: -max(p[i]))
        ready = [i for i in order if stable[i] >= history and max(p[i]) > 0.3]
        if strategy == "surest":
            ready = ready[:1]
        elif strategy == "most_stable":
            ready = sorted(ready, key=lambda i: kl[i])[:1]
        chosen = set(order if n == len(logits) - 1 else ready or order[: LENGTH // len(logits)])
        revealed.append(chosen)
        masked -= chosen
    return revealed


def revealed(samples: list[Tensor], row: int) -> list[set[int]]:
    return [set((before != after)[row].nonzero().flatten().tolist()) for before, after in pairwise(samples)]


@pytest.mark.parametrize("history", [1, 2, 3])
@pytest.mark.parametrize("strategy", ["all", "surest", "most_stable"])
def test_steps_reveal_what_is_ready(history: int, strategy: str) -> None:
    logits = passes(16)
    samples = run(scheduler_of(history_length=history, strategy=strategy), logits)
    plain = in_python(logits, 0, history=99, strategy="all")
    expected = [in_python(logits, row, history, strategy) for row in range(16)]
    assert [revealed(samples, row) for row in range(16)] == expected
    assert len({len(step) for steps in expected for step in steps[:-1]}) > 1
    assert plain != expected[0]
    last = samples[-1] != samples[-2]
    assert torch.equal(samples[-1][last], logits[-1].argmax(-1)[last])


def test_one_of_those_that_are_ready_at_random() -> None:
    logits = [passes(1)[0].expand(3000, -1, -1)] * 3
    rule = {"steps": 3, "history_length": 1, "masking_schedule": [1, 2, 12], "rounding": "floor_masked"}
    ready = revealed(run(scheduler_of(**rule), [now[:1] for now in logits]), 0)[1]
    assert len(ready) > 2
    samples = run(scheduler_of(**rule, strategy="random"), logits)
    picked = torch.tensor([one for row in range(3000) for one in revealed(samples[1:3], row)[0]])
    counts = torch.bincount(picked, minlength=LENGTH)
    assert {i for i, count in enumerate(counts.tolist()) if count} == ready
    assert len(picked) == 3000
    assert counts[counts > 0].min() > 0.8 * 3000 / len(ready)


def test_without_a_memory_nothing_is_stable() -> None:
    """The schedule, surest first."""
    logits = passes(4)
    surest = ConfidenceScheduler(MASK, CODES, masking_schedule="linear", rounding="even", token_temperature=0)
    surest.set_timesteps(STEPS)
    for ours, theirs in zip(run(scheduler_of(), logits, memory=False), run(surest, logits, memory=False), strict=True):
        assert torch.equal(ours, theirs)
    nothing = scheduler_of(kl_threshold=0)
    still = [logits[0]] * STEPS
    assert [len(step) for step in revealed(run(nothing, still), 0)] == [2] * STEPS


def test_a_row_is_the_same_alone_and_in_any_batch_and_with_the_logits_of_its_masks_alone() -> None:
    logits, scheduler = passes(8), scheduler_of(strategy="random", token_temperature=1.0)
    start = torch.full((8, LENGTH), MASK)
    start[2, :5], start[5] = 1, 2  # one partly known, one without masks
    together = run(scheduler, logits, start)
    for row in range(8):
        memory, sample = scheduler.new_memory(), start[row : row + 1]
        generator = [torch.Generator().manual_seed(row)]
        for n, t in enumerate(scheduler.timesteps):
            at = (sample.flatten() == MASK).nonzero()[:, 0].flip(0)[None]
            own = logits[n][row][at[0]][None]
            given = {"generator": generator, "memory": memory, "logits_at": at}
            sample = scheduler.step(own, t, sample, **given).prev_sample
            assert torch.equal(sample[0], together[n + 1][row])


def test_what_is_masked_anew_must_become_stable_again() -> None:
    logits, sample = passes(1)[0], torch.full((1, LENGTH), MASK)  # nothing changes, so all that is known is stable
    rule = {"masking_schedule": [3, 4, 5, 12], "rounding": "floor_masked", "confidence_threshold": 0.0}
    scheduler = scheduler_of(4, history_length=1, **rule)
    memory, counts = scheduler.new_memory(), []
    for n, t in enumerate(scheduler.timesteps):
        before = sample
        sample = scheduler.step(logits, t, sample, memory=memory).prev_sample
        counts.append(int((before != sample).sum()))
        if n == 0:
            early = (sample != MASK).nonzero()[:, 1]  # they are not masked in the second pass
        if n == 1:
            sample = sample.index_fill(1, early, MASK)
    assert counts[:3] == [3, 9, 1]  # of the three no divergence is known, so the schedule has the say


def test_two_threads_share_a_scheduler() -> None:
    scheduler, results = scheduler_of(), {}

    def work(seed: int) -> None:
        results[seed] = run(scheduler, passes(4, seed))[-1]

    threads = [Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        assert torch.equal(results[seed], run(scheduler_of(), passes(4, seed))[-1])


def test_two_loops_in_step_share_a_scheduler() -> None:
    scheduler, sets = scheduler_of(), [passes(4, seed) for seed in (0, 1)]
    apart = [run(scheduler, logits) for logits in sets]
    memories, samples = [scheduler.new_memory() for _ in sets], [torch.full((4, LENGTH), MASK)] * 2
    for n, t in enumerate(scheduler.timesteps):
        for i in range(2):
            samples[i] = scheduler.step(sets[i][n], t, samples[i], memory=memories[i]).prev_sample
            assert torch.equal(samples[i], apart[i][n + 1])


def test_a_memory_of_something_else() -> None:
    scheduler, logits = scheduler_of(), passes(4)[0]
    memory = scheduler.new_memory()
    scheduler.step(logits, 1.0, torch.full((4, LENGTH), MASK), memory=memory)
    with pytest.raises(
        ValueError, match=r"`memory` must be of the same run .*, got one of tokens \(4, 12\) for .*\(2, 12"
    ):
        scheduler.step(logits[:2], 0.5, torch.full((2, LENGTH), MASK), memory=memory)
    other = MomentScheduler(mask_token_id=MASK).new_memory()
    with pytest.raises(
        ValueError, match=r"`memory` must come from `new_memory\(\)` of this KLASSScheduler, got a RunM"
    ):
        scheduler.step(logits, 1.0, torch.full((4, LENGTH), MASK), memory=other)


def test_it_keeps_the_masked_rows_alone() -> None:
    scheduler, logits = scheduler_of(), passes(4)
    sample = torch.full((4, LENGTH), MASK)
    sample[:, 3:] = 1
    memory = scheduler.new_memory()
    scheduler.step(logits[0], 1.0, sample, memory=memory)
    kept = memory.last._log_probs
    assert kept.dtype == torch.float32
    assert kept.shape == (12, CODES)
    assert kept.untyped_storage().nbytes() == 12 * CODES * 4


def test_a_randomized_order_of_a_run_with_a_memory() -> None:
    """What a run decides once is remembered there, whatever generators come."""
    scheduler = HaltonScheduler(mask_token_id=16, codebook_size=16, randomize=True, masking_schedule=list(range(1, 17)))
    scheduler.set_timesteps(16)
    orders = []
    for memory in (None, scheduler.new_memory(), scheduler.new_memory()):
        generator, sample, order = torch.Generator().manual_seed(3), torch.full((2, 16), 16), []
        for t in scheduler.timesteps:
            before = sample
            given = {"generator": generator, "memory": memory}
            sample = scheduler.step(torch.zeros(2, 16, 16), t, sample, **given).prev_sample
            order.append((before != sample).nonzero()[:, 1].tolist())
        orders.append(order)
    assert orders[0] == orders[1] == orders[2]


def test_a_pipeline_hands_a_memory_on(make_pipeline: Callable[..., MaskGITPipeline]) -> None:
    scheduler = KLASSScheduler(mask_token_id=16, codebook_size=16, confidence_threshold=0.0, kl_threshold=1e3)
    pipe, masks = make_pipeline(scheduler), []
    pipe.transformer.register_forward_pre_hook(lambda _, args: masks.append((args[0] == 16).flatten(1).sum(1).tolist()))
    pipe([0, 1], num_inference_steps=16, output_type="latent")
    assert masks == [[16, 16], [15, 15], [14, 14]]  # from the third pass on, all that is left has been stable twice


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"confidence_threshold": 1.5}, r"`confidence_threshold` must be in \[0, 1\], got 1\.5\. Try 0\.9"),
        ({"kl_threshold": -1}, "`kl_threshold` must be a number of nats, at least 0, got -1. Try"),
        ({"history_length": 0}, "`history_length` must be an integer of at least 1, got 0. Pass"),
        ({"strategy": "any"}, "`strategy` must be one of .*'most_stable'.*, got 'any'"),
    ],
)
def test_settings_that_cannot_work(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scheduler_of(**config)
