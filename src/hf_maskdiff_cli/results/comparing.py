"""Several files side by side: what two of them have in common, value beside value, with the difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .combining import combined
from .numbers import measured, with_error
from .schema import Measure, Record, Results, Value
from .tables import markdown

# Sampler, steps, groups; and model and data, where a file has several: those of whole files may differ.
Key = tuple[str, int, int, str, str]


def common(results: Mapping[str, Results]) -> dict[str, str]:
    """A table for each measure that at least two files have: rows that at least two have, and a column for each file.

    Args:
        results: files by the names that the columns get; differences are from the first.

    Returns:
        The tables by the names of the measures; none where nothing is in common.
    """
    records = {name: _by_key(file) for name, file in results.items()}
    tables = {}
    for measure in dict.fromkeys(one for file in results.values() for one in file.measures):
        owners = [name for name, file in results.items() if measure in file.measures]
        keys = dict.fromkeys(key for name in owners for key, one in records[name].items() if measure in one.measures)
        shared = [key for key in keys if sum(_has(records[name].get(key), measure) for name in owners) > 1]
        if len(owners) > 1 and shared:
            meaning = results[owners[0]].measures[measure]
            rows = [_row(key, [records[name].get(key) for name in owners], measure, meaning) for key in shared]
            changes = [f"{name} - {owners[0]}" for name in owners[1:]]
            tables[measure] = markdown(["sampler", "steps", "R", *owners, *changes], rows)
    return tables


def _by_key(file: Results) -> dict[Key, Record]:
    return {_key(one): one for one in combined(file.records)}


def _key(record: Record) -> Key:
    return record.sampler, record.steps, record.num_substeps, record.model or "", record.data or ""


def _has(record: Record | None, measure: str) -> bool:
    return record is not None and measure in record.measures


def _row(key: Key, records: Sequence[Record | None], name: str, measure: Measure) -> list[str]:
    values = [None if one is None else one.measures.get(name) for one in records]
    sampler, steps, groups, *of = key
    changes = [_difference(values[0], one, measure) for one in values[1:]]
    named = ", ".join([sampler, *filter(None, of)])
    return [named, str(steps or ""), str(groups), *(measured(one, measure) for one in values), *changes]


def _difference(first: Value | None, other: Value | None, measure: Measure) -> str:
    """Other minus first, with the error of both as if they had nothing in common; it is unknown if one of them is."""
    if first is None or other is None or first.value is None or other.value is None:
        return ""
    scale = 100 if measure.percent else 1
    is_known = first.error is not None and other.error is not None
    error = scale * math.hypot(first.error or 0, other.error or 0) if is_known else None
    return with_error(scale * (other.value - first.value), error, measure.digits)
