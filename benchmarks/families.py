"""All samplers of `samplers_at_equal_passes.py`, by name: "uniform", "moment 6", "remdm-cap, top-p 0.9"."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from samplers import APART, HYBRIDS, SECOND_ORDER, Samplers

from hf_maskdiff import (
    ConfidenceScheduler,
    EditingScheduler,
    ExtrapolatingScheduler,
    FreeCorrectionScheduler,
    HaltonScheduler,
    MaskedDiffusionScheduler,
    MaskGITScheduler,
    MomentScheduler,
    PathPlanningScheduler,
    ReMDMScheduler,
    UniformScheduler,
)

REMDM: Samplers = {
    f"remdm-{name}": partial(ReMDMScheduler, remasking=name) for name in ("cap", "rescale", "conf", "loop", "dfm")
}
# The published shares are of 1024 positions and more, and would take back one position of a row here.
CORRECTED = {"corrected_shares": (1 / 16, 1 / 32, 1 / 64)}
# Every pass is on schedule, as nothing is surer than a threshold of 2; what is drawn and surer than 0.9 is an edit.
EDITING: dict[str, Any] = {"threshold": 2.0, "editing_threshold": 0.9, "max_post_steps": 0, "drawn": True}
# Tokens drawn at the model's own temperature.
PLAIN: Samplers = {
    **SECOND_ORDER,
    "uniform": UniformScheduler,
    "halton": HaltonScheduler,
    "extrapolating-halton": partial(ExtrapolatingScheduler, position_order="halton"),
    "confidence": ConfidenceScheduler,
    **REMDM,
    "remdm-strong": partial(ReMDMScheduler, remasking="rescale", eta=0.3),
    "p2-standing": PathPlanningScheduler,
    "p2-redrawn": partial(PathPlanningScheduler, standing=False),
    "freecorrection-uniform": partial(FreeCorrectionScheduler, order="uniform", **CORRECTED),
    "editing-overwrite": partial(EditingScheduler, edits="overwrite", **EDITING),
    "editing-mask": partial(EditingScheduler, edits="mask", **EDITING),
}
# Those that take a choice temperature, a number behind the name.
TEMPERED: Samplers = {
    "uniform": UniformScheduler,
    "halton": HaltonScheduler,
    "maskgit": MaskGITScheduler,
    "moment": MomentScheduler,
    **APART,
    "hybrid": HYBRIDS["halton 0.75"],
    "hybrid-0.5": HYBRIDS["halton 0.5"],
    "hybrid-1>0": HYBRIDS["halton 1>0"],
    "extrapolating-moment": partial(ExtrapolatingScheduler, position_order="moment"),
    "remdm-moment": partial(ReMDMScheduler, remasking="rescale", eta=0.3, exact_order="moment"),
    "p2-moment": partial(PathPlanningScheduler, measure="moment"),
    "freecorrection": partial(FreeCorrectionScheduler, **CORRECTED),
}
RATIOS = ("hybrid-0.5", "hybrid-1>0")  # further shares of exploration, which only the letters compare
NUCLEUS = ", top-p "


def scheduler_of(name: str, **shared: Any) -> MaskedDiffusionScheduler:
    """The sampler of this name.

    Args:
        shared: the settings that all samplers of a model have in common, the mask among them.
    """
    family, _, top_p = name.partition(NUCLEUS)
    family, _, alpha = family.partition(" ")
    options = {"top_p": float(top_p)} if top_p else {}
    if alpha:
        return TEMPERED[family](**shared, **options, choice_temperature=float(alpha))
    return PLAIN[family](**shared, **options)


def tempered(alpha: float, curve: Sequence[float], apart: int = 3) -> list[str]:
    """All families at the recommended choice temperature, and the uniform order at those of a curve.

    Args:
        apart: the distance of the moment sampler whose positions lie apart.
    """
    names = [name for name in TEMPERED if name not in {*APART, *RATIOS} or name == f"moment-apart-{apart}"]
    return [*(f"{name} {alpha:g}" for name in names), *(f"uniform {value:g}" for value in curve)]


def nucleus(top_p: float = 0.9) -> list[str]:
    """ReMDM as published, and the order that it revises, from the most probable tokens of 90 % in all."""
    return [f"{name}{NUCLEUS}{top_p:g}" for name in ("uniform", *REMDM)]
