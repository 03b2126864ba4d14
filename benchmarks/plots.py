"""The plots' common look: a measure against the number of steps, a line a sampler, real data as a grey line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cells import Row, Summary


@contextmanager
def figure(path: Path, dpi: int = 150, **options: Any) -> Iterator[Any]:
    """A new figure, written to a file in the end."""
    from matplotlib.figure import Figure  # here: without a plot nobody needs it

    figure = Figure(layout="constrained", **options)
    yield figure
    figure.savefig(path, dpi=dpi)


def draw_curve(axis: Any, points: list[tuple[float, float, float]], label: str, **style: Any) -> Any:
    """Points `(x, y, error)`; no bar where the error is NaN."""
    x, y, error = zip(*sorted(points), strict=True)
    return axis.errorbar(x, y, error, marker="o", markersize=3, capsize=3, label=label, **style)


def draw_over_steps(
    axis: Any, summary: Summary, value: Callable[[Row], tuple[float, float] | None], **labels: Any
) -> None:
    """A line a sampler, in the same colour in every panel of a summary.

    Args:
        value: mean and error of what is drawn, from a row; None where it has none.
        labels: of the axes, and their scales.
    """
    for number, name in enumerate(dict.fromkeys(name for name, steps in summary if steps)):
        rows = [(steps, value(row)) for (sampler, steps), row in summary.items() if sampler == name]
        points = [(steps, *found) for steps, found in rows if found is not None]
        if points:
            draw_curve(axis, points, name, color=f"C{number}")
    axis.set(**{"xscale": "log", "xlabel": "steps", **labels})
    set_ticks(axis.xaxis, sorted({steps for _, steps in summary if steps}))


def draw_references(axis: Any, summary: Summary, measure: str) -> None:
    """What is not a sampler and has no steps."""
    references = [(name, row[measure][0]) for (name, steps), row in summary.items() if not steps]
    for (name, value), style in zip(references, (":", "--"), strict=False):
        axis.axhline(value, color="grey", linestyle=style, linewidth=1, label=name)


def set_ticks(axis: Any, ticks: Any) -> None:
    """These and no others."""
    axis.set_ticks(ticks, labels=ticks)
    axis.set_ticks([], minor=True)


def add_legend(figure: Any, **options: Any) -> None:
    """One for all panels, beside them; each label once."""
    legends = (axis.get_legend_handles_labels() for axis in figure.axes)
    handles = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
    figure.legend(handles.values(), handles, **{"fontsize": "small", "loc": "outside right upper", **options})
