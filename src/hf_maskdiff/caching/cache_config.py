"""What a user switches on with `enable_cache`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

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
