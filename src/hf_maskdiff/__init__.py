"""hf_maskdiff: swappable samplers for masked diffusion, images, text and audio, on diffusers and transformers.

Importing it registers the package with diffusers, so that a pipeline whose `model_index.json` names components of
`hf_maskdiff` loads with `from_pretrained` and no remote code.
"""

from ._versions import require_supported_versions

require_supported_versions()

import diffusers  # noqa: E402
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin  # noqa: E402
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES  # noqa: E402

from .models import (  # noqa: E402
    BlockCacheConfig,
    DelayedCacheConfig,
    DualCacheConfig,
    GreedyCacheConfig,
    HaltonMaskGITTransformer2DModel,
    LACModel,
    MaskGenTransformer1DModel,
    MaskGITTransformer2DModel,
    MaskGITVQModel,
    MDLMConfig,
    MDLMForMaskedLM,
    MDLMTransformer,
    MeissonicTransformer2DModel,
    PartialCacheConfig,
    PrefixCacheConfig,
    TATiTokVQModel,
    TiTokTransformer1DModel,
    TiTokVQModel,
    VampNetTransformer,
    VQGANModel,
)
from .pipelines import (  # noqa: E402
    CanvasIteratorStreamer,
    CanvasStreamer,
    MaskedDiffusionAudioGenerationPipeline,
    MaskedDiffusionAudioPipeline,
    MaskedDiffusionAudioPipelineOutput,
    MaskedDiffusionImageGenerationPipeline,
    MaskedDiffusionTextGenerationPipeline,
    MaskedDiffusionTextPipeline,
    MaskedDiffusionTextPipelineOutput,
    MaskedDiffusionTextToImagePipeline,
    MaskGITPipeline,
    MDLMPipeline,
)
from .schedulers import (  # noqa: E402
    AncestralScheduler,
    AnnealedScheduler,
    Choice,
    ChooseThenSampleScheduler,
    ConfidenceScheduler,
    EditingScheduler,
    EntropyBoundedScheduler,
    ExtrapolatingScheduler,
    FirstHittingScheduler,
    FreeCorrectionScheduler,
    HaltonScheduler,
    HybridScheduler,
    KLASSScheduler,
    MaskedDiffusionScheduler,
    MaskedDiffusionSchedulerOutput,
    MaskGITScheduler,
    MomentScheduler,
    OneStepScheduler,
    PathPlanningScheduler,
    ReMDMScheduler,
    RevisingScheduler,
    RunMemory,
    RunStart,
    StepContext,
    ThresholdScheduler,
    TrapezoidalScheduler,
    UniformScheduler,
)

__version__ = "0.1.0"

# diffusers looks a component's base class up by name in the library that `model_index.json` records for it.
LOADABLE_CLASSES["hf_maskdiff"] = LOADABLE_CLASSES["diffusers"]
# And a pipeline's class in itself alone, whatever library it is of: `DiffusionPipeline.from_pretrained(repo)`.
for _pipeline in (
    MaskGITPipeline,
    MDLMPipeline,
    MaskedDiffusionTextPipeline,
    MaskedDiffusionTextToImagePipeline,
    MaskedDiffusionAudioPipeline,
):
    if getattr(diffusers, _pipeline.__name__, _pipeline).__module__.startswith("hf_maskdiff."):  # not one of theirs
        setattr(diffusers, _pipeline.__name__, _pipeline)

__all__ = [
    "AncestralScheduler",
    "AnnealedScheduler",
    "BlockCacheConfig",
    "CanvasIteratorStreamer",
    "CanvasStreamer",
    "Choice",
    "ChooseThenSampleScheduler",
    "ConfidenceScheduler",
    "DelayedCacheConfig",
    "DiffusionPipeline",
    "DualCacheConfig",
    "EditingScheduler",
    "EntropyBoundedScheduler",
    "ExtrapolatingScheduler",
    "FirstHittingScheduler",
    "FreeCorrectionScheduler",
    "GreedyCacheConfig",
    "HaltonMaskGITTransformer2DModel",
    "HaltonScheduler",
    "HybridScheduler",
    "KLASSScheduler",
    "LACModel",
    "MDLMConfig",
    "MDLMForMaskedLM",
    "MDLMPipeline",
    "MDLMTransformer",
    "MaskGITPipeline",
    "MaskGITScheduler",
    "MaskGITTransformer2DModel",
    "MaskGITVQModel",
    "MaskGenTransformer1DModel",
    "MaskedDiffusionAudioGenerationPipeline",
    "MaskedDiffusionAudioPipeline",
    "MaskedDiffusionAudioPipelineOutput",
    "MaskedDiffusionImageGenerationPipeline",
    "MaskedDiffusionScheduler",
    "MaskedDiffusionSchedulerOutput",
    "MaskedDiffusionTextGenerationPipeline",
    "MaskedDiffusionTextPipeline",
    "MaskedDiffusionTextPipelineOutput",
    "MaskedDiffusionTextToImagePipeline",
    "MeissonicTransformer2DModel",
    "ModelMixin",
    "MomentScheduler",
    "OneStepScheduler",
    "PartialCacheConfig",
    "PathPlanningScheduler",
    "PrefixCacheConfig",
    "ReMDMScheduler",
    "RevisingScheduler",
    "RunMemory",
    "RunStart",
    "SchedulerMixin",
    "StepContext",
    "TATiTokVQModel",
    "ThresholdScheduler",
    "TiTokTransformer1DModel",
    "TiTokVQModel",
    "TrapezoidalScheduler",
    "UniformScheduler",
    "VQGANModel",
    "VampNetTransformer",
]
