"""The one denoising loop, for images and for text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ..models import PartialCacheConfig
from ..sampling import Generators, Purpose, position_noise
from ..schedulers import Choice, ChooseThenSampleScheduler, MaskedDiffusionScheduler

# (sample (num_rows, ...), timestep, which rows of the batch they are) -> logits (num_rows, L, V). In a partial pass:
# (tokens (batch_size, K), timestep, all rows, positions int64 (batch_size, K)) -> logits (batch_size, K, V)
Denoiser = Callable[..., Tensor]
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
    if partial_cache is not None and partial_cache.num_substeps == 1:
        partial_cache = None
    if partial_cache is not None and not isinstance(scheduler, ChooseThenSampleScheduler):
        raise ValueError(
            f"partial caching needs positions that are known before their tokens, got {type(scheduler).__name__}. Use "
            "MomentScheduler, which has its law, or call `disable_cache()`."
        )
    if generator is None:
        generator = torch.Generator().manual_seed(int(torch.randint(2**63 - 1, (1,))))
    num_masked = _num_masked(scheduler, sample).cpu()
    first_step = scheduler.fit_timesteps(num_masked, first_step)
    initial = num_masked if initial is None else initial.cpu()
    starting_mask_ratio = initial.double() / max(sample[0].numel(), 1)
    planned = scheduler.planned_counts(num_masked, initial, first_step)  # None where they depend on the logits
    plan = planned
    masks_after = []
    lengths = torch.full((len(sample),), sample[0].numel() if len(sample) else 0) if lengths is None else lengths.cpu()
    logits: Tensor | None = None
    # Rows whose logits are out of date, or not there yet.
    changed = torch.ones(len(sample), dtype=torch.bool, device=sample.device)

    timesteps = scheduler.timesteps[first_step:]
    passes = len(timesteps) if planned is None else int((planned > 0).any(-1).sum())
    with progress_bar(total=passes) as bar:
        for i, t in enumerate(timesteps):
            # Without a plan any masked position may be revealed; looking how many there are makes the host wait.
            counts = _num_masked(scheduler, sample).cpu() if plan is None else plan[i]
            max_count = int(counts.max())
            if max_count == 0 or interrupted():
                break
            if logits is None or plan is not None or not reuse_logits or partial_cache or bool(changed.all()):
                logits = None  # freed before the next ones are made
                logits = denoiser(sample, t, slice(None))
            elif bool(changed.any()):
                rows = changed.nonzero()[:, 0]
                logits[rows] = denoiser(sample[rows], t, rows)
            before = sample
            step_arguments = (t, sample, starting_mask_ratio, _of_unfinished_rows(generator, counts))
            if partial_cache is None:
                sample = scheduler.step(logits, *step_arguments, return_dict=False, max_count=max_count)[0]
            else:
                choice = scheduler.choose(logits, *step_arguments, max_count=max_count)
                in_full = counts > partial_cache.full_pass_threshold * lengths
                sample = _sample_in_groups(denoiser, scheduler, logits, choice, t, sample, partial_cache, in_full)
            if plan is not None or planned is None:
                masks_after.append(_num_masked(scheduler, sample))

            returned = on_step_end(i, t, sample)
            if returned is not sample:
                sample, plan = returned, None
            if plan is None:
                changed = (sample != before).flatten(1).any(-1) & (_num_masked(scheduler, sample) > 0)
            bar.update()

    if planned is not None:
        allowed = planned.sum(0) - planned.cumsum(0)
    else:  # all that is known is that the last step leaves none
        allowed = torch.full((len(timesteps), 1), sample[0].numel() if len(sample) else 0)
        allowed[-1:] = 0
    _require_all_drawn(masks_after, allowed, first_step)
    return sample


def _sample_in_groups(
    denoiser: Denoiser,
    scheduler: ChooseThenSampleScheduler,
    logits: Tensor,
    choice: Choice,
    t: Tensor,
    sample: Tensor,
    partial_cache: PartialCacheConfig,
    in_full: Tensor,
) -> Tensor:
    """Draw a step's tokens in ordered groups, with a pass over its positions before each but the first.

    Args:
        in_full: bool `(batch_size,)` on the CPU, the rows whose later groups are drawn from full passes.
    """
    tokens, num_ranks = choice.tokens, choice.positions.shape[1]
    logits = _at(logits, choice.positions)
    groups = groups_of(choice, partial_cache)
    rows = in_full.nonzero()[:, 0].to(sample.device)
    partial = choice.valid.index_fill(0, rows, False)  # in the other rows nothing is written
    positions = torch.where(partial, choice.positions, ~choice.positions)
    for group in range(min(partial_cache.num_substeps, num_ranks)):
        if group and len(rows) < len(sample):
            logits = denoiser(tokens, t, slice(None), positions)
        if group and len(rows):
            written = sample.flatten(1).scatter(1, choice.positions, tokens).view_as(sample)
            every = len(rows) == len(sample)
            fresh = _at(denoiser(written[rows], t, slice(None) if every else rows), choice.positions[rows])
            logits = fresh if every else logits.index_copy(0, rows, fresh)
        drawn = scheduler.sample_tokens(logits, choice, groups == group)
        tokens = torch.where(groups == group, drawn, tokens)
    return sample.flatten(1).scatter(1, choice.positions, tokens).view_as(sample)


def _at(logits: Tensor, positions: Tensor) -> Tensor:
    return logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[-1]))


def groups_of(choice: Choice, partial_cache: PartialCacheConfig) -> Tensor:
    """Which group each rank of a step belongs to, int64 `(batch_size, K)`: 0 first, `num_substeps` where not valid."""
    num_groups, fraction = partial_cache.num_substeps, partial_cache.first_group_fraction
    ranks = torch.arange(choice.positions.shape[1], device=choice.count.device).expand(choice.positions.shape)
    if partial_cache.random_groups:
        noise = position_noise(choice.keys, choice.sample.shape[1], Purpose.GROUP)[0].to(ranks.device)
        noise = noise.gather(1, choice.positions).masked_fill(~choice.valid, 2.0)
        ranks = noise.argsort(-1).argsort(-1)
    if fraction is None:
        return group_of_ranks(ranks, choice.count, num_groups)
    first = (choice.count * fraction).round().long().clamp(min=1)[:, None]
    later = group_of_ranks(ranks - first, (choice.count - first[:, 0]).clamp(min=0), num_groups - 1) + 1
    return torch.where(ranks < first, 0, later).where(ranks < choice.count[:, None], num_groups)


def group_of_ranks(ranks: Tensor, count: Tensor, num_groups: int) -> Tensor:
    """Cuts each row's ranks into ordered groups whose sizes differ by at most one, larger ones first.

    Args:
        ranks: int64 `(batch_size, K)`, 0 first.
        count: valid ranks of each row, int64 `(batch_size,)`; with fewer than `num_groups` each is a group of its own.

    Returns:
        int64 `(batch_size, K)`, 0 first; ranks that are not valid get `num_groups`.

    Example:
        >>> group_of_ranks(torch.arange(6).expand(2, 6), torch.tensor([5, 2]), num_groups=3)
        tensor([[0, 0, 1, 1, 2, 3],
                [0, 1, 3, 3, 3, 3]])
    """
    count = count[:, None]
    size, num_larger = count // num_groups, count % num_groups
    in_larger = num_larger * (size + 1)
    group = torch.where(ranks < in_larger, ranks // (size + 1), num_larger + (ranks - in_larger) // size.clamp(min=1))
    return torch.where(ranks < count, group, num_groups)


def _of_unfinished_rows(generator: Generators, counts: Tensor) -> Generators:
    """The rows' generators, those of finished rows replaced: how far one moves on must not depend on other rows."""
    if not isinstance(generator, Sequence):
        return generator
    return [
        own if count else torch.Generator(own.device) for own, count in zip(generator, counts.tolist(), strict=True)
    ]


def _num_masked(scheduler: MaskedDiffusionScheduler, sample: Tensor) -> Tensor:
    return (sample == scheduler.config.mask_token_id).flatten(1).sum(-1)


def _require_all_drawn(masks_after: list[Tensor], allowed: Tensor, first_step: int) -> None:
    """On an accelerator a position without a drawable token stays masked: find the first step with more masks left.

    On a CPU the step itself has raised.
    """
    if not masks_after:
        return
    failed = (torch.stack(masks_after).cpu() > allowed[: len(masks_after)]).any(-1)
    if bool(failed.any()):
        step_index = first_step + int(failed.int().argmax())
        raise ValueError(
            "`model_output` must allow a token at every position and hold no NaN or +inf, got such logits in step "
            f"{step_index} (counted from 0). Check the model's weights, dtype and `guidance_scale`."
        )
