"""The common style of all plots: a measure against the number of steps, a line per sampler, real data in grey."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cells import Row, Summary


@contextmanager
def figure(path: Path, dpi: int = 150, **options: Any) -> Iterator[Any]:
    """A new figure, which is written to a file when the context ends."""
    from matplotlib.figure import Figure  # imported here, since only plots need it

    figure = Figure(layout="constrained", **options)
    yield figure
    figure.savefig(path, dpi=dpi)


def draw_curve(axis: Any, points: list[tuple[float, float, float]], label: str, **style: Any) -> Any:
    """Draw points `(x, y, error)`; without an error bar if the error is NaN."""
    x, y, error = zip(*sorted(points), strict=True)
    return axis.errorbar(x, y, error, marker="o", markersize=3, capsize=3, label=label, **style)


def draw_over_steps(
    axis: Any, summary: Summary, value: Callable[[Row], tuple[float, float] | None], **labels: Any
) -> None:
    """Draw a line per sampler, in the same colour in every panel of a summary.

    Args:
        value: returns mean and error of the plotted measure from a row; None if the row has none.
        labels: labels and scales of the axes.
    """
    for number, name in enumerate(dict.fromkeys(name for name, steps in summary if steps)):
        rows = [(steps, value(row)) for (sampler, steps), row in summary.items() if sampler == name]
        points = [(steps, *found) for steps, found in rows if found is not None]
        if points:
            draw_curve(axis, points, name, color=f"C{number}")
    axis.set(**{"xscale": "log", "xlabel": "steps", **labels})
    set_ticks(axis.xaxis, sorted({steps for _, steps in summary if steps}))


def draw_references(axis: Any, summary: Summary, measure: str) -> None:
    """Draw horizontal lines for references such as real data, which have no steps."""
    references = [(name, row[measure][0]) for (name, steps), row in summary.items() if not steps]
    for (name, value), style in zip(references, (":", "--"), strict=False):
        axis.axhline(value, color="grey", linestyle=style, linewidth=1, label=name)


def set_ticks(axis: Any, ticks: Any) -> None:
    """Show these ticks only."""
    axis.set_ticks(ticks, labels=ticks)
    axis.set_ticks([], minor=True)


def add_legend(figure: Any, **options: Any) -> None:
    """Add one legend for all panels, with each label once."""
    legends = (axis.get_legend_handles_labels() for axis in figure.axes)
    handles = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
    figure.legend(handles.values(), handles, **{"fontsize": "small", "loc": "outside right upper", **options})
