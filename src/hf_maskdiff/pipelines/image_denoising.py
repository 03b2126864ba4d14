"""The denoiser of images as the loop calls it: of which class, guided and cached."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..caching import CacheSwitch, PartialCacheConfig
from .calls import PassCaches, PipelineCall


class ImageCachingMixin:
    """Gives a pipeline of images the switches that a text pipeline has."""

    transformer: Any
    _switch: CacheSwitch | None = None

    @property
    def _cache_switch(self) -> CacheSwitch:
        if self._switch is None or self._switch.model is not self.transformer:
            self._switch = CacheSwitch(self.transformer)
        return self._switch

    @property
    def partial_cache(self) -> PartialCacheConfig | None:
        """How this pipeline's steps are cut into groups; None where partial caching is off."""
        return self._cache_switch.partial_cache

    def enable_cache(self, config: Any) -> None:
        """Switch partial caching on, for this pipeline: `pipe.enable_cache(PartialCacheConfig(num_substeps=2))`.

        Takes diffusers' configurations too; their caches are the model's, and hold for every pipeline that shares it.
        """
        self._cache_switch.enable_cache(config)

    def disable_cache(self) -> None:
        """Switch the cache off, whichever it is."""
        self._cache_switch.disable_cache()


class ImageDenoiser:
    """Logits of codes, as the loop asks for them; its caches end with it.

    Args:
        caching: the pipeline's switch; it knows the model.
        classes: of each image, int64 `(batch_size,)`.
        call: says how strongly to guide; learns which step runs.
        is_conditional: whether the classes were given; without one nothing is guided.
    """

    def __init__(self, caching: CacheSwitch, classes: Tensor, call: PipelineCall, is_conditional: bool) -> None:
        self.transformer, self.classes, self.call, self.is_conditional = caching.model, classes, call, is_conditional
        self._no_class = torch.full_like(classes, self.transformer.config.num_classes)
        self._caches = PassCaches(caching)

    def __call__(self, tokens: Tensor, t: Tensor, rows: Tensor | slice, positions: Tensor | None = None) -> Tensor:
        """Logits `(num_rows, L, codebook_size)` of the codes, or of those at `positions`."""
        self.call.current_timestep = t  # diffusers' caches ask for it
        cond = self._pass("cond", self.classes, tokens, rows, positions)
        scale = self.call.guidance_scale_at(t)
        if scale <= 1 or not self.is_conditional:
            return cond
        return self._pass("uncond", self._no_class, tokens, rows, positions).lerp_(cond, scale)

    def _pass(
        self, context: str, labels: Tensor, tokens: Tensor, rows: Tensor | slice, positions: Tensor | None
    ) -> Tensor:
        arguments = self._caches.arguments(context, rows, positions)
        with self.transformer.cache_context(context):  # diffusers' own caches read it
            return self.transformer(tokens, labels[rows], return_dict=False, **arguments)[0]
