"""Pipelines: what a user calls."""

from .audio_output import MaskedDiffusionAudioPipelineOutput
from .denoising import denoise
from .pipeline_masked_diffusion_audio import MaskedDiffusionAudioPipeline
from .pipeline_masked_diffusion_text import MaskedDiffusionTextPipeline
from .pipeline_masked_diffusion_text_to_image import MaskedDiffusionTextToImagePipeline
from .pipeline_maskgit import MaskGITPipeline
from .pipeline_mdlm import MDLMPipeline
from .streaming import CanvasIteratorStreamer, CanvasStreamer
from .task_registry import (
    MaskedDiffusionAudioGenerationPipeline,
    MaskedDiffusionImageGenerationPipeline,
    MaskedDiffusionTextGenerationPipeline,
)
from .text_output import MaskedDiffusionTextPipelineOutput

__all__ = [
    "CanvasIteratorStreamer",
    "CanvasStreamer",
    "MDLMPipeline",
    "MaskGITPipeline",
    "MaskedDiffusionAudioGenerationPipeline",
    "MaskedDiffusionAudioPipeline",
    "MaskedDiffusionAudioPipelineOutput",
    "MaskedDiffusionImageGenerationPipeline",
    "MaskedDiffusionTextGenerationPipeline",
    "MaskedDiffusionTextPipeline",
    "MaskedDiffusionTextPipelineOutput",
    "MaskedDiffusionTextToImagePipeline",
    "denoise",
]
