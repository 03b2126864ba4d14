"""Partial caching: recompute only the chosen positions of a step and take the rest from the last full pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffusers.models.cache_utils import CacheMixin
from torch import Tensor

from hf_maskdiff.caching.cache_config import CacheConfig, CacheReadings
from hf_maskdiff.caching.contexts import CacheContexts
from hf_maskdiff.caching.key_values import KeyValueCache, LayerCache
from hf_maskdiff.integers import as_integer, is_integer

if TYPE_CHECKING:
    from hf_maskdiff.caching.plans import PassPlan


@dataclass
class PartialCacheConfig(CacheConfig):
    """Samples each step in groups, as if it were several steps, for little more than the cost of one model pass.

    Switch it on with `model.enable_cache(config)`. The positions that a step reveals are then split into `num_substeps`
    ordered groups. The first group is drawn from the full pass. Before each later group there is a partial pass: only
    the step's positions go through the model again, with the tokens drawn so far, and every layer takes the keys and
    values of all other positions from the full pass. This needs a scheduler that chooses positions before it draws
    tokens: any but `MaskGITScheduler`. Section 5 of arXiv 2510.04525.

    Args:
        num_substeps: R, the number of groups in a step; 1 changes nothing.
        first_group_fraction: share of a step's positions in the first group, in (0, 1); the rest is split evenly among
            the other groups. None splits all positions evenly; if that leaves a remainder, the first groups are larger.
        random_groups: assign positions to groups at random instead of in the scheduler's order.
        full_pass_threshold: if a row reveals more than this share of its positions in a step, it gets full passes
            instead of partial ones, which would cost as much and use less information. Each row is decided
            separately. With 1 no row gets full passes; with 0 every row does, at their full cost.

    Raises:
        ValueError: a value is out of range.
    """

    num_substeps: int = 2
    first_group_fraction: float | None = None
    random_groups: bool = False
    full_pass_threshold: float = 0.75

    def __post_init__(self) -> None:
        if not is_integer(self.num_substeps, at_least=1):
            raise ValueError(
                f"`num_substeps` must be an integer of at least 1, got {self.num_substeps!r}. Pass 2 for one partial "
                "pass per step."
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

    def within_steps(self) -> PartialCacheConfig | None:
        return self

    def across_steps(self) -> PassPlan | None:
        return None


class PartialCacheMixin(CacheReadings, CacheMixin):
    """Adds the caches of this package to a denoiser that has `KeyValueSlot`s; all of diffusers' own still work.

    ```python
    pipe.enable_cache(PartialCacheConfig(num_substeps=2))
    ```

    A model with this mixin takes `positions` and `cache` in `forward`, gets each layer's cache from `layers_of_pass`,
    and passes it to the layer's slot. Use the mixin in place of diffusers' `CacheMixin`.
    """

    _cache_config: Any
    _contexts: CacheContexts[KeyValueCache] | None = None  # for callers that pass no cache

    def enable_cache(self, config: Any) -> None:
        """Switch a cache on: a `CacheConfig` of this package, or any cache configuration of diffusers."""
        if not isinstance(config, CacheConfig) or self.is_cache_enabled:
            super().enable_cache(config)
            return
        self._cache_config, self._contexts = config, CacheContexts(self.new_cache)

    def disable_cache(self) -> None:
        """Switch the cache off; from then on results are exactly those without a cache."""
        if self.cache_config is None:
            super().disable_cache()
            return
        self._cache_config = self._contexts = None

    @property
    def cache_config(self) -> CacheConfig | None:
        """The configuration of this package's cache, which pipelines read; None if none of them is on."""
        return self._cache_config if isinstance(self._cache_config, CacheConfig) else None

    def new_cache(self) -> KeyValueCache:
        """A new, empty cache for the passes of one call."""
        return KeyValueCache()

    @contextmanager
    def cache_context(self, name: str, **kwargs: Any) -> Iterator[None]:
        """Passes in this context use only its own keys and values; diffusers' caches use its name too."""
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
        self,
        cache: KeyValueCache | None,
        positions: Tensor | None,
        num_layers: int,
        batch_size: int,
        length: int | None = None,
    ) -> list[LayerCache] | list[None]:
        """The cache of each layer for a pass; a list of None if nothing is cached.

        Args:
            cache: the `cache` argument of the caller; None uses that of the current `cache_context` if caching is on.
            positions: positions of the queries, see `targets_of`; None in a full pass.
            num_layers: number of layers in the model.
            batch_size: number of rows in the pass.
            length: number of positions, where there are more of them than in the pass before.

        Raises:
            ValueError: a partial pass with caching off, or one that does not follow a full pass over the same rows.
        """
        if cache is None and self._contexts is not None:
            cache = self._contexts.current
        if cache is not None:
            return cache.at(positions, num_layers, batch_size, length)
        if positions is not None:
            raise ValueError(
                "`positions` need the keys and values of a full pass, got `positions` with partial caching off. Call "
                "`model.enable_cache(PartialCacheConfig())` first."
            )
        return [None] * num_layers
