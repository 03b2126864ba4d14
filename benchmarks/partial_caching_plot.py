"""The plots of `partial_caching.py`: quality against passes, with one line per R and the step count at each point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cells import Cells, Summary, summarise
from looks import look, title_of
from plots import PAPER, End, draw_curve, figure, label_ends, set_ticks
from samplers import in_groups

# measure -> heading, factor, digits
Measures = dict[str, tuple[str, float, int]]
# cells, measures, moment, MaskGIT, the other samplers, samples of a cell
Kind = tuple[Cells, Measures, str, str, Sequence[str], int]
# Lines of one sampler, hence of one colour: the more groups, the lighter.
LIGHTER = {1: 0.0, 2: 0.3, 3: 0.4, 4: 0.5, 8: 0.6}
COLUMNS = 3
MARKERS = {1: "o", 2: "s", 3: "D", 4: "^", 8: "v"}
PASSES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
LABELS = {"frechet": "Frechet distance", "nats": "nats per character"}
FRECHET = (5, 10, 20, 40, 80, 160)


def fastest(cells: Cells, name: str, steps: int) -> float:
    """Milliseconds of the fastest seed, which other programs disturbed least."""
    return 1000 * min(cell["seconds"] for cell in cells if (cell["sampler"], cell["steps"]) == (name, steps))


def lighter(colour: str, share: float) -> tuple[float, ...]:
    """A colour mixed with a share of white."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return tuple(part + share * (1 - part) for part in parts)


def curve(axis: Any, summary: Summary, measure: str, name: str, num_substeps: int, label: str) -> list[End]:
    """Plot quality against passes, with the step count at each point; returns what to write at the end of a line."""
    sampler = in_groups(name, num_substeps)
    points = sorted(
        (row["pass equivalents"][0], *row[measure], steps)
        for (found, steps), row in summary.items()
        if found == sampler and steps
    )
    if not points:
        return []
    colour = lighter(look(name)["color"], LIGHTER.get(num_substeps, 0.5))
    style = {"color": colour, "marker": MARKERS.get(num_substeps, "o"), "linestyle": "-"}
    draw_curve(axis, [point[:3] for point in points], label, **style)
    for number, (x, y, _, steps) in enumerate(points):
        place = {"xytext": (6, 5), "textcoords": "offset points", "fontsize": 10, "color": colour, "zorder": 5}
        named = num_substeps > 1 and number == 0  # lines with groups end in the crowd, and begin outside it
        axis.annotate(f"{steps} steps, {label}" if named else str(steps), (x, y), bbox=PAPER, **place)
    return [] if num_substeps > 1 else [End(label, *points[-1][:2], colour)]


def draw_panel(axis: Any, summary: Summary, measure: str, name: str, num_substeps: Sequence[int]) -> list[End]:
    """Plot a sampler's curves, one per R."""
    ends = []
    for number in sorted(num_substeps):
        ends += curve(axis, summary, measure, name, number, "no groups" if number == 1 else f"{number} groups")
    axis.set(xscale="log", xlabel="passes, a partial one as its share", ylabel=LABELS.get(measure, measure))
    set_axes(axis, measure)
    return ends


def set_axes(axis: Any, measure: str) -> None:
    """Ticks at round numbers."""
    set_ticks(axis.xaxis, PASSES)
    if measure == "frechet":
        axis.set_yscale("log")
        set_ticks(axis.yaxis, FRECHET)


def plot(kinds: list[Kind], num_substeps: Sequence[int], path: Path) -> None:
    """Plot moment for each R, and MaskGIT."""
    panels = [(summarise(cells), measures, *names) for cells, measures, *names, _, _ in kinds]
    draw_moment([(table, next(iter(first)), *names) for table, first, *names in panels], num_substeps, path)


def draw_moment(
    panels: Sequence[tuple[Summary, str, str, str]],
    num_substeps: Sequence[int],
    path: Path,
    title: str = "Partial caching: quality against passes",
    titles: Sequence[str] = (),
) -> None:
    """Plot a panel for each kind: the moment sampler for each R, and MaskGIT, which has no groups.

    Args:
        panels: summary, measure, moment's name, and MaskGIT's.
        titles: what each panel says.
    """
    with figure(path, title=title, figsize=(5.3 * len(panels), 5)) as page:
        axes = page.subplots(1, len(panels), squeeze=False)[0]
        ends = {}
        for number, (axis, (summary, measure, moment, maskgit)) in enumerate(zip(axes, panels, strict=True)):
            lines = curve(axis, summary, measure, maskgit, 1, "MaskGIT")
            ends[axis] = lines + draw_panel(axis, summary, measure, moment, num_substeps)
            axis.set_title(titles[number] if titles else title_of(moment))
        label_ends(page, ends)


def plot_others(kinds: list[Kind], num_substeps: Sequence[int], path: Path) -> None:
    """Plot the other samplers for each R."""
    panels = [(summarise(cells), next(iter(measures)), names) for cells, measures, _, _, names, _ in kinds]
    draw_others(panels, num_substeps, path)


def draw_others(
    panels: Sequence[tuple[Summary, str, Sequence[str]]],
    num_substeps: Sequence[int],
    path: Path,
    title: str = "Quality against passes, by the number of groups",
) -> None:
    """Plot a panel for each sampler, and begin a row with each kind.

    Args:
        panels: summary, measure and samplers.
    """
    rows = [
        (table, measure, names[i : i + COLUMNS])
        for table, measure, names in panels
        for i in range(0, len(names), COLUMNS)
    ]
    with figure(path, title=title, figsize=(3.6 * COLUMNS, 3.6 * len(rows))) as page:
        axes = page.subplots(len(rows), COLUMNS, squeeze=False, sharey="row")
        ends = {}
        for row, (summary, measure, names) in zip(axes, rows, strict=True):
            for axis, name in zip(row, names, strict=False):
                ends[axis] = draw_panel(axis, summary, measure, name, num_substeps)
                axis.set_title(title_of(name))
                axis.set_xlabel("passes")
                if axis is not row[0]:
                    axis.set_ylabel("")
            for axis in row[len(names) :]:
                axis.remove()
        label_ends(page, ends)
