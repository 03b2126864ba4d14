"""Pipelines: what a user calls."""

from .denoising import denoise
from .pipeline_maskgit import MaskGITPipeline

__all__ = ["MaskGITPipeline", "denoise"]
