"""The tasks of `transformers.pipeline(task, model=...)`, registered when this module is imported."""

from __future__ import annotations

from transformers.pipelines import PIPELINE_REGISTRY

from .audio_task import MaskedDiffusionAudioGenerationPipeline
from .transformers_tasks import (
    MaskedDiffusionImageGenerationPipeline,
    MaskedDiffusionTextGenerationPipeline,
    Repository,
)

TASKS = {
    "masked-diffusion-text-generation": (MaskedDiffusionTextGenerationPipeline, "text"),
    "masked-diffusion-image-generation": (MaskedDiffusionImageGenerationPipeline, "image"),
    "masked-diffusion-audio-generation": (MaskedDiffusionAudioGenerationPipeline, "audio"),
}
for task, (task_class, modality) in TASKS.items():
    if task not in PIPELINE_REGISTRY.supported_tasks:  # registering again would warn
        PIPELINE_REGISTRY.register_pipeline(task, task_class, pt_model=Repository, type=modality)

__all__ = [
    "TASKS",
    "MaskedDiffusionAudioGenerationPipeline",
    "MaskedDiffusionImageGenerationPipeline",
    "MaskedDiffusionTextGenerationPipeline",
]
