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
    _settings: tuple[Any, ...] = ()

    @property
    def denoiser(self) -> TextDenoiser:
        """The model as it is called: with attention in both directions, aligned logits and partial passes."""
        settings = tuple(self.config[name] for name in ("shift_logits", "attention", "block_size"))
        before = self._denoiser
        if before is None or before.model is not self.transformer or self._settings != settings:
            shift_logits, attention, block_size = settings
            made = text_denoiser(self.transformer, shift_logits, block_causal(attention, block_size))
            same = before is not None and unwrap_module(before.model) is unwrap_module(self.transformer)
            if same and made.rule == before.rule:
                made.take_over(before)  # the same model, compiled or not any more, or read in another way
            self._denoiser, self._settings = made, settings
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
