"""What a user switches on with `enable_cache`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from hf_maskdiff.caching.partial_cache import PartialCacheConfig
    from hf_maskdiff.caching.plans import PassPlan


class CacheConfig(ABC):
    """Base of the caches of this package: what is computed within a step, and what across steps."""

    @abstractmethod
    def within_steps(self) -> PartialCacheConfig | None:
        """How a step is drawn in groups with a partial pass before each; None if a step is drawn at once."""

    @abstractmethod
    def across_steps(self) -> PassPlan | None:
        """Which positions the pass of each step computes; None if it computes all of them in every step."""

    @property
    def needs_store(self) -> bool:
        """Whether any pass takes keys and values from an earlier one."""
        groups = self.within_steps()
        return self.across_steps() is not None or (groups is not None and groups.num_substeps > 1)


class _Configured(Protocol):
    @property
    def cache_config(self) -> CacheConfig | None: ...


class CacheReadings:
    """What a pipeline reads of a `cache_config`, whoever holds it; its owner gives `cache_config`."""

    @property
    def partial_cache(self: _Configured) -> PartialCacheConfig | None:
        """How steps are drawn in groups; None if they are drawn at once."""
        return None if self.cache_config is None else self.cache_config.within_steps()

    @property
    def plan(self: _Configured) -> PassPlan | None:
        """Which positions the pass of each step computes; None if it computes all of them."""
        return None if self.cache_config is None else self.cache_config.across_steps()

    @property
    def cache_of_diffusers(self) -> object | None:
        """The configuration of a cache of diffusers that is on in the model; None if there is none."""
        return None
