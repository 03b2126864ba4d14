"""The one denoising loop, for images and for text."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ..sampling import Generators
from ..schedulers import MaskedDiffusionScheduler

# sample (batch_size, ...) -> logits (batch_size, L, V)
Denoiser = Callable[[Tensor], Tensor]
# (step index, timestep, sample) -> sample
StepCallback = Callable[[int, Tensor, Tensor], Tensor]


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    scheduler: MaskedDiffusionScheduler,
    sample: Tensor,
    generator: Generators = None,
    *,
    progress_bar: Callable[..., AbstractContextManager],
    on_step_end: StepCallback,
    interrupted: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Fill in the masked positions of a batch, one model call per step; known tokens stay.

    Steps in which no row would reveal anything are not run. The number of masks is read once, before the loop: no later
    step makes the host wait for an accelerator, unless `on_step_end` returns another sample than it was given.

    Args:
        denoiser: maps tokens to logits `(batch_size, L, V)`, guidance included.
        scheduler: with `set_timesteps` called.
        sample: tokens int64 `(batch_size, L)` or `(batch_size, height, width)`, `mask_token_id` where to be filled in.
        generator: one for the batch, one per row, or None for fresh noise from torch's global generator.
        progress_bar: called with `total=`, the number of model calls; a context manager with `update()`.
        on_step_end: called after each step; what it returns is the sample from there on.
        interrupted: asked before each step; when true the loop ends with positions still masked.

    Returns:
        Tokens, the shape of `sample`.

    Raises:
        ValueError: logits from which nothing can be drawn, with the step's number.
    """
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(2**63 - 1, (1,))))
    num_masked = _num_masked(scheduler, sample).cpu()
    starting_mask_ratio = num_masked.double() / max(sample[0].numel(), 1)
    planned = scheduler.planned_counts(num_masked)
    plan: Tensor | None = planned
    masks_after = []

    with progress_bar(total=int((planned > 0).any(-1).sum())) as bar:
        for i, t in enumerate(scheduler.timesteps):
            # Without a plan any masked position may be revealed; looking how many there are makes the host wait.
            max_count = int((_num_masked(scheduler, sample) if plan is None else plan[i]).max())
            if max_count == 0 or interrupted():
                break
            logits = denoiser(sample)
            stepped = scheduler.step(
                logits, t, sample, starting_mask_ratio, generator, return_dict=False, max_count=max_count
            )
            sample = stepped[0]
            if plan is not None:
                masks_after.append(_num_masked(scheduler, sample))

            returned = on_step_end(i, t, sample)
            if returned is not sample:
                sample, plan = returned, None
            bar.update()

    _require_all_drawn(masks_after, planned)
    return sample


def _num_masked(scheduler: MaskedDiffusionScheduler, sample: Tensor) -> Tensor:
    return (sample == scheduler.config.mask_token_id).flatten(1).sum(-1)


def _require_all_drawn(masks_after: list[Tensor], plan: Tensor) -> None:
    """On an accelerator a position without a drawable token stays masked: find the first step with more masks left.

    A CPU has raised within the step.
    """
    if not masks_after or masks_after[0].device.type == "cpu":
        return
    planned = plan.sum(0) - plan.cumsum(0)[: len(masks_after)]
    failed = (torch.stack(masks_after).cpu() > planned).any(-1)
    if bool(failed.any()):
        raise ValueError(
            "`model_output` must allow a token at every position and hold no NaN or +inf, got such logits in step "
            f"{int(failed.int().argmax())} (counted from 0). Check the model's weights, dtype and `guidance_scale`."
        )
