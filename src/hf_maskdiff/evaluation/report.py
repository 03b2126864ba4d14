"""The report of an evaluation: rows of measures with errors, as a table, as a file of results and as a plot."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hf_maskdiff_cli.results import write_results
from hf_maskdiff_cli.results.numbers import with_error

from .results_file import results_of

Measure = tuple[float, float]  # value and error; NaN if the error is unknown


@dataclass(frozen=True)
class SetResult:
    """The measures of one set.

    Args:
        name: name of the set.
        num_samples: number of samples in the set.
        measures: value and error of each measure, by name.
        configuration: how the set was made; empty if unknown.
        passes: model passes per sample, where a partial pass counts as the share of positions it computes; None if
            unknown.
        seconds: time to make the set, summed over all processes; None if unknown.
    """

    name: str
    num_samples: int
    measures: dict[str, Measure]
    configuration: dict[str, Any] = field(default_factory=dict)
    passes: float | None = None
    seconds: float | None = None

    @property
    def seed(self) -> int | None:
        return self.configuration.get("seed")

    @property
    def group(self) -> str:
        """A key that is equal for sets which differ in their seed alone; a set of unknown origin has its own."""
        if not self.configuration:
            return self.name
        made = {name: value for name, value in self.configuration.items() if name != "seed"}
        return json.dumps(made, sort_keys=True, default=str)


@dataclass(frozen=True)
class Row:
    """One row of the table: one set, or several sets that differ in their seed alone.

    Args:
        name: name of the sampler if known, else of the set.
        sets: the sets.
        measures: mean over the sets, and its standard error; for a single set, the set's own measures.
    """

    name: str
    sets: Sequence[SetResult]
    measures: dict[str, Measure]

    def mean(self, name: str) -> float | None:
        """Mean of `passes` or `seconds` over the sets; None if unknown."""
        values = [getattr(one, name) for one in self.sets]
        return None if None in values else fmean(values)


def mean_and_error(values: Sequence[float]) -> Measure:
    """Mean and standard error; the error of one value is NaN."""
    return fmean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan


def rows_of(results: Sequence[SetResult]) -> list[Row]:
    """Group sets that differ in their seed alone into one row; rows are in the order of their first sets."""
    groups: dict[str, list[SetResult]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)
    for sets in groups.values():
        if len({one.seed for one in sets}) < len(sets):
            raise ValueError(
                f"sets of one row must have different seeds, got the seeds {[one.seed for one in sets]} in "
                f"{[one.name for one in sets]}. Leave the copies out."
            )
    return [Row(_label(sets), sets, _combine(sets)) for sets in groups.values()]


def _combine(sets: Sequence[SetResult]) -> dict[str, Measure]:
    if len(sets) == 1:
        return sets[0].measures
    return {name: mean_and_error([one.measures[name][0] for one in sets]) for name in sets[0].measures}


def _label(sets: Sequence[SetResult]) -> str:
    configuration = sets[0].configuration
    if "scheduler" not in configuration:
        return sets[0].name
    scheduler = configuration["scheduler"]
    parts = [scheduler["_class_name"].removesuffix("Scheduler")]
    if scheduler.get("choice_temperature") is not None:
        parts[0] += f" {scheduler['choice_temperature']}".removesuffix(".0")
    if configuration.get("num_inference_steps") is not None:
        parts.append(f"{configuration['num_inference_steps']} steps")
    if configuration.get("num_substeps", 1) > 1:
        parts.append(f"R = {configuration['num_substeps']}")
    place = sets[0].name if len(sets) == 1 else str(Path(sets[0].name).parent)
    return f"{', '.join(parts)} ({place})"


@dataclass(frozen=True)
class Report:
    """
    Args:
        rows: the rows of the table.
        legend: explanation of each measure, by name.
        settings: everything besides the sets that the numbers depend on: networks, judges, references, versions.
    """

    rows: Sequence[Row]
    legend: dict[str, str]
    settings: dict[str, Any]

    def table(self) -> str:
        """The table in Markdown, with the legend, the settings and how the sets were made."""
        names = list(self.legend)
        lines = [_line("samples", "sets x samples", "seeds", *names, "passes", "seconds")]
        lines.append(_line("---", "---:", "---", *["---:"] * (len(names) + 2)))
        for row in self.rows:
            seeds = ", ".join(str(one.seed) for one in row.sets if one.seed is not None)
            sizes = "/".join(map(str, dict.fromkeys(one.num_samples for one in row.sets)))
            values = [with_error(*row.measures[name]) for name in names]
            cost = [_optional(row.mean(name)) for name in ("passes", "seconds")]
            lines.append(_line(row.name, f"{len(row.sets)} x {sizes}", seeds, *values, *cost))
        notes = [f"- {name}: {meaning}" for name, meaning in self.legend.items()]
        notes.append("- passes: model passes per sample; seconds: to make a set, over all processes; empty: unknown")
        notes.append("- errors: over the sets of a row if it has several, else within the set, as stated above")
        settings = [f"- {name}: {value}" for name, value in self.settings.items()]
        made = [f"- {row.name} was made with `{row.sets[0].group}`" for row in self.rows if row.sets[0].configuration]
        return "\n".join([*lines, "", *notes, "", *settings, *made])

    def save(self, folder: Path) -> None:
        """Write `report.md`, `report.json` and `report.png`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.md").write_text(self.table() + "\n", encoding="utf-8")
        write_results(results_of(self), folder / "report.json")
        self.plot(folder / "report.png")

    def plot(self, path: Path) -> None:
        """Plot a panel per measure, with a point and its error for each row."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        names, places = list(self.legend), range(len(self.rows))
        labels = [textwrap.fill(row.name, 40, break_on_hyphens=False) for row in self.rows]
        size = (4 + 2.2 * len(names), 1.2 + 0.5 * len(self.rows))
        figure, axes = plt.subplots(1, len(names), figsize=size, squeeze=False, sharey=True, layout="constrained")
        for axis, name in zip(axes[0], names, strict=True):
            values, errors = zip(*(row.measures[name] for row in self.rows), strict=True)
            axis.errorbar(
                values, places, xerr=[0 if math.isnan(error) else error for error in errors], fmt="o", capsize=3
            )
            axis.set(title=name, yticks=places, yticklabels=labels, ylim=(len(places) - 0.5, -0.5))
            axis.grid(alpha=0.3)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _optional(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"
