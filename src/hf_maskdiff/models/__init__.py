"""Denoisers: models that map partly masked tokens to logits."""

from hf_maskdiff.models.masked_lm import MDLMConfig, MDLMForMaskedLM
from hf_maskdiff.models.partial_cache import KeyValueSlot, PartialCacheConfig, PartialCacheMixin
from hf_maskdiff.models.published_text import PUBLISHED_TYPES, PublishedText, load_published_text
from hf_maskdiff.models.text_denoiser import TextDenoiser, text_denoiser
from hf_maskdiff.models.transformer_halton_maskgit import HaltonMaskGITTransformer2DModel
from hf_maskdiff.models.transformer_maskgit import MaskGITTransformer2DModel
from hf_maskdiff.models.transformer_mdlm import MDLMTransformer
from hf_maskdiff.models.transformers_cache import PositionalCache
from hf_maskdiff.models.transformers_denoiser import TransformersDenoiser
from hf_maskdiff.models.vq_maskgit import MaskGITVQModel, VQGANModel

__all__ = [
    "PUBLISHED_TYPES",
    "HaltonMaskGITTransformer2DModel",
    "KeyValueSlot",
    "MDLMConfig",
    "MDLMForMaskedLM",
    "MDLMTransformer",
    "MaskGITTransformer2DModel",
    "MaskGITVQModel",
    "PartialCacheConfig",
    "PartialCacheMixin",
    "PositionalCache",
    "PublishedText",
    "TextDenoiser",
    "TransformersDenoiser",
    "VQGANModel",
    "load_published_text",
    "text_denoiser",
]
