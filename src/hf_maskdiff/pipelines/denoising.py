"""The one denoising loop, for images and for text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ..caching import PartialCacheConfig
from ..sampling import Generators
from ..schedulers import MaskedDiffusionScheduler
from .step_counts import StepCounts
from .step_input import StepInput
from .step_logits import Denoiser, PassOfStep, StepLogits, StepRows, guidance_of, whole_pass
from .substeps import WholeStep, step_of

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
    given: Tensor | None = None,
    reuse_logits: bool = False,
    partial_cache: PartialCacheConfig | None = None,
    pass_of_step: PassOfStep | None = None,
    lengths: Tensor | None = None,
    progress_bar: Callable[..., AbstractContextManager],
    on_step_end: StepCallback,
    without_ended: Callable[[Tensor], Tensor] | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Fill in the masked positions of a batch with one model call per step; given tokens do not change.

    Steps in which no row would reveal anything are skipped, and rows without masks take part in no pass. The number of
    masks is read once, before the loop. So no later step makes the host wait for an accelerator, unless `on_step_end`
    returns a different sample or the scheduler decides its counts as it goes.

    Args:
        denoiser: maps tokens, the step's time and the rows of the batch to logits, guidance included.
        scheduler: a scheduler whose `set_timesteps` has been called.
        sample: tokens, int64 `(batch_size, L)` or `(batch_size, height, width)`, with `mask_token_id` at the positions
            to fill in.
        generator: one for the batch, one per row, or None for fresh noise from torch's global generator. A row's own
            generator advances with each step until the row holds no mask.
        first_step: the first of the scheduler's steps that is run; earlier ones are skipped, as in image-to-image.
        initial: N_0 of each row, int64 `(batch_size,)`: how many masks it would hold at step 0, which the masking
            schedule starts from. None if that is the number of masks in `sample`.
        given: which positions no step may touch while they hold a token, bool like `sample`. None: all that are known
            at the start. What a callback writes is given from then on; what it masks is not.
        reuse_logits: True if logits depend on the tokens alone, so that a row in which the last step revealed nothing
            needs no new model call. Only schedulers that may idle have such steps; detecting them makes the host wait.
        partial_cache: splits a step's positions into groups, with a partial pass before each group but the first. The
            denoiser must then accept `positions`, and its full passes must not change what is cached.
        pass_of_step: computes the logits that a step begins with, of the rows that need them; it may take the keys and
            values of some positions from earlier steps. None calls `denoiser` for all positions.
        lengths: how many positions of each row the model sees, int64 `(batch_size,)`, to compute the share of them that
            a step reveals; None if these are the positions of `sample`.
        progress_bar: called with `total=`, the number of model calls; returns a context manager with `update()`.
        on_step_end: called after each step with the step's index, from 0; the run continues with the sample it returns.
        without_ended: called after each step with the sample; returns it without the masks of rows that need no further
            step, the sample itself if there are none.
        interrupted: called before each step; when it returns True the loop ends, with positions still masked.

    Returns:
        Tokens, the shape of `sample`.

    Raises:
        ValueError: no token can be drawn from the logits; the message gives the step's number.
    """
    take_step = step_of(denoiser, scheduler, partial_cache, lengths)
    reuse_logits = reuse_logits and isinstance(take_step, WholeStep)  # groups need all rows' keys and values
    pass_of_step = take_step.passes(whole_pass(denoiser) if pass_of_step is None else pass_of_step)
    generator = _fresh() if generator is None else generator
    mask = scheduler.config.mask_token_id
    given = sample != mask if given is None else given & (sample != mask)
    start = scheduler.start_run(sample, given, generator)
    sample = start.sample
    counts = StepCounts(scheduler, sample, initial, first_step, given, take_step.memory)
    starting_mask_ratio = counts.starting_mask_ratio
    logits: StepLogits | None = None
    before, began = sample, 0  # the tokens that `logits` belong to, and the step in which the passes began afresh
    with progress_bar(total=counts.num_passes) as bar:
        for i, t in enumerate(counts.timesteps):
            masked = sample == mask
            count, changed = counts.of_step(i, sample, masked, given, before if reuse_logits else None)
            unfinished = [row for row, some in enumerate(count.tolist()) if some]
            if not unfinished or interrupted():
                break
            rows = unfinished if logits is None else [row for row in unfinished if changed[row]]
            own = _of_unfinished_rows(generator, count)
            following = counts.timesteps[i + 1] if i + 1 < len(counts.timesteps) else None
            untouched = given if len(unfinished) == len(count) else _with_finished_rows(given, count)
            step = StepInput(t, sample, starting_mask_ratio, own, count, untouched, following)
            choice = take_step.ahead(step)
            remaining = counts.remaining(i, count)
            read = masked | ~given if scheduler.reads_revealed else masked
            reading = (read.flatten(1), counts.num_read(remaining), choice, start.embedding_noise, counts.put_back(i))
            now = StepRows(i - began, rows, unfinished, remaining, *reading)
            if logits is None or len(rows) == len(unfinished):
                logits = None  # free their memory before the next logits are computed
                logits = pass_of_step(sample, t, now)
            elif rows:
                logits.replace_rows(pass_of_step(sample, t, now))
            before, guidance = sample, guidance_of(denoiser)
            sample = take_step(logits, step, choice)
            counts.note(i, sample)
            returned = on_step_end(i, t, sample)
            if guidance_of(denoiser) != guidance:
                logits = None  # the same tokens have others now
            if returned is not sample and not torch.equal(returned, sample):  # whatever has changed, passes see it
                given = torch.where(returned != sample, returned != mask, given)
                counts.depart(returned, given)
                logits, began = None, i + 1
            sample = returned if without_ended is None else without_ended(returned)
            if sample is not returned:
                given = given | (sample != returned).any(-1, keepdim=True)  # of rows that have ended, all of it
                counts.finish_rows(sample)
            bar.update()
    counts.require_all_drawn()
    return sample


def _fresh() -> torch.Generator:
    """A generator with a seed of torch's global one."""
    return torch.Generator().manual_seed(int(torch.randint(2**63 - 1, (1,))))


def _with_finished_rows(given: Tensor, counts: Tensor) -> Tensor:
    """What no step may touch, all of the finished rows among it, for which no logits are computed any more."""
    finished = (counts == 0).view(-1, *[1] * (given.ndim - 1))
    return given | finished.to(given.device, non_blocking=True)


def _of_unfinished_rows(generator: Generators, counts: Tensor) -> Generators:
    """The generators of the rows; a finished row gets a new one instead of its own.

    A finished row still takes part in the remaining steps of the batch. If these drew from the row's own generator, its
    final state would depend on the other rows.
    """
    if not isinstance(generator, Sequence):
        return generator
    return [
        own if count else torch.Generator(own.device) for own, count in zip(generator, counts.tolist(), strict=True)
    ]
