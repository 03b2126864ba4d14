"""Models of this package: denoisers, which map partly masked tokens to logits, and tokenizers of images and audio."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from hf_maskdiff.caching import (
    BlockCacheConfig,
    DelayedCacheConfig,
    DualCacheConfig,
    GreedyCacheConfig,
    KeyValueSlot,
    PartialCacheConfig,
    PartialCacheMixin,
    PositionalCache,
    PrefixCacheConfig,
)
from hf_maskdiff.models.codec_lac import LACModel
from hf_maskdiff.models.masked_lm import MDLMConfig, MDLMForMaskedLM
from hf_maskdiff.models.transformer_halton_maskgit import HaltonMaskGITTransformer2DModel
from hf_maskdiff.models.transformer_maskgen import MaskGenTransformer1DModel
from hf_maskdiff.models.transformer_maskgit import MaskGITTransformer2DModel
from hf_maskdiff.models.transformer_mdlm import MDLMTransformer
from hf_maskdiff.models.transformer_meissonic import MeissonicTransformer2DModel
from hf_maskdiff.models.transformer_titok import TiTokTransformer1DModel
from hf_maskdiff.models.transformer_vampnet import VampNetTransformer
from hf_maskdiff.models.vq_maskgit import MaskGITVQModel, VQGANModel
from hf_maskdiff.models.vq_tatitok import TATiTokVQModel
from hf_maskdiff.models.vq_titok import TiTokVQModel

# Names that were once defined here, and the modules in which they are defined now.
_MOVED = {
    "PUBLISHED_TYPES": "hf_maskdiff.published",
    "PublishedText": "hf_maskdiff.published",
    "TextDenoiser": "hf_maskdiff.denoisers",
    "TransformersDenoiser": "hf_maskdiff.denoisers",
    "load_published_text": "hf_maskdiff.published",
    "text_denoiser": "hf_maskdiff.denoisers",
}

__all__ = [
    "BlockCacheConfig",
    "DelayedCacheConfig",
    "DualCacheConfig",
    "GreedyCacheConfig",
    "HaltonMaskGITTransformer2DModel",
    "KeyValueSlot",
    "LACModel",
    "MDLMConfig",
    "MDLMForMaskedLM",
    "MDLMTransformer",
    "MaskGITTransformer2DModel",
    "MaskGITVQModel",
    "MaskGenTransformer1DModel",
    "MeissonicTransformer2DModel",
    "PartialCacheConfig",
    "PartialCacheMixin",
    "PositionalCache",
    "PrefixCacheConfig",
    "TATiTokVQModel",
    "TiTokTransformer1DModel",
    "TiTokVQModel",
    "VQGANModel",
    "VampNetTransformer",
]


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        return getattr(import_module(_MOVED[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
