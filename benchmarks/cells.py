"""The cells of a benchmark, one per sampler, number of steps and seed: saved so that a run can resume, and averaged."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cell_files import KEY, read_cells, write_cells
from samplers import parts
from tqdm.auto import tqdm

from hf_maskdiff.evaluation.report import mean_and_error

Cells = list[dict[str, Any]]  # each holds its key and its measures
Cell = tuple[str, int, int]  # sampler, steps (0 for a reference), seed
Row = dict[str, tuple[float, float]]  # mean and standard error of every measure
Summary = dict[tuple[str, int], Row]  # by sampler and steps


def seed_by_seed(pairs: Sequence[tuple[str, int]], num_seeds: int) -> list[Cell]:
    """The cells ordered by seed, so that a run that is stopped early has fewer seeds, not fewer rows, in its table."""
    return [(name, steps, seed) for seed in range(num_seeds) for name, steps in pairs]


def run_cells(
    args: argparse.Namespace,
    settings: Sequence[str],
    wanted: Sequence[Cell],
    prepare: Callable[[], Callable[[str, int, int], dict[str, Any]]],
) -> dict[str, Any]:
    """Measure the cells that are missing in `args.output_dir`, and return the contents of its `results.json`.

    Args:
        settings: names of the arguments that must be equal for all cells of a table.
        wanted: the cells, in the order in which they are measured.
        prepare: called if any cell is missing; returns the function that measures one. What it returns may also have
            the key "scheduler", the configuration that made the cell's samples.
    """
    path = args.output_dir / "results.json"
    results = load_results(path, {name: getattr(args, name) for name in settings}, args.resume)
    missing = missing_cells(results, wanted)
    if missing:
        measure = prepare()
        progress = tqdm(missing, desc="cells")
        for key in progress:
            progress.set_postfix_str("{}, {} steps, seed {}".format(*key))
            found = measure(*key)
            scheduler = found.pop("scheduler", None)
            if scheduler is not None:
                results["schedulers"][parts(key[0])[0]] = scheduler
            results["cells"].append(dict(zip(KEY, key, strict=True)) | found)
            write_cells(results, path)
    return results


def missing_cells(results: dict[str, Any], wanted: Sequence[Cell]) -> list[Cell]:
    done = {tuple(cell[name] for name in KEY) for cell in results["cells"]}
    return [key for key in wanted if key not in done]


def load_results(
    path: Path, settings: dict[str, Any], resume: bool, read: Callable[[Path], dict[str, Any]] = read_cells
) -> dict[str, Any]:
    """The contents of a file of cells; without cells if there is no such file, and an error if it may not go on."""
    fresh: dict[str, Any] = {"settings": settings, "schedulers": {}, "cells": []}
    if not path.exists():
        return fresh
    if not resume:
        raise ValueError(f"{path} must not exist yet. Pass --resume to keep its cells, or another --output_dir.")
    results = read(path)
    different = {key for key, value in fresh["settings"].items() if results["settings"].get(key) != value}
    if different:
        raise ValueError(
            f"with --resume the settings must be those of {path}, got others for {sorted(different)}. "
            "Pass the same ones, or another --output_dir."
        )
    return results


def summarise(cells: Cells) -> Summary:
    """Means and standard errors over seeds; with one seed the error is NaN."""
    groups: dict[tuple[str, int], Cells] = {}
    for cell in cells:
        groups.setdefault((cell["sampler"], cell["steps"]), []).append(cell)
    summary = {}
    for key, rows in groups.items():
        names = [name for name in rows[0] if name not in KEY]
        summary[key] = {name: mean_and_error([row[name] for row in rows]) for name in names}
    return summary


def differences(cells: Cells, base: dict[str, str]) -> Cells:
    """The difference of each sampler's measures from those of its base sampler, at the same steps and seed.

    Cells without a matching base cell are left out.

    Args:
        base: the base sampler of each sampler.
    """
    by_key = {tuple(cell[name] for name in KEY): cell for cell in cells}
    pairs = [(cell, by_key.get((base.get(cell["sampler"]), cell["steps"], cell["seed"]))) for cell in cells]
    return [
        {name: value if name in KEY else value - other[name] for name, value in cell.items()}
        for cell, other in pairs
        if other is not None
    ]
