"""Denoisers: models that map partly masked tokens to logits."""

from hf_maskdiff.models.masked_lm import MDLMConfig, MDLMForMaskedLM
from hf_maskdiff.models.partial_cache import KeyValueSlot, PartialCacheConfig, PartialCacheMixin
from hf_maskdiff.models.transformer_halton_maskgit import HaltonMaskGITTransformer2DModel
from hf_maskdiff.models.transformer_mdlm import MDLMTransformer

__all__ = [
    "HaltonMaskGITTransformer2DModel",
    "KeyValueSlot",
    "MDLMConfig",
    "MDLMForMaskedLM",
    "MDLMTransformer",
    "PartialCacheConfig",
    "PartialCacheMixin",
]
