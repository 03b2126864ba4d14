"""The common style of all plots: a measure against the number of steps, a labelled line per sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import Row, Summary
from looks import GREY, look, title_of

# At the width of a README, two thirds of a picture of 9 inches, letters are as large as its text.
STYLE = {
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "lines.linewidth": 2,
    "errorbar.capsize": 0,
    "savefig.facecolor": "white",
}

PAPER = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.6}  # under a number that lies on a line


@dataclass(frozen=True)
class End:
    """What is written at the end of a line: a text, where it belongs, and its colour."""

    text: str
    x: float | None  # None where a line crosses the whole panel
    y: float
    colour: str


@contextmanager
def figure(path: Path, dpi: int = 150, title: str = "", **options: Any) -> Iterator[Any]:
    """A new figure, which is written to a file when the context ends.

    Args:
        title: what the picture says, in a sentence.
    """
    from matplotlib import rc_context  # imported here, since only plots need it
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(layout="constrained", **options)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
        yield figure
        figure.savefig(path, dpi=dpi)


def draw_curve(axis: Any, points: list[tuple[float, float, float]], label: str, **style: Any) -> Any:
    """Draw points `(x, y, error)`; without an error bar if the error is NaN."""
    x, y, error = zip(*sorted(points), strict=True)
    return axis.errorbar(x, y, error, **{"marker": "o", "markersize": 5, "elinewidth": 1.2, "label": label, **style})


def draw_over_steps(
    axis: Any, summary: Summary, value: Callable[[Row], tuple[float, float] | None], **labels: Any
) -> list[End]:
    """Draw a line per sampler, which looks the same in every picture.

    Args:
        value: returns mean and error of the plotted measure from a row; None if the row has none.
        labels: labels and scales of the axes.

    Returns:
        What `label_ends` writes at the ends of the lines.
    """
    ends = []
    for name in dict.fromkeys(name for name, steps in summary if steps):
        rows = [(steps, value(row)) for (sampler, steps), row in summary.items() if sampler == name]
        points = sorted((steps, *found) for steps, found in rows if found is not None)
        if points:
            draw_curve(axis, points, name, **look(name))
            ends.append(End(title_of(name), *points[-1][:2], look(name)["color"]))
    axis.set(**{"xscale": "log", "xlabel": "steps, one model pass each", **labels})
    set_ticks(axis.xaxis, sorted({steps for _, steps in summary if steps}))
    return ends


def draw_references(axis: Any, summary: Summary, measure: str) -> list[End]:
    """Draw horizontal lines for references such as real data, which have no steps; returns what to write at them."""
    references = [(name, row[measure][0]) for (name, steps), row in summary.items() if not steps]
    for (_, value), style in zip(references, (":", "--"), strict=False):
        axis.axhline(value, color=GREY, linestyle=style, linewidth=1.5)
    return [End(name, None, value, GREY) for name, value in references]


def label_ends(figure: Any, ends: dict[Any, Sequence[End]], fontsize: float = 11) -> None:
    """Write names to the right of the lines that they belong to, moved apart where they would overlap.

    Args:
        ends: for each panel, what is written there.
    """
    for axis in ends:
        axis.autoscale(False)  # names and their lines lie outside, and shall not move what is inside
    figure.draw_without_rendering()  # so that the panels have their height
    for axis, names in ends.items():
        height = axis.get_window_extent().height * 72 / figure.dpi
        to_panel = axis.transData + axis.transAxes.inverted()
        right = axis.get_xlim()[1]
        places = [to_panel.transform((right if end.x is None else end.x, end.y)) for end in names]
        spread = apart([y for _, y in places], 1.15 * fontsize / height)
        for end, (x, y), moved in zip(names, places, spread, strict=True):
            axis.plot(
                *((x, 1.025), (y, moved)),
                **{"color": end.colour, "linewidth": 0.7, "clip_on": False, "transform": axis.transAxes},
            )
            style = {"color": end.colour, "fontsize": fontsize, "va": "center"}
            axis.annotate(end.text, (1.035, moved), xycoords="axes fraction", **style)


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Places at least `gap` apart, in the same order, whose squared distance from the old ones is least.

    What overlaps becomes a block around its mean (isotonic regression, by pooling adjacent violators).
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    blocks: list[list[float]] = []
    for rank, i in enumerate(order):
        blocks.append([places[i] - rank * gap])
        while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    means = [_mean(block) for block in blocks for _ in block]
    moved = dict(zip(order, (mean + rank * gap for rank, mean in enumerate(means)), strict=True))
    return [moved[i] for i in range(len(places))]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def set_ticks(axis: Any, ticks: Any) -> None:
    """Show these ticks only, and of them those that the panel reaches."""
    low, high = axis.get_view_interval()
    shown = [tick for tick in ticks if low <= tick <= high]
    axis.set_ticks(shown, labels=[f"{tick:g}" for tick in shown])
    axis.set_ticks([], minor=True)


def add_legend(figure: Any, **options: Any) -> None:
    """Add one legend for all panels, with each label once."""
    legends = (axis.get_legend_handles_labels() for axis in figure.axes)
    handles = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
    figure.legend(handles.values(), handles, **{"fontsize": "small", "loc": "outside right upper", **options})
