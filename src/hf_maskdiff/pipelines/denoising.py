"""The one denoising loop, for images and for text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ..caching import PartialCacheConfig
from ..sampling import Generators
from ..schedulers import MaskedDiffusionScheduler
from .step_counts import StepCounts, num_masked_of
from .substeps import Denoiser, WholeStep, step_of

# (step index, timestep, sample) -> sample
StepCallback = Callable[[int, Tensor, Tensor], Tensor]


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    scheduler: MaskedDiffusionScheduler,
    sample: Tensor,
    generator: Generators = None,
    *,
    first_step: int = 0,
    initial: Tensor | None = None,
    reuse_logits: bool = False,
    partial_cache: PartialCacheConfig | None = None,
    lengths: Tensor | None = None,
    progress_bar: Callable[..., AbstractContextManager],
    on_step_end: StepCallback,
    interrupted: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Fill in the masked positions of a batch, one model call per step; known tokens stay.

    Steps in which no row would reveal anything are not run. The number of masks is read once, before the loop: no later
    step makes the host wait for an accelerator, unless `on_step_end` returns another sample than it was given.

    Args:
        denoiser: maps tokens, the step's time and the rows of the batch to logits, guidance included.
        scheduler: with `set_timesteps` called.
        sample: tokens int64 `(batch_size, L)` or `(batch_size, height, width)`, `mask_token_id` where to be filled in.
        generator: one for the batch, one per row, or None for fresh noise from torch's global generator. One of a row
            moves on with each step that this row takes, until it holds no mask.
        first_step: the scheduler's steps before this one are not run, as in image-to-image.
        initial: N_0 of each row, int64 `(batch_size,)`: the masks it would hold at step 0. The masking schedule
            counts from these; None where they are the masks in `sample`.
        reuse_logits: the logits depend on the tokens alone, so that a row in which the last step revealed nothing
            needs no new ones. Only schedulers without a plan have such steps; seeing them makes the host wait.
        partial_cache: cuts a step's positions into groups, with a partial pass before each but the first: the denoiser
            then takes `positions`, and a full pass of some rows alone must leave what is cached of the others.
        lengths: positions of each row that the model sees, int64 `(batch_size,)`, for the share of them that a step
            reveals; None where it sees those of `sample`.
        progress_bar: called with `total=`, the number of model calls; a context manager with `update()`.
        on_step_end: called after each step, which it counts from 0; what it returns is the sample from there on.
        interrupted: asked before each step; when true the loop ends with positions still masked.

    Returns:
        Tokens, the shape of `sample`.

    Raises:
        ValueError: logits from which nothing can be drawn, with the step's number.
    """
    step = step_of(denoiser, scheduler, partial_cache, lengths)
    reuse_logits = reuse_logits and isinstance(step, WholeStep)  # groups need all rows' keys and values
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(2**63 - 1, (1,))))
    counts = StepCounts(scheduler, sample, initial, first_step)
    starting_mask_ratio = counts.starting_mask_ratio
    logits: Tensor | None = None
    # Rows whose logits are out of date, or not there yet.
    changed = torch.ones(len(sample), dtype=torch.bool, device=sample.device)
    with progress_bar(total=counts.num_passes) as bar:
        for i, t in enumerate(counts.timesteps):
            count = counts.of_step(i, sample)
            if int(count.max()) == 0 or interrupted():
                break
            if logits is None or counts.hold or not reuse_logits or bool(changed.all()):
                logits = None  # freed before the next ones are made
                logits = denoiser(sample, t, slice(None))
            elif bool(changed.any()):
                rows = changed.nonzero()[:, 0]
                logits[rows] = denoiser(sample[rows], t, rows)
            before = sample
            sample = step(logits, t, sample, starting_mask_ratio, _of_unfinished_rows(generator, count), count)
            counts.note(sample)
            returned = on_step_end(i, t, sample)
            if returned is not sample:
                sample, counts.hold = returned, False
            if not counts.hold:
                changed = (sample != before).flatten(1).any(-1) & (num_masked_of(scheduler, sample) > 0)
            bar.update()
    counts.require_all_drawn()
    return sample


def _of_unfinished_rows(generator: Generators, counts: Tensor) -> Generators:
    """The rows' generators, with new ones in place of those of finished rows.

    A finished row goes through the remaining steps of its batch mates. With its own generator it would draw from it
    and be left in a state that depends on them.
    """
    if not isinstance(generator, Sequence):
        return generator
    return [
        own if count else torch.Generator(own.device) for own, count in zip(generator, counts.tolist(), strict=True)
    ]
