"""Schedulers: one published sampler a file, on two public abstract bases."""

from .looking_ahead import Candidates
from .output import MaskedDiffusionSchedulerOutput
from .run_memory import RunMemory
from .run_start import EmbeddingNoise, RunStart
from .scheduling_ancestral import AncestralScheduler
from .scheduling_annealed import AnnealedScheduler
from .scheduling_choose_then_sample import Choice, ChooseThenSampleScheduler
from .scheduling_confidence import ConfidenceScheduler
from .scheduling_editing import EditingScheduler
from .scheduling_entropy_bounded import EntropyBoundedScheduler
from .scheduling_extrapolating import ExtrapolatingScheduler
from .scheduling_first_hitting import FirstHittingScheduler
from .scheduling_free_correction import FreeCorrectionScheduler
from .scheduling_halton import HaltonScheduler
from .scheduling_hybrid import HybridScheduler
from .scheduling_klass import KLASSScheduler
from .scheduling_masked_diffusion import MaskedDiffusionScheduler
from .scheduling_maskgit import MaskGITScheduler
from .scheduling_moment import MomentScheduler
from .scheduling_one_step import OneStepScheduler
from .scheduling_path_planning import PathPlanningScheduler
from .scheduling_remdm import ReMDMScheduler
from .scheduling_revising import RevisingScheduler
from .scheduling_threshold import ThresholdScheduler
from .scheduling_trapezoidal import TrapezoidalScheduler
from .scheduling_uniform import UniformScheduler
from .step_context import StepContext

__all__ = [
    "AncestralScheduler",
    "AnnealedScheduler",
    "Candidates",
    "Choice",
    "ChooseThenSampleScheduler",
    "ConfidenceScheduler",
    "EditingScheduler",
    "EmbeddingNoise",
    "EntropyBoundedScheduler",
    "ExtrapolatingScheduler",
    "FirstHittingScheduler",
    "FreeCorrectionScheduler",
    "HaltonScheduler",
    "HybridScheduler",
    "KLASSScheduler",
    "MaskGITScheduler",
    "MaskedDiffusionScheduler",
    "MaskedDiffusionSchedulerOutput",
    "MomentScheduler",
    "OneStepScheduler",
    "PathPlanningScheduler",
    "ReMDMScheduler",
    "RevisingScheduler",
    "RunMemory",
    "RunStart",
    "StepContext",
    "ThresholdScheduler",
    "TrapezoidalScheduler",
    "UniformScheduler",
]
