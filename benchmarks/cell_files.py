"""The cells of a benchmark as a file of results, which `hf-maskdiff report` and a later run read: docs/reporting.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measures import measure_of
from samplers import in_groups, parts

from hf_maskdiff_cli.results import Record, Results, Sampler, Value, provenance, read_results, write_results

# Names of a cell that are fields of a record rather than measures; and settings that say how many samples a seed has.
FIELDS = {"passes": "passes", "partial passes": "partial_passes", "seconds": "seconds"}
NUMBERS = ("num_images", "num_sequences", "num_samples", "num_chains", "number")
KEY = ("sampler", "steps", "seed")


def read_cells(path: Path) -> dict[str, Any]:
    """Settings, schedulers and cells of a file that `write_cells` wrote."""
    results = read_results(path)
    return {
        "settings": dict(results.settings),
        "schedulers": {name: one.scheduler for name, one in results.samplers.items() if one.scheduler is not None},
        "cells": [cell_of(record) for record in results.records],
    }


def write_cells(found: Mapping[str, Any], path: Path) -> None:
    """Write settings, schedulers and cells as a file of results; titles that the file has are kept."""
    earlier = read_results(path) if path.exists() else None
    settings, schedulers = found["settings"], found.get("schedulers", {})
    number = next((settings[name] for name in NUMBERS if settings.get(name)), None)
    records = [record_of(cell, number) for cell in found["cells"]]
    names = dict.fromkeys(record.sampler for record in records)
    titles = {} if earlier is None else {name: one.title for name, one in earlier.samplers.items()}
    results = Results(
        command=provenance.command(),
        measures={name: measure_of(name) for record in records for name in record.measures},
        samplers={name: Sampler(titles.get(name, ""), schedulers.get(name)) for name in names},
        records=records,
        about="" if earlier is None else earlier.about,
        model=settings.get("pipeline"),
        data=settings.get("dataset") or settings.get("data_dir"),
        machine=provenance.also(earlier, provenance.machine()),
        versions=provenance.versions(),
        settings=settings,
    )
    write_results(results, path)


def record_of(cell: Mapping[str, Any], num_samples: int | None) -> Record:
    """A cell as a record; "moment, 2 groups" is the sampler "moment" with two groups."""
    sampler, num_substeps = parts(cell["sampler"])
    measures = {name: Value(value) for name, value in cell.items() if name not in (*KEY, *FIELDS)}
    fields = {field: cell[name] for name, field in FIELDS.items() if name in cell}
    return Record(
        sampler,
        cell["steps"],
        measures,
        num_substeps,
        num_samples=num_samples,
        seeds=(cell["seed"],),
        **fields,
    )


def cell_of(record: Record) -> dict[str, Any]:
    """The cell that `record_of` was given."""
    (seed,) = record.seeds
    key = {"sampler": in_groups(record.sampler, record.num_substeps), "steps": record.steps, "seed": seed}
    fields = {name: getattr(record, field) for name, field in FIELDS.items()}
    measures = {name: one.value for name, one in record.measures.items()}
    return key | measures | {name: value for name, value in fields.items() if value is not None}
