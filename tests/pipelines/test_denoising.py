"""The loop itself: how many positions each step reveals, wherever the run starts, and what the denoiser is asked."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_maskdiff import (
    EntropyBoundedScheduler,
    MaskedDiffusionScheduler,
    MomentScheduler,
    PartialCacheConfig,
    UniformScheduler,
)
from hf_maskdiff.pipelines import denoise

MASK, CODES, LENGTH, STEPS = 9, 9, 40, 8
N_0 = torch.tensor([40, 23, 7, 0, 1, 40])  # the size of each row's editable region


class Run:
    """Runs `denoise` on random logits and notes the times, the masks after each step and the progress."""

    def __init__(self, scheduler: MaskedDiffusionScheduler, sample: Tensor, **kwargs: object) -> None:
        self.times: list[float] = []
        self.masks: list[list[int]] = []
        self.totals: list[int] = []
        self.updates: list[int] = []
        scheduler.set_timesteps(STEPS)
        self.generators = [torch.Generator().manual_seed(row) for row in range(len(sample))]
        hooks = {"progress_bar": self.progress_bar, "on_step_end": self.on_step_end}
        self.sample = denoise(self.denoiser, scheduler, sample, self.generators, **hooks, **kwargs)

    def denoiser(self, sample: Tensor, t: Tensor, rows: Tensor | slice) -> Tensor:
        self.times.append(float(t))
        logits = torch.randn(1, LENGTH, CODES, generator=torch.Generator().manual_seed(len(self.times)))
        return 3 * logits.expand(len(sample), -1, -1)

    def on_step_end(self, i: int, t: Tensor, sample: Tensor) -> Tensor:
        assert (i, float(t)) == (len(self.masks), self.times[-1])
        self.masks.append((sample == MASK).sum(-1).tolist())
        return sample

    def progress_bar(self, total: int) -> nullcontext[SimpleNamespace]:
        self.totals.append(total)
        return nullcontext(SimpleNamespace(update=lambda: self.updates.append(1)))


def partly_masked(scheduler: MaskedDiffusionScheduler, first_step: int) -> Tensor:
    """Row b has its first `N_0[b]` positions masked as far as they are at the start of that step."""
    scheduler.set_timesteps(STEPS)
    known = torch.randint(0, CODES, (len(N_0), LENGTH), generator=torch.Generator().manual_seed(0))
    noisy = scheduler.add_noise(known, scheduler.timesteps[first_step], torch.Generator().manual_seed(1))
    return torch.where(torch.arange(LENGTH) < N_0[:, None], noisy, known)


@pytest.mark.parametrize("first_step", [0, 1, 4, 7])
def test_counts_follow_from_the_editable_region(
    scheduler_class: type[MaskedDiffusionScheduler], first_step: int
) -> None:
    """After step n a row keeps min(N - 1, floor(N_0 m(t_{n+1}))) masks, whatever noise it started from."""
    scheduler = scheduler_class(mask_token_id=MASK, masking_schedule="linear")
    sample = partly_masked(scheduler, first_step)
    left = (sample == MASK).sum(-1).tolist()
    run = Run(scheduler, sample, first_step=first_step, initial=N_0)
    assert not (run.sample == MASK).any()
    assert torch.equal(run.sample[sample != MASK], sample[sample != MASK])
    assert len(run.updates) == len(run.masks)
    if scheduler.num_inference_steps != STEPS:  # the masks decide: one a step
        assert run.masks == [[max(0, n - done) for n in left] for done in range(1, max(left) + 1)]
        return
    assert run.times == scheduler.timesteps[first_step:].tolist()[: len(run.times)]
    if scheduler.planned_counts(N_0) is None:  # the logits decide
        most = len(scheduler.timesteps) - first_step  # the regular steps, and those that may edit
        assert run.totals == [most]
        assert len(run.masks) <= most
        return
    assert run.totals == [len(run.masks)] == [STEPS - first_step]
    for n, masks in enumerate(run.masks, first_step):
        left = [max(0, min(now - 1, n_0 * (STEPS - n - 1) // STEPS)) for now, n_0 in zip(left, N_0, strict=True)]
        assert masks == left


def test_without_a_starting_count_the_masks_are_counted(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    scheduler = scheduler_class(mask_token_id=MASK)
    sample = partly_masked(scheduler, 2)
    counted, given = (Run(scheduler, sample, initial=n_0) for n_0 in (None, (sample == MASK).sum(-1)))
    assert torch.equal(counted.sample, given.sample)
    assert counted.masks == given.masks


def test_rows_that_hold_no_noise_at_all_end_the_run(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    """A weak edit may mask nothing."""
    run = Run(scheduler_class(mask_token_id=MASK), torch.zeros(6, LENGTH).long(), first_step=6, initial=N_0)
    assert run.times == []
    assert (run.sample == 0).all()


def test_a_row_s_generator_moves_on_while_the_row_does(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    """What is drawn from it after the run is the same beside rows that take longer."""
    scheduler = scheduler_class(mask_token_id=MASK, masking_schedule="linear")
    sample = torch.where(torch.arange(LENGTH) < N_0[:, None], MASK, 0)
    together = Run(scheduler, sample)
    for row, generator in enumerate(together.generators):
        before = torch.zeros(row, LENGTH, dtype=torch.int64)  # rows of no masks, so that the seeds are the same
        alone = Run(scheduler, torch.cat([before, sample[row : row + 1]]))
        assert torch.equal(alone.generators[row].get_state(), generator.get_state())


def test_a_scheduler_without_a_plan() -> None:
    """The loop then looks before each step, and finds the same."""

    class Unplanned(MomentScheduler):
        def planned_counts(self, num_masked: Tensor, initial: Tensor | None = None, first_step: int = 0) -> None:
            return None

    planned, unplanned = (
        Run(kind(mask_token_id=MASK), partly_masked(kind(mask_token_id=MASK), 3), first_step=3, initial=N_0)
        for kind in (MomentScheduler, Unplanned)
    )
    assert torch.equal(planned.sample, unplanned.sample)
    assert planned.masks == unplanned.masks
    assert unplanned.totals == [5]


def test_a_partial_pass_writes_what_its_step_reveals_and_nothing_else() -> None:
    """Rows reveal different numbers of positions: what fills the shorter ones up keeps its keys and values."""
    scheduler = MomentScheduler(mask_token_id=MASK, masking_schedule="linear")
    scheduler.set_timesteps(STEPS)
    samples = [torch.where(torch.arange(LENGTH) < N_0[:, None], MASK, 0)]
    written: list[list[list[int]]] = []

    def denoiser(sample: Tensor, t: Tensor, rows: slice, positions: Tensor | None = None) -> Tensor:
        if positions is not None:
            written.append([sorted(row[row >= 0].tolist()) for row in positions])
        return torch.zeros(*sample.shape, CODES)

    def on_step_end(i: int, t: Tensor, sample: Tensor) -> Tensor:
        revealed = [
            row.nonzero().flatten().tolist() for row in sample != samples[-1] if row.any()
        ]  # of the others none
        # Before the second group, and before the third: of the rows that have one.
        assert written == [[row if len(row) > group else [] for row in revealed] for group in (1, 2)]
        written.clear()
        samples.append(sample)
        return sample

    bar = nullcontext(SimpleNamespace(update=lambda: None))
    cache = PartialCacheConfig(num_substeps=3, full_pass_threshold=1)
    hooks = {"progress_bar": lambda total: bar, "on_step_end": on_step_end}
    denoise(denoiser, scheduler, samples[0], torch.Generator().manual_seed(0), partial_cache=cache, **hooks)
    assert len(samples) == STEPS + 1


@pytest.mark.parametrize("failing", [0, 3, STEPS - 1])
@pytest.mark.parametrize("base", [MomentScheduler, EntropyBoundedScheduler])
def test_positions_that_an_accelerator_left_masked_are_found_after_the_loop(
    base: type[MaskedDiffusionScheduler], failing: int
) -> None:
    """There a step cannot raise without waiting. From step `failing` on nothing is drawn in one row."""

    class Broken(base):
        def step(
            self, model_output: Tensor, timestep: Tensor, sample: Tensor, *args: object, **kwargs: object
        ) -> tuple:
            (after,) = super().step(model_output, timestep, sample, *args, **kwargs)
            if float(timestep) <= 1 - failing / STEPS:
                after[2] = sample[2]
            return (after,)

    # Tight enough to need all steps. Without a plan only the last one says how many masks may stay.
    config = {"entropy_bound": 0.0} if base is EntropyBoundedScheduler else {}
    expected = STEPS - 1 if base is EntropyBoundedScheduler else failing
    with pytest.raises(ValueError, match=rf"got such logits in step {expected} \(counted from 0\)"):
        Run(Broken(mask_token_id=MASK, **config), torch.full((4, LENGTH), MASK))


class CountingScheduler(UniformScheduler):
    """A sampler of a user's own: with a `step` that does more than the one it inherits."""

    steps = 0

    def step(self, *args: Any, **kwargs: Any) -> Any:
        type(self).steps += 1
        return super().step(*args, **kwargs)


def test_a_step_of_one_s_own_is_taken_where_positions_need_no_logits() -> None:
    run = Run(CountingScheduler(mask_token_id=MASK), torch.full((1, LENGTH), MASK))
    assert CountingScheduler.steps == len(run.times) == STEPS
