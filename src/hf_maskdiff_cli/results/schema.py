"""What a file of results holds. The fields have the names of the file's keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SCHEMA = "hf-maskdiff results 1"
BETTER = ("less", "more", "")


@dataclass(frozen=True)
class Value:
    """A number that was measured.

    Args:
        value: the number, a mean where there are several seeds; None if it could not be measured.
        error: its standard error: over seeds if the record has several, else over samples; None if unknown.
    """

    value: float | None
    error: float | None = None


@dataclass(frozen=True)
class Measure:
    """What a measure is, and how it is written.

    Args:
        title: what a table calls it; empty for its name.
        meaning: a line that explains it.
        digits: decimals in a table; None where the error decides.
        better: "less", "more", or empty where neither is.
        percent: whether the value is a share that is shown in percent.
    """

    title: str = ""
    meaning: str = ""
    digits: int | None = None
    better: str = ""
    percent: bool = False


@dataclass(frozen=True)
class Sampler:
    """What made samples.

    Args:
        title: what a table calls it; empty for its name.
        scheduler: configuration of the scheduler, as in `scheduler_config.json`; None for real data, and where it is
            unknown or more than a scheduler.
        made_with: everything else that is known of how the samples were made.
    """

    title: str = ""
    scheduler: Mapping[str, Any] | None = None
    made_with: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """A row: what a sampler reached with a number of steps, on one seed or on several.

    Args:
        sampler: name of the sampler, a key of `Results.samplers`.
        steps: number of steps; 0 for real data and other references, which take none.
        measures: values by the names of `Results.measures`; those that were not measured are left out.
        num_substeps: groups of a step, R; 1 without partial caching.
        model: name of the model; None for that of the file.
        data: what the samples were compared with; None for that of the file.
        passes: model passes of a sample; None if unknown. Without `partial_passes` a partial pass counts in it as the
            share of positions that it computes.
        partial_passes: passes of partial caching that a sample took beside these; None if they were not counted apart.
        seconds: time that was measured, of what the file's `about` says; None if unknown.
        num_samples: number of samples of each seed; None if unknown.
        seeds: the seeds; empty if unknown.
        source: where the samples are; empty if unknown.
    """

    sampler: str
    steps: int
    measures: Mapping[str, Value]
    num_substeps: int = 1
    model: str | None = None
    data: str | None = None
    passes: float | None = None
    partial_passes: float | None = None
    seconds: float | None = None
    num_samples: int | None = None
    seeds: Sequence[int] = ()
    source: str = ""


@dataclass(frozen=True)
class Results:
    """A file of results.

    Args:
        command: the command that measured them.
        measures: what was measured, by name.
        samplers: what made the samples, by name.
        records: the rows.
        about: what else a reader must know: sizes, schedule, how errors and seconds were taken.
        model: name of the model, where the records have no other.
        data: what the samples were compared with, where the records have no other.
        machine: what it ran on; empty if unknown.
        versions: of the packages, by name.
        settings: all else that the numbers depend on.
    """

    command: str
    measures: Mapping[str, Measure]
    samplers: Mapping[str, Sampler]
    records: Sequence[Record]
    about: str = ""
    model: str | None = None
    data: str | None = None
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def title(self, sampler: str) -> str:
        """What a table calls a sampler."""
        return self.samplers[sampler].title or sampler
