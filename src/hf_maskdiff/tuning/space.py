"""What is searched: samplers, choice temperatures, groups of a step and thresholds, at each number of passes."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_maskdiff import schedulers
from hf_maskdiff.schedulers import MaskedDiffusionScheduler, UniformScheduler

AS_SHIPPED = "as it is"
Variations = Sequence[tuple[str, Sequence[Any]]]  # names of settings, and the values of each


@dataclass(frozen=True)
class Candidate:
    """A sampler with its settings, at a number of passes.

    Args:
        name: for tables, unique among the candidates of a level.
        scheduler: with all settings.
        level: the passes that a sample takes at most.
        num_substeps: groups of a step; a step in R groups is drawn with R - 1 partial passes, over a run R - 1 passes.
    """

    name: str
    scheduler: MaskedDiffusionScheduler
    level: int
    num_substeps: int = 1

    @property
    def num_inference_steps(self) -> int:
        """So many that steps and partial passes together are `level` passes."""
        return self.level - self.num_substeps + 1

    @property
    def key(self) -> str:
        """A name for files, unique among all candidates."""
        return "-".join([str(self.level), "passes", *re.findall(r"[\w.-]+", self.name.lower())])


def candidates(
    shipped: MaskedDiffusionScheduler,
    levels: Iterable[int],
    samplers: Sequence[str],
    choice_temperatures: Sequence[float | None],
    substeps: Sequence[int],
    thresholds: Sequence[float],
    variations: Variations = (),
) -> list[Candidate]:
    """Every combination that there is, with the settings of the pipeline's scheduler otherwise.

    A sampler that cannot draw without a choice temperature, or in groups, is left out where that is asked of it. Two
    are always there: the pipeline's own scheduler, and `UniformScheduler` without a choice temperature, whose diversity
    at many steps is the model's own.

    Args:
        shipped: the pipeline's scheduler.
        levels: numbers of passes.
        samplers: names of schedulers.
        choice_temperatures: for those that have one; None is without.
        substeps: numbers of groups of a step.
        thresholds: for samplers that have a threshold, which are then made to follow the masking schedule, so that
            they take at most as many steps as a level has.
        variations: further settings and their values, each for the samplers that have it.

    Raises:
        ValueError: a variation that none of the samplers has, or a value that one of them refuses.
    """
    _require_variations(samplers, variations)
    found = []
    for level in levels:
        own: dict[str, tuple[MaskedDiffusionScheduler, int]] = {AS_SHIPPED: (shipped, 1)}
        plain = own_candidates(shipped, UniformScheduler, [None], [1], [])
        for name in samplers:
            scheduler = getattr(schedulers, name)
            plain |= own_candidates(shipped, scheduler, choice_temperatures, substeps, thresholds, variations)
        same = _settings(shipped)
        own |= {name: one for name, one in plain.items() if (_settings(one[0]), one[1]) != (same, 1)}
        found += [Candidate(name, one, level, groups) for name, (one, groups) in own.items() if groups <= level]
    return found


def own_candidates(
    shipped: MaskedDiffusionScheduler,
    scheduler: type[MaskedDiffusionScheduler],
    choice_temperatures: Sequence[float | None],
    substeps: Sequence[int],
    thresholds: Sequence[float],
    variations: Variations = (),
) -> dict[str, tuple[MaskedDiffusionScheduler, int]]:
    """The settings of one sampler that are tried, and the groups of a step, by name."""
    known = inspect.signature(scheduler).parameters
    own = [[(name, value) for value in values] for name, values in variations if name in known]
    varied = [dict(chosen) for chosen in itertools.product(*own)]
    settings: list[dict[str, Any]] = [{}]
    if "choice_temperature" in known:
        may_lack = known["choice_temperature"].default is None
        settings = [{"choice_temperature": one} for one in choice_temperatures if may_lack or one is not None]
    elif "threshold" in known:
        follow = {"follow_schedule": True} if "follow_schedule" in known else {}
        settings = [{"threshold": one, **follow} for one in thresholds]
    # One that masks again draws more tokens than there are, and so its groups cost more than R - 1 passes.
    in_groups = issubclass(scheduler, schedulers.ChooseThenSampleScheduler) and not issubclass(
        scheduler, schedulers.RevisingScheduler
    )
    found = {}
    for chosen, more, groups in itertools.product(settings, varied, substeps):
        if groups == 1 or in_groups:
            without = scheduler.from_config(shipped.config, **chosen)
            other = {name: value for name, value in more.items() if without.config[name] != value}
            made = scheduler.from_config(shipped.config, **chosen, **other) if other else without
            found[_name_of(scheduler, chosen, other, groups)] = (made, groups)
    return found


def _require_variations(samplers: Sequence[str], variations: Variations) -> None:
    known = {setting for name in samplers for setting in inspect.signature(getattr(schedulers, name)).parameters}
    unknown = next((name for name, _ in variations if name not in known), None)
    if unknown is not None:
        raise ValueError(
            f"`vary` must name settings of the samplers that are searched, got {unknown!r}. These have "
            f"{', '.join(sorted(known))}."
        )


def _name_of(scheduler: type, settings: Mapping[str, Any], varied: Mapping[str, Any], groups: int) -> str:
    words = [scheduler.__name__.removesuffix("Scheduler")]
    words += [f"{value:g}" for name, value in settings.items() if name != "follow_schedule" and value is not None]
    more = [f"{name} {value}" for name, value in varied.items()]
    return ", ".join([" ".join(words), *more, *([f"R = {groups}"] if groups > 1 else [])])


def _settings(scheduler: MaskedDiffusionScheduler) -> tuple[str, str]:
    """What decides the law of a scheduler, for comparison."""
    public = {name: scheduler.config[name] for name in inspect.signature(type(scheduler)).parameters}
    return type(scheduler).__name__, repr(sorted(public.items()))
