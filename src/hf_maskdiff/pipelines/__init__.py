"""Pipelines: what a user calls."""

from .denoising import denoise
from .pipeline_masked_diffusion_text import MaskedDiffusionTextPipeline
from .pipeline_maskgit import MaskGITPipeline
from .pipeline_mdlm import MDLMPipeline
from .text_output import MaskedDiffusionTextPipelineOutput
from .transformers_tasks import MaskedDiffusionImageGenerationPipeline, MaskedDiffusionTextGenerationPipeline

__all__ = [
    "MDLMPipeline",
    "MaskGITPipeline",
    "MaskedDiffusionImageGenerationPipeline",
    "MaskedDiffusionTextGenerationPipeline",
    "MaskedDiffusionTextPipeline",
    "MaskedDiffusionTextPipelineOutput",
    "denoise",
]
