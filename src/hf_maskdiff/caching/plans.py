"""Which positions the pass of a step computes: one plan for each published cache.

A pass takes the keys and values of all positions that it does not compute from earlier passes. A plan says which
positions a pass computes and when all are computed afresh. It knows neither the model nor the scheduler.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from hf_maskdiff.caching.cache_config import CacheConfig
from hf_maskdiff.caching.key_values import Span, places_of
from hf_maskdiff.caching.partial_cache import PartialCacheConfig
from hf_maskdiff.integers import as_integer, is_integer


@dataclass(frozen=True)
class PassState:
    """What is known before the pass of a step, for each of the R rows of the pass.

    Args:
        step: number of steps since the block began, or since a callback put in other tokens; 0 is the first.
        starts, ends: the range of each row's block in its window, int64 `(R,)` on the CPU.
        lengths: the lengths of the windows, int64 `(R,)` on the CPU.
        masked: which positions of each window were masked before the row's last pass, or have been masked again since,
            bool `(R, L)`. These are the positions that are masked now, and those whose tokens have been drawn since.
        num_masked: their number in each row, or at most so many, int64 `(R,)` on the CPU.
        resumed: where the block of the row that this call filled in before began in its window, int64 `(R,)` on the
            CPU; -1 if this is the row's first block, for which nothing is stored yet.
        block_starts: where the blocks begin that the model sees from left to right and in which `starts` are, int64
            `(R,)` on the CPU; `resumed` is then where such a block begins, too. None for a model that sees everything.
        masked_now, num_masked_now: as `masked` and `num_masked`, now: without the tokens drawn since the last pass.
        chosen: positions in the windows that this step reveals, in order, int64 `(R, K)`; `-p - 1` at ranks that are
            not valid. None if the scheduler chooses them only after the pass.
    """

    step: int
    starts: Tensor
    ends: Tensor
    lengths: Tensor
    masked: Tensor
    num_masked: Tensor
    resumed: Tensor
    block_starts: Tensor | None = None
    masked_now: Tensor | None = None
    num_masked_now: Tensor | None = None
    chosen: Tensor | None = None


@dataclass(frozen=True)
class Queries:
    """The positions that a pass computes.

    Args:
        positions: positions in the windows, int64 `(R, K)`, distinct within a row. A position p given as `-p - 1` only
            fills up its row: it is computed, but not stored.
        num_runs: the largest number of runs of neighbouring positions in any row.
        span: the range that `positions` are in every row, in order, if it is the same in all rows; else None.
    """

    positions: Tensor
    num_runs: int
    span: Span | None = None

    @property
    def num_computed(self) -> int | Tensor:
        """How many positions each row computes and stores: one number for all rows, or int64 `(R,)`."""
        return (self.positions >= 0).sum(-1) if self.span is None else self.span[1] - self.span[0]


class PassPlan(Protocol):
    """Says which positions the pass of each step computes.

    Attributes:
        outlives_blocks: whether what one block stores serves the next ones; rows that have finished a block are then
            kept for their next one.
        computes_block: whether every pass computes the whole block, revealed positions among it.
    """

    @property
    def outlives_blocks(self) -> bool: ...

    @property
    def computes_block(self) -> bool: ...

    def queries(self, state: PassState) -> Queries | None:
        """The positions to compute; None for all of them, afresh. Must not depend on other rows, except for K."""


@dataclass
class CachePlanConfig(CacheConfig):
    """Base of the plans that users switch on; a plan is its own configuration, since it keeps no state.

    Args:
        refresh_every: compute all positions afresh in the first step of each block, and in every step whose index in
            the block is a multiple of this number; 1 equals no cache. None: only in the first step of each block.
        partial: draws each step in groups besides, with a partial pass before each group but the first.

    Raises:
        ValueError: a value is out of range.
    """

    refresh_every: int | None = None
    partial: PartialCacheConfig | None = None
    outlives_blocks: ClassVar[bool] = False
    computes_block: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.refresh_every is not None:
            if not is_integer(self.refresh_every, at_least=1):
                raise ValueError(
                    f"`refresh_every` must be an integer of at least 1 or None, got {self.refresh_every!r}. Pass the "
                    "number of steps after which all positions are computed afresh."
                )
            self.refresh_every = as_integer(self.refresh_every)
        if self.partial is not None and not isinstance(self.partial, PartialCacheConfig):
            raise ValueError(
                f"`partial` must be a PartialCacheConfig or None, got {type(self.partial).__name__}. Pass "
                "`PartialCacheConfig(num_substeps=2)` for one partial pass per step."
            )

    def within_steps(self) -> PartialCacheConfig | None:
        return self.partial

    def across_steps(self) -> PassPlan | None:
        return None if self.refresh_every == 1 else self

    def queries(self, state: PassState) -> Queries | None:
        """The positions to compute in this step; None for all of them, afresh."""
        if state.step == 0 or (self.refresh_every is not None and state.step % self.refresh_every == 0):
            return None
        return self.between_refreshes(state)

    @abstractmethod
    def between_refreshes(self, state: PassState) -> Queries | None:
        """The positions to compute in a step that does not compute all of them afresh."""


@dataclass
class PrefixCacheConfig(CachePlanConfig):
    """Computes a block and all that follows it; keys and values of what stands before it come from its first step.

    ```python
    pipe.enable_cache(PrefixCacheConfig())
    pipe("Once upon a time", max_new_tokens=256, block_length=32)
    ```

    The safest of the caches across steps: tokens before the block do not change while it is filled in, only what they
    see of it does. It saves most with long prompts and in the last blocks. Without a prompt and `block_length` there is
    nothing before the block, and nothing is saved. "Fast-dLLM" (arXiv 2505.22618), section 3.2.

    Args:
        refresh_every, partial: see `CachePlanConfig`.
    """

    def between_refreshes(self, state: PassState) -> Queries | None:
        return ranges_of(state, state.starts, state.lengths)


@dataclass
class DualCacheConfig(CachePlanConfig):
    """Computes nothing but the block; keys and values of all other positions come from its first step.

    ```python
    pipe.enable_cache(DualCacheConfig())
    pipe("Once upon a time", max_new_tokens=256, block_length=32)
    ```

    The fastest cache for models that see the whole sequence: the cost of a step does not grow with its length, except
    in attention. The masks behind the block are as stale as the tokens before it. Without `block_length` the block is
    the whole sequence, and nothing is saved. "Fast-dLLM" (arXiv 2505.22618), section 3.2.

    Args:
        refresh_every, partial: see `CachePlanConfig`.
    """

    def between_refreshes(self, state: PassState) -> Queries | None:
        return ranges_of(state, state.starts, state.ends)


@dataclass
class DelayedCacheConfig(CachePlanConfig):
    """Computes the masked positions and those drawn in the last step; needs no blocks, and serves images too.

    ```python
    pipe.enable_cache(DelayedCacheConfig(refresh_every=8))
    ```

    The keys and values of a token are stored one step after it was drawn, since they change most in the step in which
    the mask becomes a token. A token that is masked again is computed as a mask at once; schedulers that read the
    logits of revealed positions need another plan. Steps get cheaper as masks get fewer, so with few masks left it
    computes less than `DualCacheConfig`, and with many more. The first two steps of a block compute everything.
    "dKV-Cache" (arXiv 2505.15781), its variant "decode".

    Args:
        refresh_every, partial: see `CachePlanConfig`.
    """

    refresh_every: int | None = 8
    computes_block: ClassVar[bool] = False

    def between_refreshes(self, state: PassState) -> Queries | None:
        if state.step == 1:
            return None
        return positions_of(state.masked, int(state.num_masked.max()))


@dataclass
class GreedyCacheConfig(CachePlanConfig):
    """Computes the tokens drawn in the last step, the positions drawn in this one, and some masks near to these.

    ```python
    pipe.scheduler = HaltonScheduler.from_config(pipe.scheduler.config)
    pipe.enable_cache(GreedyCacheConfig(window=4))
    ```

    The smallest passes of all: their size does not grow with the sequence, without blocks either. In exchange all other
    masks are stale, too. It needs a scheduler that chooses positions without the model: `UniformScheduler`,
    `HaltonScheduler`, or a `HybridScheduler` of these. "dKV-Cache" (arXiv 2505.15781), its variant "greedy", which has
    nothing to do with greedy tokens.

    Args:
        refresh_every, partial: see `CachePlanConfig`.
        window: for each position that the step draws, the nearest masks that are computed besides; 0 for none.

    Raises:
        ValueError: a value is out of range.
    """

    refresh_every: int | None = 2
    window: int = 4
    computes_block: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_integer(self.window, at_least=0):
            raise ValueError(
                f"`window` must be an integer of at least 0, got {self.window!r}. Pass the number of masks to compute "
                "near each position that a step draws."
            )
        self.window = as_integer(self.window)

    def queries(self, state: PassState) -> Queries | None:
        if state.chosen is None:
            raise ValueError(
                "GreedyCacheConfig needs a scheduler that chooses positions without the model's logits, got one that "
                "reads them. Use UniformScheduler or HaltonScheduler, or `DelayedCacheConfig()`."
            )
        return super().queries(state)

    def between_refreshes(self, state: PassState) -> Queries | None:
        assert state.chosen is not None
        assert state.masked_now is not None
        assert state.num_masked_now is not None
        chosen, valid = places_of(state.chosen), state.chosen >= 0
        drawn = state.masked & ~state.masked_now
        wanted = drawn.scatter(1, chosen, valid | drawn.gather(1, chosen))
        for place, is_chosen in zip(chosen.T, valid.T, strict=True) if self.window else ():
            wanted = wanted | _nearest(state.masked_now & ~wanted, place, self.window) & is_chosen[:, None]
        most = int((state.num_masked - state.num_masked_now).max()) + chosen.shape[1] * (1 + self.window)
        return positions_of(wanted, min(most, int(state.num_masked.max())))


def _nearest(among: Tensor, place: Tensor, count: int) -> Tensor:
    """Of the positions `among` `(R, L)` the `count` nearest to each row's `place` `(R,)`, of two as near the left."""
    offsets = torch.arange(among.shape[1], device=among.device) - place[:, None]
    rank = (2 * offsets.abs() + (offsets > 0)).masked_fill(~among, 2 * among.shape[1])
    return among & (rank <= rank.sort(1).values[:, min(count, among.shape[1]) - 1, None])


