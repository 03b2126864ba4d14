"""A step in ordered groups: which rank belongs to which group, and how the groups are drawn one after another."""

from __future__ import annotations

import torch
from torch import Tensor

from ..caching import PartialCacheConfig
from ..sampling import Purpose, first_rows, position_noise
from ..schedulers import Choice, ChooseThenSampleScheduler, MaskedDiffusionScheduler
from .looking_ahead import StepLookingAhead, require_no_cache
from .step_input import StepInput
from .step_logits import Denoiser, PassOfStep, StepLogits, as_index


class WholeStep:
    """Draws all positions of a step from the logits of one pass; what the scheduler remembers of a run ends with it."""

    def __init__(self, scheduler: MaskedDiffusionScheduler) -> None:
        self.scheduler, self.memory = scheduler, scheduler.new_memory()

    def ahead(self, step: StepInput) -> None:
        """Nothing is chosen before the logits are there."""

    def passes(self, pass_of_step: PassOfStep) -> PassOfStep:
        """The passes that steps begin with: as they are."""
        return pass_of_step

    def __call__(self, logits: StepLogits, step: StepInput, choice: Choice | None = None) -> Tensor:
        """Take the step: returns tokens like `step.sample`; `choice` is what `ahead` returned."""
        arguments = (logits.values, *step.state, False, step.most)
        return self.scheduler.step(*arguments, logits.places, self.memory, step.untouched)[0]


class StepInGroups:
    """Draws the positions of a step in ordered groups, with another pass before each group but the first.

    A scheduler that chooses without logits does so before the step's pass, which then gives logits of the chosen
    positions alone.

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
        self.memory = scheduler.new_memory()

    def ahead(self, step: StepInput) -> Choice | None:
        """The step's choice if the scheduler needs no logits for it; else None."""
        if not self.scheduler.chooses_without_logits:
            return None
        return self.scheduler.choose(None, *step.state, step.most, memory=self.memory, given=step.untouched)

    def passes(self, pass_of_step: PassOfStep) -> PassOfStep:
        """The passes that steps begin with: as they are."""
        return pass_of_step

    def __call__(self, logits: StepLogits, step: StepInput, choice: Choice | None = None) -> Tensor:
        """Take the step: returns tokens like `step.sample`; `choice` is what `ahead` returned."""
        if choice is None:
            arguments = (logits.values, *step.state, step.most)
            choice = self.scheduler.choose(*arguments, logits.places, self.memory, step.untouched)
        t, count, sample = step.timestep, step.count, choice.canvas.view_as(step.sample)
        # The rows that hold masks; the others take part in no further pass.
        rows = as_index([row for row, some in enumerate(count.tolist()) if some], len(sample), sample.device)
        own = choice if isinstance(rows, slice) else choice.of_rows(rows)
        values = self._chosen(logits, choice, rows)
        tokens, groups = own.tokens, groups_of(own, self.partial_cache)
        # Rows that reveal a large share of their positions draw their later groups from full passes.
        lengths = torch.tensor(sample[0].numel()) if self.lengths is None else self.lengths
        large = (count > self.partial_cache.full_pass_threshold * lengths)[count > 0]
        in_full = large.nonzero()[:, 0].to(sample.device, non_blocking=True)  # so that the host need not wait
        num_groups = num_groups_of(count[count > 0], self.partial_cache)
        partial = own.valid.index_fill(0, in_full, False)  # partial passes store nothing in rows with full passes
        for group in range(min(self.partial_cache.num_substeps, own.positions.shape[1])):
            if group and len(in_full) < len(tokens):
                drawing = partial & (groups == group).any(-1, keepdim=True)  # some rows have fewer groups than others
                values = self.denoiser(tokens, t, rows, torch.where(drawing, own.positions, ~own.positions))
            still = (large & (num_groups > group)).nonzero()[:, 0].to(sample.device, non_blocking=True)
            if group and len(still):
                values = self._with_full_pass(values, t, sample[rows], own, tokens, rows, still)
            drawn = self.scheduler.sample_tokens(values, own, groups == group)
            tokens = torch.where(groups == group, drawn, tokens)
        written = _written(sample[rows], own, tokens)
        return written if isinstance(rows, slice) else sample.index_copy(0, rows, written)

    def _chosen(self, logits: StepLogits, choice: Choice, rows: Tensor | slice) -> Tensor:
        """The logits of the chosen positions of `rows`, `(num_rows, K, V)`."""
        if logits.places is None:
            return _at(logits.values[rows], choice.positions[rows])
        flat = choice.positions + first_rows(*choice.sample.shape, choice.positions.device)
        marginals = self.scheduler.marginals(logits.values, logits.places, choice.sample.numel())
        return marginals.rows_at(flat[rows])

    def _with_full_pass(
        self,
        logits: Tensor,
        t: Tensor,
        sample: Tensor,
        choice: Choice,
        tokens: Tensor,
        rows: Tensor | slice,
        in_full: Tensor,
    ) -> Tensor:
        """The logits at the chosen positions; those of `in_full` come from a full pass over their current tokens."""
        written = _written(sample, choice, tokens)
        if len(in_full) == len(sample):
            return _at(self.denoiser(written, t, rows), choice.positions)
        of_batch = in_full if isinstance(rows, slice) else rows[in_full]
        fresh = _at(self.denoiser(written[in_full], t, of_batch), choice.positions[in_full])
        return logits.index_copy(0, in_full, fresh)


