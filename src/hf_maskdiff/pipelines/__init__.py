"""Pipelines: what a user calls."""

from .denoising import denoise
from .pipeline_maskgit import MaskGITPipeline
from .pipeline_mdlm import MDLMPipeline, MDLMPipelineOutput
from .transformers_tasks import MaskedDiffusionImageGenerationPipeline, MaskedDiffusionTextGenerationPipeline

__all__ = [
    "MDLMPipeline",
    "MDLMPipelineOutput",
    "MaskGITPipeline",
    "MaskedDiffusionImageGenerationPipeline",
    "MaskedDiffusionTextGenerationPipeline",
    "denoise",
]
