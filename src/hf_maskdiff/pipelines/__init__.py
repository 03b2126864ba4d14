"""Pipelines: what a user calls."""

from .denoising import denoise
from .pipeline_masked_diffusion_text import MaskedDiffusionTextPipeline
from .pipeline_masked_diffusion_text_to_image import MaskedDiffusionTextToImagePipeline
from .pipeline_maskgit import MaskGITPipeline
from .pipeline_mdlm import MDLMPipeline
from .streaming import CanvasIteratorStreamer, CanvasStreamer
from .text_output import MaskedDiffusionTextPipelineOutput
from .transformers_tasks import MaskedDiffusionImageGenerationPipeline, MaskedDiffusionTextGenerationPipeline

__all__ = [
    "CanvasIteratorStreamer",
    "CanvasStreamer",
    "MDLMPipeline",
    "MaskGITPipeline",
    "MaskedDiffusionImageGenerationPipeline",
    "MaskedDiffusionTextGenerationPipeline",
    "MaskedDiffusionTextPipeline",
    "MaskedDiffusionTextPipelineOutput",
    "MaskedDiffusionTextToImagePipeline",
    "denoise",
]
