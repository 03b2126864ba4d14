"""The switch of one user of a model that others may use too."""

from __future__ import annotations

from typing import Any

from hf_maskdiff.caching.cache_config import CacheConfig, CacheReadings


class CacheSwitch(CacheReadings):
    """The caches of one pipeline; other pipelines with the same model are not affected.

    A cache that is switched on at the model itself, `model.enable_cache(config)`, holds for all of its users, and so do
    diffusers' own caches, which hook into the model.

    Args:
        model: with `PartialCacheMixin`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._own: CacheConfig | None = None

    @property
    def cache_config(self) -> CacheConfig | None:
        """This user's configuration, else the model's; None if none of this package's caches is on."""
        return self.model.cache_config if self._own is None else self._own

    @property
    def cache_of_diffusers(self) -> object | None:
        """See `CacheReadings`."""
        is_on = self.model.is_cache_enabled and self.model.cache_config is None
        return self.model._cache_config if is_on else None

    def new_cache(self) -> Any:
        """An empty cache, for the passes of one call."""
        return self.model.new_cache()

    def enable_cache(self, config: Any) -> None:
        """Switch a cache on: one of this package, or for all users of the model any configuration of diffusers.

        Raises:
            ValueError: one kind while the other is on.
        """
        if isinstance(config, CacheConfig) and self.cache_of_diffusers is None:
            self._own = config
        elif self._own is not None:
            raise ValueError(
                f"caches of two kinds must not be on at once, got {type(config).__name__} with "
                f"{type(self._own).__name__} on. Call `disable_cache()` first."
            )
        else:
            self.model.enable_cache(config)

    def take_over(self, other: CacheSwitch) -> None:
        """Have the cache switched on that another switch of the same model has."""
        self._own = other._own

    def disable_cache(self) -> None:
        """Switch caching off, also where it was switched on at the model."""
        own, self._own = self._own, None
        if own is None or self.model.is_cache_enabled:
            self.model.disable_cache()
