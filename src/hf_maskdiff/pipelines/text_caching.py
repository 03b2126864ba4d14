"""The model of a text pipeline as it is called, and its cache."""

from __future__ import annotations

from typing import Any

from diffusers.utils.torch_utils import unwrap_module

from ..attention_rule import block_causal
from ..caching import CacheConfig
from ..denoisers import TextDenoiser, text_denoiser


class TextCachingMixin:
    """Gives a text pipeline its denoiser and the switches of its cache."""

    transformer: Any
    config: Any
    _denoiser: Any = None

    @property
    def denoiser(self) -> TextDenoiser:
        """The model as it is called: with attention in both directions, aligned logits and partial passes."""
        if self._denoiser is None or self._denoiser.model is not self.transformer:
            rule = block_causal(self.config.attention, self.config.block_size)
            made, before = text_denoiser(self.transformer, self.config.shift_logits, rule), self._denoiser
            if before is not None and unwrap_module(before.model) is unwrap_module(self.transformer):
                made.take_over(before)  # the same model, compiled or not any more
            self._denoiser = made
        return self._denoiser

    def enable_cache(self, config: CacheConfig) -> None:
        """Switch a cache on, for this pipeline: `pipe.enable_cache(DualCacheConfig())`.

        Args:
            config: `PrefixCacheConfig`, `DualCacheConfig`, `DelayedCacheConfig` or `GreedyCacheConfig`, each of which
                may hold a `PartialCacheConfig`, or that alone. A later one replaces an earlier one.

        Raises:
            ValueError: another kind of configuration.
        """
        self.denoiser.enable_cache(config)

    def disable_cache(self) -> None:
        """Switch the cache off."""
        self.denoiser.disable_cache()
