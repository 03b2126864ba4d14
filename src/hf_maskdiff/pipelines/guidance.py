"""How strongly each step is guided: a number, or a rise from one to another over the steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# A number for all steps; (start, end), spaced evenly; (start, end, power) or (start, end, power, ahead), see
# `share_of_rise`.
GuidanceScale = float | Sequence[float]


def as_pair(guidance_scale: GuidanceScale) -> tuple[float, float]:
    """The scales at which a rise starts and ends; no step has one outside of them."""
    if isinstance(guidance_scale, Sequence):
        return guidance_scale[0], guidance_scale[1]
    return guidance_scale, guidance_scale


def share_of_rise(guidance_scale: GuidanceScale, step: int, num_steps: Tensor) -> Tensor:
    """How far the scale has come from start to end in step n of T, in [0, 1].

    `n / (T - 1)`; of a triple `(1 - cos(pi (n / T) ** power)) / 2`, which stays low for long (Masked Diffusion
    Transformer, arXiv 2303.14389). Of four numbers the same with `(n + ahead) / T`, so that 1 ends at the end.

    Args:
        step: n, from 0.
        num_steps: T, int64 of any shape; n may exceed it.
    """
    if isinstance(guidance_scale, Sequence) and len(guidance_scale) > 2:
        power, ahead = (*guidance_scale[2:], 0)[:2]
        share = ((step + ahead) / num_steps.clamp(min=1).double()).clamp(max=1)
        return (1 - torch.cos(torch.pi * share**power)) / 2
    return (step / (num_steps - 1).clamp(min=1).double()).clamp(max=1)
