"""A step in ordered groups: which rank belongs to which group, and how the groups are drawn one after another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..caching import PartialCacheConfig
from ..sampling import Generators, Purpose, position_noise
from ..schedulers import Choice, ChooseThenSampleScheduler, MaskedDiffusionScheduler

# (sample (num_rows, ...), timestep, their rows in the batch) -> logits (num_rows, L, V). In a partial pass:
# (tokens (batch_size, K), timestep, all rows, positions int64 (batch_size, K)) -> logits (batch_size, K, V)
Denoiser = Callable[..., Tensor]


class WholeStep:
    """Draws all positions of a step from the logits of one pass."""

    def __init__(self, scheduler: MaskedDiffusionScheduler) -> None:
        self.scheduler = scheduler

    def __call__(
        self,
        logits: Tensor,
        t: Tensor,
        sample: Tensor,
        starting_mask_ratio: Tensor,
        generator: Generators,
        count: Tensor,
    ) -> Tensor:
        """Take the step: returns tokens like `sample`; `count`, on the CPU, bounds what each row may reveal."""
        arguments = (logits, t, sample, starting_mask_ratio, generator)
        return self.scheduler.step(*arguments, return_dict=False, max_count=int(count.max()))[0]


class StepInGroups:
    """Draws the positions of a step in ordered groups, with another pass before each group but the first.

    Args:
        denoiser: maps tokens to logits; supports partial passes.
        scheduler: chooses the positions, then draws the tokens.
        partial_cache: how many groups there are, and which ranks belong to each.
        lengths: how many positions of each row the model sees, int64 `(batch_size,)`; None if these are the positions
            of the sample.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scheduler: ChooseThenSampleScheduler,
        partial_cache: PartialCacheConfig,
        lengths: Tensor | None,
    ) -> None:
        self.denoiser, self.scheduler, self.partial_cache = denoiser, scheduler, partial_cache
        self.lengths = None if lengths is None else lengths.cpu()

    def __call__(
        self,
        logits: Tensor,
        t: Tensor,
        sample: Tensor,
        starting_mask_ratio: Tensor,
        generator: Generators,
        count: Tensor,
    ) -> Tensor:
        """Take the step: returns tokens like `sample`; `count`, on the CPU, bounds what each row may reveal."""
        arguments = (logits, t, sample, starting_mask_ratio, generator)
        choice = self.scheduler.choose(*arguments, max_count=int(count.max()))
        logits = _at(logits, choice.positions)
        tokens, groups = choice.tokens, groups_of(choice, self.partial_cache)
        # Rows that reveal a large share of their positions draw their later groups from full passes.
        lengths = sample[0].numel() if self.lengths is None else self.lengths
        in_full = (count > self.partial_cache.full_pass_threshold * lengths).nonzero()[:, 0]
        in_full = in_full.to(sample.device, non_blocking=True)  # so that the host need not wait
        partial = choice.valid.index_fill(0, in_full, False)  # partial passes store nothing in rows with full passes
        positions = torch.where(partial, choice.positions, ~choice.positions)
        for group in range(min(self.partial_cache.num_substeps, choice.positions.shape[1])):
            if group and len(in_full) < len(sample):
                logits = self.denoiser(tokens, t, slice(None), positions)
            if group and len(in_full):
                logits = self._with_full_pass(logits, t, sample, choice, tokens, in_full)
            drawn = self.scheduler.sample_tokens(logits, choice, groups == group)
            tokens = torch.where(groups == group, drawn, tokens)
        return _written(sample, choice, tokens)

    def _with_full_pass(
        self, logits: Tensor, t: Tensor, sample: Tensor, choice: Choice, tokens: Tensor, rows: Tensor
    ) -> Tensor:
        """The logits at the chosen positions; those of `rows` come from a full pass over their current tokens."""
        written = _written(sample, choice, tokens)[rows]
        if len(rows) == len(sample):
            return _at(self.denoiser(written, t, slice(None)), choice.positions)
        return logits.index_copy(0, rows, _at(self.denoiser(written, t, rows), choice.positions[rows]))


def step_of(
    denoiser: Denoiser,
    scheduler: MaskedDiffusionScheduler,
    partial_cache: PartialCacheConfig | None,
    lengths: Tensor | None,
) -> WholeStep | StepInGroups:
    """The function that takes a run's steps, whole or in groups; for the arguments see `StepInGroups`.

    Raises:
        ValueError: partial caching is on, but the scheduler does not choose its positions before its tokens.
    """
    if partial_cache is None or partial_cache.num_substeps == 1:
        return WholeStep(scheduler)
    if not isinstance(scheduler, ChooseThenSampleScheduler):
        raise ValueError(
            "partial caching needs a scheduler that chooses positions before it draws tokens, got "
            f"{type(scheduler).__name__}. Use MomentScheduler, which samples almost like it, or call `disable_cache()`."
        )
    return StepInGroups(denoiser, scheduler, partial_cache, lengths)


def _at(logits: Tensor, positions: Tensor) -> Tensor:
    return logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[-1]))


def _written(sample: Tensor, choice: Choice, tokens: Tensor) -> Tensor:
    return sample.flatten(1).scatter(1, choice.positions, tokens).view_as(sample)


def groups_of(choice: Choice, partial_cache: PartialCacheConfig) -> Tensor:
    """The group of each rank of a step, int64 `(batch_size, K)`: 0 is drawn first; `num_substeps` for invalid ranks."""
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
    """Split each row's ranks into ordered groups whose sizes differ by at most one; larger groups come first.

    Args:
        ranks: int64 `(batch_size, K)`, 0 first.
        count: number of valid ranks in each row, int64 `(batch_size,)`; if it is below `num_groups`, each rank is a
            group of its own.

    Returns:
        The group of each rank, int64 `(batch_size, K)`; invalid ranks get `num_groups`.

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
