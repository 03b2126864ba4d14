"""Pipelines: what a user calls."""

from .denoising import denoise
from .pipeline_maskgit import MaskGITPipeline
from .pipeline_mdlm import MDLMPipeline, MDLMPipelineOutput

__all__ = ["MDLMPipeline", "MDLMPipelineOutput", "MaskGITPipeline", "denoise"]
