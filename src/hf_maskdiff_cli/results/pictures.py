"""A picture of results: a panel for each measure, against model passes, with a line for each sampler of each file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .combining import combined
from .schema import Measure, Record, Results

# Okabe and Ito's colours, which people with any kind of colour vision tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#7A4B00")
MARKERS = "osD^vP*X"  # one a file
LINES = ("-", "--", ":", "-.")
REFERENCE = "#767676"
COLUMNS = 3  # of the legend


def draw(results: Mapping[str, Results], path: Path) -> None:
    """Draw all files into one picture.

    Args:
        results: files by the names that a legend gives them.
    """
    from matplotlib.figure import Figure  # imported here, since only pictures need it

    measures = {name: one for file in results.values() for name, one in file.measures.items()}
    columns = min(2, len(measures))
    rows = -(-len(measures) // columns)
    looks = _looks(results)
    legend = 0.2 * -(-(len(looks) + 2) // COLUMNS)  # inches
    figure = Figure(figsize=(6.5 * columns, 0.8 + 3.6 * rows + legend), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (name, measure) in zip(panels, measures.items(), strict=False):
        _panel(axis, results, name, measure, looks)
    for axis in panels[len(measures) :]:
        axis.set_visible(False)
    legends = (axis.get_legend_handles_labels() for axis in panels)
    handles = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=COLUMNS, fontsize=9, frameon=False)
    figure.savefig(path, dpi=150)


def _looks(results: Mapping[str, Results]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Colour by sampler, marker by file, line by number of groups; marks are hollow where a colour comes again."""
    samplers = list(dict.fromkeys(record.sampler for file in results.values() for record in file.records))
    groups = sorted({record.num_substeps for file in results.values() for record in file.records})
    return {
        (name, record.sampler, record.num_substeps): {
            "color": COLOURS[samplers.index(record.sampler) % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
            **({} if samplers.index(record.sampler) < len(COLOURS) else {"markerfacecolor": "white"}),
            "linestyle": LINES[groups.index(record.num_substeps) % len(LINES)],
        }
        for number, (name, file) in enumerate(results.items())
        for record in file.records
    }


def _panel(
    axis: Any,
    results: Mapping[str, Results],
    name: str,
    measure: Measure,
    looks: Mapping[tuple[str, str, int], Mapping[str, Any]],
) -> None:
    scale = 100 if measure.percent else 1
    for file_name, file in results.items():
        lines: dict[tuple[str, str, int, str], list[tuple[float, float, float]]] = {}
        for record in combined(file.records):
            value = record.measures.get(name)
            if value is None or value.value is None:
                continue
            label = _label(file_name if len(results) > 1 else "", file, record)
            if not record.steps:
                axis.axhline(scale * value.value, color=REFERENCE, linestyle=":", label=label)
                continue
            point = (_passes(record), scale * value.value, scale * (value.error or 0))
            lines.setdefault((file_name, record.sampler, record.num_substeps, label), []).append(point)
        for (own, sampler, groups, label), points in lines.items():
            x, y, error = zip(*sorted(points), strict=True)
            axis.errorbar(x, y, error, label=label, markersize=5, **looks[own, sampler, groups])
    better = f", {measure.better} is better" if measure.better else ""
    axis.set(
        xlabel="model passes of a sample",
        xscale="log",
        title=f"{measure.title or name}{' in %' * measure.percent}{better}",
    )
    axis.title.set_fontsize(10)
    axis.grid(alpha=0.3)
    ticks = [2**i for i in range(14) if axis.get_xlim()[0] <= 2**i <= axis.get_xlim()[1]]
    if ticks:
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()


def _passes(record: Record) -> float:
    """Passes where they were counted; steps, which take one each, where not."""
    return record.steps if record.passes is None else record.passes


def _label(file_name: str, file: Results, record: Record) -> str:
    groups = f", R = {record.num_substeps}" if record.num_substeps > 1 else ""
    model = f", {record.model}" if record.model else ""
    return f"{file_name + ': ' if file_name else ''}{file.title(record.sampler)}{groups}{model}"
