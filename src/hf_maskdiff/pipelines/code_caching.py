"""The caches of pipelines that fill in codes: of images, or of sound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers.utils.torch_utils import unwrap_module

from ..caching import CacheSwitch, DualCacheConfig, PartialCacheConfig, PrefixCacheConfig
from ..denoisers import image_denoiser


class CodeCachingMixin:
    """Gives a pipeline that fills in codes the switches that a text pipeline has; they hold for all its denoisers."""

    transformer: Any
    # The components that draw codes, of which there always is the first; and what they fill in, in words.
    _denoiser_names: ClassVar[tuple[str, ...]] = ("transformer",)
    _filled_in: ClassVar[str] = "an image"
    # By component, with the model that each is for. Never changed in place: a copy of the pipeline has it too.
    _switches: Mapping[str, tuple[Any, CacheSwitch]] = {}

    def _switch_of(self, name: str) -> CacheSwitch:
        model, before = getattr(self, name), self._switches.get(name)
        if before is None or before[0] is not model:
            made = CacheSwitch(image_denoiser(model))
            if before is not None and unwrap_module(before[0]) is unwrap_module(model):
                made.take_over(before[1])  # the same model, compiled or not any more
            elif name != self._denoiser_names[0]:
                made.take_over(self._cache_switch)  # a denoiser that joins is cached as the first one is
            self._switches = {**self._switches, name: (model, made)}
        return self._switches[name][1]

    @property
    def _cache_switch(self) -> CacheSwitch:
        return self._switch_of(self._denoiser_names[0])

    def _all_switches(self) -> list[CacheSwitch]:
        return [self._switch_of(name) for name in self._denoiser_names if getattr(self, name) is not None]

    @property
    def partial_cache(self) -> PartialCacheConfig | None:
        """How this pipeline's steps are drawn in groups; None if they are drawn at once."""
        return self._cache_switch.partial_cache

    def enable_cache(self, config: Any) -> None:
        """Switch a cache on, for this pipeline: `pipe.enable_cache(PartialCacheConfig(num_substeps=2))`.

        Takes `DelayedCacheConfig` and `GreedyCacheConfig` too, and diffusers' configurations; diffusers' caches are the
        models', and hold for every pipeline that shares them.

        Raises:
            ValueError: a cache for models that fill in block by block; one kind of cache while another is on.
        """
        if isinstance(config, PrefixCacheConfig | DualCacheConfig):
            raise ValueError(
                f"{self._filled_in} is not filled in block by block, so {type(config).__name__} would save nothing. "
                "Use DelayedCacheConfig or PartialCacheConfig."
            )
        for switch in self._all_switches():
            switch.enable_cache(config)

    def disable_cache(self) -> None:
        """Switch the cache off, whichever it is."""
        for switch in self._all_switches():
            switch.disable_cache()
