"""The plots of `partial_caching.py`: quality against cost, with one line per R and the step count at each point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cells import Cells, summarise
from plots import add_legend, figure
from samplers import in_groups

# measure -> heading, factor, digits
Measures = dict[str, tuple[str, float, int]]
# cells, measures, moment, MaskGIT, the other samplers, samples of a cell
Kind = tuple[Cells, Measures, str, str, Sequence[str], int]
# R -> colour, and the offset of the step count from its point, in points
STYLES = {1: ("black", (-7, -11)), 2: ("tab:blue", (4, 3)), 3: ("tab:green", (4, 3)), 4: ("tab:orange", (4, 3))}
MORE_STYLES = ("tab:purple", "tab:brown", "tab:pink", "tab:olive")
TICKS = {
    "pass equivalents": ("passes, a partial one as k / L", (1, 2, 4, 8, 16, 32, 64, 128)),
    "seconds": ("milliseconds a sample", (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)),
    "frechet": ("Frechet distance", (2, 5, 10, 20, 40, 80, 160)),
}


def fastest(cells: Cells, name: str, steps: int) -> float:
    """Milliseconds of the fastest seed, which other programs disturbed least."""
    return 1000 * min(cell["seconds"] for cell in cells if (cell["sampler"], cell["steps"]) == (name, steps))


def curve(axis: Any, kind: Kind, name: str, x: str, colour: str, offset: tuple[int, int], **style: Any) -> None:
    """Plot quality against cost, with the step count at each point."""
    cells, measures, *_, number = kind
    y = next(iter(measures))
    rows = [(steps, row) for (sampler, steps), row in summarise(cells).items() if sampler == name and steps]
    points = sorted(
        (steps, fastest(cells, name, steps) / number if x == "seconds" else row[x][0], *row[y]) for steps, row in rows
    )
    if not points:
        return
    steps, costs, values, errors = zip(*points, strict=True)
    axis.errorbar(costs, values, errors, marker="o", markersize=4, capsize=2, linewidth=1.2, color=colour, **style)
    for place in zip(steps, costs, values, strict=True):
        label = {"xytext": offset, "textcoords": "offset points", "fontsize": 8, "color": colour}
        axis.annotate(str(place[0]), place[1:], **label)


def curves(axis: Any, kind: Kind, sampler: str, x: str, num_substeps: Sequence[int]) -> None:
    """Plot a sampler's curves, one per R."""
    more = iter(MORE_STYLES)
    for num in sorted(num_substeps):
        colour, offset = STYLES[num] if num in STYLES else (next(more), (4, 3))
        curve(axis, kind, in_groups(sampler, num), x, colour, offset, label=f"R = {num}")
    for scale, measure in ((axis.xaxis, x), (axis.yaxis, next(iter(kind[1])))):
        label, ticks = TICKS.get(measure, (f"{measure} per character", ()))
        scale.set_label_text(label)
        if ticks:
            getattr(axis, f"set_{scale.axis_name}scale")("log")
            low, high = scale.get_view_interval()
            scale.set_ticks([tick for tick in ticks if low <= tick <= high])
            scale.set_major_formatter("{x:g}")
            scale.set_ticks([], minor=True)


def plot(kinds: list[Kind], num_substeps: Sequence[int], path: Path) -> None:
    """Plot moment for each R, and MaskGIT: at the top against passes, at the bottom against wall time."""
    with figure(path, dpi=200, figsize=(8, 6.6)) as page:
        axes = page.subplots(2, len(kinds), squeeze=False)
        for column, kind in enumerate(kinds):
            *_, moment, maskgit, _, _ = kind
            for axis, x in zip(axes[:, column], ("pass equivalents", "seconds"), strict=True):
                curve(axis, kind, maskgit, x, "tab:red", (3, 4), linestyle="--", label="MaskGIT")
                curves(axis, kind, moment, x, num_substeps)
            axes[0, column].set_title(f"{'text' if 'nats' in kind[1] else 'images'}: {moment}")
        add_steps_legend(page)


def plot_others(kinds: list[Kind], num_substeps: Sequence[int], path: Path) -> None:
    """Plot the other samplers for each R, against passes."""
    width = max(len(kind[4]) for kind in kinds)
    with figure(path, dpi=200, figsize=(1.7 * width, 2.7 * len(kinds))) as page:
        axes = page.subplots(len(kinds), width, squeeze=False, sharey="row")
        for row, kind in zip(axes, kinds, strict=True):
            for axis, name in zip(row, kind[4], strict=False):
                curves(axis, kind, name, "pass equivalents", num_substeps)
                axis.set_title(name)
                axis.set_xlabel("passes")
                if axis is not row[0]:
                    axis.set_ylabel("")
            for axis in row[len(kind[4]) :]:
                axis.remove()
        add_steps_legend(page)


def add_steps_legend(page: Any) -> None:
    add_legend(page, ncols=9, fontsize=None, loc="outside lower center", title="numbers: steps")
