"""How the text pipelines call any kind of model: aligned logits, attention in both directions, partial passes."""

from hf_maskdiff.denoisers.text_denoiser import TextDenoiser, text_denoiser
from hf_maskdiff.denoisers.transformers_denoiser import TransformersDenoiser

__all__ = ["TextDenoiser", "TransformersDenoiser", "text_denoiser"]