def positions_of(wanted: Tensor, count: int) -> Queries:
    """The positions that are `wanted`, bool `(R, L)`, at most `count` in a row, which others fill up."""
    count = max(count, 1)  # no row may want any: nothing was drawn, nothing is masked, and the run goes on
    positions = (~wanted).long().argsort(dim=1, stable=True)[:, :count]
    return Queries(torch.where(wanted.gather(1, positions), positions, ~positions), num_runs=count)


def ranges_of(state: PassState, starts: Tensor, ends: Tensor) -> Queries | None:
    """The positions from `starts` to `ends` of each row; None if these are all positions of all rows."""
    ranges = set(zip(starts.tolist(), ends.tolist(), strict=True))
    if all(start == 0 for start, _ in ranges) and bool((ends == state.lengths).all()):
        return None
    device, length = state.masked.device, state.masked.shape[1]
    if len(ranges) == 1:
        (span,) = ranges
        return Queries(torch.arange(*span, device=device).expand(len(starts), -1), num_runs=1, span=span)
    offsets = torch.arange(int((ends - starts).max()), device=device)
    # A shorter row is filled up with the positions that follow, in a circle.
    positions = (starts.to(device, non_blocking=True)[:, None] + offsets) % length
    valid = offsets < (ends - starts).to(device, non_blocking=True)[:, None]
    return Queries(torch.where(valid, positions, ~positions), num_runs=1)
