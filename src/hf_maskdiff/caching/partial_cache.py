"""Partial caching: recompute only the chosen positions of a step and take the rest from the last full pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from diffusers.models.cache_utils import CacheMixin
from torch import Tensor

from hf_maskdiff.caching.contexts import CacheContexts
from hf_maskdiff.caching.key_values import KeyValueCache, LayerCache
from hf_maskdiff.integers import as_integer, is_integer


@dataclass
class PartialCacheConfig:
    """Spends little more than one pass on a step and samples as if it were several: `pipe.enable_cache(config)`.

    The positions of a step are cut into `num_substeps` ordered groups. The first is drawn from the full pass; before
    each later one only the step's positions go through the model again, with the tokens drawn so far, and every layer
    takes the other positions' keys and values from the full pass. Needs a scheduler that chooses positions before it
    draws tokens: any but `MaskGITScheduler`. Section 5 of arXiv 2510.04525.

    Args:
        num_substeps: R, the groups of a step; 1 changes nothing.
        first_group_fraction: share of a step's positions in the first group, in (0, 1); the other groups share the
            rest evenly. None makes all groups even, the larger ones first.
        random_groups: fill the groups at random instead of in the scheduler's order.
        full_pass_threshold: a row that reveals more than this share of its positions in a step gets full passes in
            place of partial ones, which would cost as much and know less. Decided for each row by itself. 1 never does
            so; 0 always: the groups are then drawn as from fresh passes, at the full price.

    Raises:
        ValueError: a value out of its range.
    """

    num_substeps: int = 2
    first_group_fraction: float | None = None
    random_groups: bool = False
    full_pass_threshold: float = 0.75

    def __post_init__(self) -> None:
        if not is_integer(self.num_substeps, at_least=1):
            raise ValueError(
                f"`num_substeps` must be an integer of at least 1, got {self.num_substeps!r}. Pass 2 for one partial "
                "pass a step."
            )
        self.num_substeps = as_integer(self.num_substeps)
        if self.first_group_fraction is not None and not 0 < self.first_group_fraction < 1:
            raise ValueError(
                f"`first_group_fraction` must be in (0, 1) or None, got {self.first_group_fraction!r}. Pass None for "
                "even groups."
            )
        if not 0 <= self.full_pass_threshold <= 1:
            raise ValueError(
                f"`full_pass_threshold` must be in [0, 1], got {self.full_pass_threshold!r}. Pass 1 to keep every pass "
                "partial."
            )


class PartialCacheMixin(CacheMixin):
    """Gives a denoiser with `KeyValueSlot`s partial caching, beside all of diffusers' own caches.

    ```python
    pipe.enable_cache(PartialCacheConfig(num_substeps=2))
    ```

    Its `forward` takes `positions` and `cache`, asks `layers_of_pass` for what each layer keeps, and hands that to the
    layer's slot. Goes where diffusers' `CacheMixin` would.
    """

    _cache_config: Any
    _contexts: CacheContexts[KeyValueCache] | None = None  # for callers without a cache of their own

    def enable_cache(self, config: Any) -> None:
        """Switch a cache on: `PartialCacheConfig`, or any configuration of diffusers."""
        if not isinstance(config, PartialCacheConfig) or self.is_cache_enabled:
            super().enable_cache(config)
            return
        self._cache_config, self._contexts = config, CacheContexts(self.new_cache)

    def disable_cache(self) -> None:
        """Switch the cache off, and compute again exactly as without it."""
        if not isinstance(self._cache_config, PartialCacheConfig):
            super().disable_cache()
            return
        self._cache_config = self._contexts = None

    @property
    def partial_cache(self) -> PartialCacheConfig | None:
        """What a pipeline does with a step's positions; None where partial caching is off."""
        return self._cache_config if isinstance(self._cache_config, PartialCacheConfig) else None

    def new_cache(self) -> KeyValueCache:
        """An empty cache, for the passes of one call."""
        return KeyValueCache()

    @contextmanager
    def cache_context(self, name: str, **kwargs: Any) -> Iterator[None]:
        """Passes within it see the keys and values of their own context alone; diffusers' caches read it too."""
        with super().cache_context(name, **kwargs):
            if self._contexts is None:
                yield
                return
            with self._contexts.use(name):
                yield

    def _reset_stateful_cache(self, *args: Any, **kwargs: Any) -> None:
        super()._reset_stateful_cache(*args, **kwargs)
        if self._contexts is not None:
            self._contexts.clear()

    def layers_of_pass(
        self, cache: KeyValueCache | None, positions: Tensor | None, num_layers: int, batch_size: int
    ) -> list[LayerCache] | list[None]:
        """What each layer shall keep and use in a pass; Nones where nothing is cached.

        Args:
            cache: what the caller handed over; None takes the one of the current `cache_context`, if caching is on.
            positions: where the queries stand, see `LayerCache`; None in a full pass.
            num_layers: layers of the model.
            batch_size: rows of the pass.

        Raises:
            ValueError: a partial pass with caching off, or without a full one over the same rows before it.
        """
        if cache is None and self._contexts is not None:
            cache = self._contexts.current
        if cache is not None:
            return cache.at(positions, num_layers, batch_size)
        if positions is not None:
            raise ValueError(
                "`positions` need the keys and values of a full pass, got them with partial caching off. Call "
                "`model.enable_cache(PartialCacheConfig())` first."
            )
        return [None] * num_layers
