"""Samplers by name; a name may end with a number of groups, such as "moment, 2 groups"."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from hf_maskdiff import (
    AncestralScheduler,
    ConfidenceScheduler,
    ExtrapolatingScheduler,
    HaltonScheduler,
    HybridScheduler,
    MaskedDiffusionScheduler,
    MomentScheduler,
    TrapezoidalScheduler,
)

# Make a scheduler from the configuration that a table shares (`shared_config`) and, if tempered, a choice temperature.
Samplers = Mapping[str, Callable[..., MaskedDiffusionScheduler]]
# Mixtures of the moment order and an exploration order: "halton 0.5" explores with half of each step's positions,
# "halton 1>0" starts with all of them and falls to none.
RATIOS: dict[str, float | tuple[float, float]] = {"0.25": 0.25, "0.5": 0.5, "0.75": 0.75, "1>0": (1.0, 0.0)}
HYBRIDS: Samplers = {
    f"{order} {name}": partial(HybridScheduler, exploration=order, exploration_ratio=ratio)
    for order in ("halton", "uniform")
    for name, ratio in RATIOS.items()
}
# The moment order with the positions of one step at a distance.
APART: Samplers = {
    f"moment-apart-{distance}": partial(MomentScheduler, min_distance=distance) for distance in (2, 3, 4)
}
# Of several draws of a step the one that a pass finds best; "-left" counts what is left uncertain alone. The published
# sampler draws its candidates by confidence with a little noise.
ORDERS: Samplers = {
    "moment": MomentScheduler,
    "halton": HaltonScheduler,
    "confidence": lambda choice_temperature, **config: ConfidenceScheduler(
        choice_temperature=0.1, choice_temperature_schedule="constant", **config
    ),
}
WEIGHTS = {"": 1.0, "-left": 0.0}
AHEAD: Samplers = {
    f"{order}-ahead-{number}{ending}": partial(scheduler, num_candidates=number, candidate_cost=weight)
    for order, scheduler in ORDERS.items()
    for number in (2, 4, 8)
    for ending, weight in WEIGHTS.items()
}
# The reverse process, and the samplers that take two passes to an interval of it, or of the uniform order.
SECOND_ORDER: Samplers = {
    "ancestral": AncestralScheduler,
    "trapezoidal": TrapezoidalScheduler,
    "extrapolating": ExtrapolatingScheduler,
}
GROUPS = re.compile(r"(.*), (\d+) groups")
GUIDANCE = re.compile(r"(.*), guidance ([\d.]+)(?: to ([\d.]+))?")


def shared_config(scheduler: MaskedDiffusionScheduler) -> dict[str, Any]:
    """The settings of a model's own scheduler that every other scheduler takes over."""
    return {key: scheduler.config[key] for key in ("mask_token_id", "codebook_size", "masking_schedule", "rounding")}


def described(scheduler: MaskedDiffusionScheduler) -> dict[str, Any]:
    """The configuration of a scheduler, as in a preset."""
    own = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    return {"_class_name": type(scheduler).__name__, **own}


def plain(scheduler: Callable[..., MaskedDiffusionScheduler], **config: Any) -> Callable[..., MaskedDiffusionScheduler]:
    """A scheduler that draws tokens at the model's own temperature."""
    return lambda choice_temperature, **shared: scheduler(**shared, **config)


def in_groups(sampler: str, num_substeps: int) -> str:
    """The sampler's name with partial caching: "moment, 2 groups"."""
    return sampler if num_substeps == 1 else f"{sampler}, {num_substeps} groups"


def all_in_groups(samplers: Sequence[str], num_substeps: Iterable[int]) -> list[str]:
    """Every sampler with every R; MaskGIT, whose choice depends on the tokens, has no groups."""
    return [
        in_groups(sampler, num)
        for num in num_substeps
        for sampler in samplers
        if num == 1 or not sampler.startswith("maskgit")
    ]


def parts(sampler: str) -> tuple[str, int]:
    """Split a name into the sampler's name without groups, and R."""
    match = GROUPS.fullmatch(sampler)
    return (match[1], int(match[2])) if match else (sampler, 1)


def guidance_of(sampler: str) -> tuple[str, float | tuple[float, float]]:
    """Split a name into the sampler's and its guidance scale: 1 if it has none, a pair if it rises with the steps."""
    match = GUIDANCE.fullmatch(sampler)
    if not match:
        return sampler, 1.0
    return match[1], (float(match[2]), float(match[3])) if match[3] else float(match[2])
