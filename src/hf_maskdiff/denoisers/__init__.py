"""How the pipelines call any kind of model: aligned logits, attention in both directions, partial passes."""

from hf_maskdiff.denoisers.image_denoiser import image_denoiser
from hf_maskdiff.denoisers.text_denoiser import TextDenoiser, text_denoiser
from hf_maskdiff.denoisers.transformers_denoiser import TransformersDenoiser
from hf_maskdiff.denoisers.uvit2d_denoiser import UVit2DDenoiser

__all__ = ["TextDenoiser", "TransformersDenoiser", "UVit2DDenoiser", "image_denoiser", "text_denoiser"]
