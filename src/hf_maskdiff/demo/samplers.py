"""The samplers that the page lists, and which of its settings each of them has."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import hf_maskdiff
from hf_maskdiff.schedulers import ChooseThenSampleScheduler, MaskedDiffusionScheduler
from hf_maskdiff_cli.names import SCHEDULERS

# Without it the number of steps would be no more than an upper limit.
_SETTINGS: dict[str, dict[str, Any]] = {"EntropyBoundedScheduler": {"follow_schedule": True}}
# Of models that were made for it, and for no other sampler.
_NOT_LISTED = ("OneStepScheduler",)


@dataclass(frozen=True)
class Sampler:
    """A scheduler as the page offers it.

    Args:
        name: in the list.
        scheduler: its class.
        has_choice_temperature: whether its choice temperature can be set; a scheduler that can do without one is listed
            twice.
        settings: in place of those of the pipeline's own scheduler.
    """

    name: str
    scheduler: type[MaskedDiffusionScheduler]
    has_choice_temperature: bool
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_substeps(self) -> bool:
        """Whether its steps can be split by partial caching: its positions are known before its tokens."""
        return issubclass(self.scheduler, ChooseThenSampleScheduler)

    @property
    def has_steps(self) -> bool:
        """Whether it runs as many steps as it is told."""
        return self.scheduler.fit_timesteps is MaskedDiffusionScheduler.fit_timesteps

    def make(self, config: Mapping[str, Any], choice_temperature: float) -> MaskedDiffusionScheduler:
        """The scheduler, with the settings of a pipeline's own; the temperature is used where there is one."""
        settings = dict(self.settings)
        if self.has_choice_temperature:
            settings["choice_temperature"] = choice_temperature
        return self.scheduler.from_config(config, **settings)

    def remarks(self) -> list[str]:
        """What the page must say of settings that this sampler does not have, a sentence each."""
        remarks = []
        if not self.has_steps:
            remarks.append(f"{self.name} sets its own number of steps; “Steps” is not used.")
        if not self.has_choice_temperature:
            remarks.append(f"{self.name} has no choice temperature.")
        if not self.has_substeps:
            remarks.append(f"{self.name} draws tokens before it knows the positions: R is 1, without partial caching.")
        return remarks


@cache
def samplers() -> Mapping[str, Sampler]:
    """Every sampler of the package that runs on any model, by the name in the list.

    One that can do without a choice temperature is listed without it and, as "Halton + choice temperature", with it.
    """
    found: dict[str, Sampler] = {}
    for class_name in (name for name in SCHEDULERS if name not in _NOT_LISTED):
        scheduler = getattr(hf_maskdiff, class_name)
        name, settings = _words(class_name), _SETTINGS.get(class_name, {})
        parameter = inspect.signature(scheduler.__init__).parameters.get("choice_temperature")
        if parameter is None:
            found[name] = Sampler(name, scheduler, False, settings)
        elif parameter.default is None:
            found[name] = Sampler(name, scheduler, False, {**settings, "choice_temperature": None})
            tempered = f"{name} + choice temperature"
            found[tempered] = Sampler(tempered, scheduler, True, settings)
        else:
            found[name] = Sampler(name, scheduler, True, settings)
    return found


def _words(class_name: str) -> str:
    """The name without "Scheduler": "Entropy bounded" of `EntropyBoundedScheduler`."""
    first, *others = re.split(r"(?<=[a-z])(?=[A-Z][a-z])", class_name.removesuffix("Scheduler"))
    return " ".join([first, *(word.lower() for word in others)])


@dataclass(frozen=True)
class Choice:
    """What a user has chosen for one of the two panels.

    Args:
        sampler: name, one of `samplers()`.
        choice_temperature: of the slider; used where the sampler has one.
        num_substeps: R of the slider; used where the sampler has groups.
    """

    sampler: str
    choice_temperature: float
    num_substeps: int

    @property
    def of(self) -> Sampler:
        """The sampler.

        Raises:
            ValueError: there is none of that name.
        """
        if self.sampler not in samplers():
            raise ValueError(
                f"`sampler` must be one of {', '.join(samplers())}, got {self.sampler!r}. Pick one from the list."
            )
        return samplers()[self.sampler]

    @property
    def substeps(self) -> int:
        """R as it is used."""
        return self.num_substeps if self.of.has_substeps else 1

    def described(self, steps: int) -> str:
        """The settings that are used, for the line above a result."""
        parts = [self.sampler]
        if self.of.has_steps:
            parts.append(f"{steps} steps")
        if self.of.has_choice_temperature:
            parts.append(f"choice temperature {self.choice_temperature:g}")
        if self.substeps > 1:
            parts.append(f"R = {self.substeps}")
        return ", ".join(parts)
