"""The names that the command line knows, and which of them a misspelt one may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path

IMAGES, TEXTS, SOUNDS = "images", "texts", "sounds"
# What `hf_maskdiff` exports, written down because importing it takes seconds; a test compares both.
SCHEDULERS = (
    "AncestralScheduler",
    "AnnealedScheduler",
    "ConfidenceScheduler",
    "EditingScheduler",
    "EntropyBoundedScheduler",
    "ExtrapolatingScheduler",
    "FirstHittingScheduler",
    "FreeCorrectionScheduler",
    "HaltonScheduler",
    "HybridScheduler",
    "KLASSScheduler",
    "MaskGITScheduler",
    "MomentScheduler",
    "OneStepScheduler",
    "PathPlanningScheduler",
    "ReMDMScheduler",
    "ThresholdScheduler",
    "TrapezoidalScheduler",
    "UniformScheduler",
)
# Estimators of a likelihood, the default first; those of `hf_maskdiff.likelihood.named`.
ESTIMATORS = (
    "sobol",
    "stratified",
    "antithetic",
    "llada",
    "nelbo",
    "independent",
    "all_masks",
    "random_orders",
    "left_to_right",
    "pseudo",
)
# What each pipeline makes.
PIPELINES = {
    "MaskGITPipeline": IMAGES,
    "MaskedDiffusionTextToImagePipeline": IMAGES,
    "MDLMPipeline": TEXTS,
    "MaskedDiffusionTextPipeline": TEXTS,
    "MaskedDiffusionAudioPipeline": SOUNDS,
}
# Of those of images, which draw what a text says rather than a class.
OF_PROMPTS = ("MaskedDiffusionTextToImagePipeline",)

_ALIKE = 0.75
_MOST_FOLDERS = 2000


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """A sentence with the name that is most like a misspelt one, or nothing where none is.

    Example:
        >>> did_you_mean("MomentSheduler", SCHEDULERS)
        "Did you mean 'MomentScheduler'?"
    """

    def alike(name: str) -> float:
        """A scheduler is known by its short name, too: `halton`."""
        return max(_likeness(value, name), _likeness(value, name.removesuffix("Scheduler")))

    found = max(known, key=alike, default="")
    return f"Did you mean {found!r}?" if alike(found) >= _ALIKE else ""


def did_you_mean_folder(value: str) -> str:
    """As `did_you_mean`, of the folders beside a path that does not exist, and of those in them."""
    path = Path(value)
    if path.exists():
        return ""
    nearby: list[Path] = []
    with suppress(OSError):
        for pattern in ("*/", "*/*/"):
            nearby += islice((one for one in path.parent.glob(pattern) if one.is_dir()), _MOST_FOLDERS)
    found = max(nearby, key=lambda folder: _likeness(path.name, folder.name), default=None)
    if found is None or _likeness(path.name, found.name) < _ALIKE:
        return ""
    return f"Did you mean {str(found)!r}?"


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one.lower(), other.lower()).ratio()
