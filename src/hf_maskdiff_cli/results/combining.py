"""Records that differ in their seed alone are one row, with means and standard errors over the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

from .schema import Record, Value


def combined(records: Sequence[Record]) -> list[Record]:
    """One record for each sampler, number of steps and so on, in the order of their first ones.

    Raises:
        ValueError: a seed is there twice, or a record of several seeds has others beside it.
    """
    groups: dict[Any, list[Record]] = {}
    for record in records:
        key = (record.model, record.data, record.sampler, record.steps, record.num_substeps, record.num_samples)
        groups.setdefault(key, []).append(record)
    return [one[0] if len(one) == 1 else _one_of(one) for one in groups.values()]


def _one_of(records: Sequence[Record]) -> Record:
    first = records[0]
    seeds = [seed for record in records for seed in record.seeds]
    if len(set(seeds)) < len(records) or any(len(record.seeds) != 1 for record in records):
        raise ValueError(
            f"records of one sampler, {first.sampler!r} with {first.steps} steps, must each have one seed of their "
            f"own, got the seeds {[list(record.seeds) for record in records]}. Leave out what is there twice."
        )
    names = dict.fromkeys(name for record in records for name in record.measures)
    return replace(
        first,
        measures={name: _mean([record.measures.get(name) for record in records]) for name in names},
        passes=_mean_of([record.passes for record in records]),
        partial_passes=_mean_of([record.partial_passes for record in records]),
        seconds=_mean_of([record.seconds for record in records]),
        seeds=tuple(seeds),
        source=", ".join(record.source for record in records if record.source),
    )


def _mean(values: Sequence[Value | None]) -> Value:
    numbers = [one.value for one in values if one is not None and one.value is not None]
    if len(numbers) < len(values):  # a mean of some seeds would be beside means of all
        return Value(None)
    return Value(fmean(numbers), stdev(numbers) / len(numbers) ** 0.5)


def _mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None