def step_of(
    denoiser: Denoiser,
    scheduler: MaskedDiffusionScheduler,
    partial_cache: PartialCacheConfig | None,
    lengths: Tensor | None,
) -> WholeStep | StepInGroups | StepLookingAhead:
    """The function that takes a run's steps, whole, in groups or looking ahead; for the arguments see `StepInGroups`.

    Raises:
        ValueError: partial caching is on, but the scheduler does not choose its positions before its tokens, or looks
            ahead.
    """
    in_groups = partial_cache is not None and partial_cache.num_substeps > 1
    if not isinstance(scheduler, ChooseThenSampleScheduler):
        if not in_groups:
            return WholeStep(scheduler)
        raise ValueError(
            "partial caching needs a scheduler that chooses positions before it draws tokens, got "
            f"{type(scheduler).__name__}. Use MomentScheduler or another one that does, or call `disable_cache()`."
        )
    if scheduler.num_candidates > 1:
        require_no_cache(scheduler, partial_cache if in_groups else None)
        return StepLookingAhead(denoiser, scheduler)
    if partial_cache is not None and in_groups:
        return StepInGroups(denoiser, scheduler, partial_cache, lengths)
    if _chooses_ahead(scheduler):
        return StepInGroups(denoiser, scheduler, PartialCacheConfig(num_substeps=1), lengths)
    return WholeStep(scheduler)


def _chooses_ahead(scheduler: ChooseThenSampleScheduler) -> bool:
    """Whether positions are chosen before a step's pass; a scheduler with a `step` of its own is left to take it."""
    own_step = getattr(scheduler.step, "__func__", None) is not ChooseThenSampleScheduler.step
    return scheduler.chooses_without_logits and not own_step


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
    first = _first_group(choice.count, fraction)[:, None]
    later = group_of_ranks(ranks - first, (choice.count - first[:, 0]).clamp(min=0), num_groups - 1) + 1
    return torch.where(ranks < first, 0, later).where(ranks < choice.count[:, None], num_groups)


def num_groups_of(count: Tensor, partial_cache: PartialCacheConfig) -> Tensor:
    """How many groups rows are drawn in that draw so many positions, int64 like `count`."""
    num_groups, fraction = partial_cache.num_substeps, partial_cache.first_group_fraction
    if fraction is None:
        return count.clamp(max=num_groups)
    return 1 + (count - _first_group(count, fraction)).clamp(min=0, max=num_groups - 1)


def _first_group(count: Tensor, fraction: float) -> Tensor:
    """How many positions the first group holds, int64 like `count`."""
    return (count * fraction).round().long().clamp(min=1)


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
