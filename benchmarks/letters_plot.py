"""Letters: distance against passes, each order at its best choice temperature; `pictures.py` draws it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cells import Row, Summary
from looks import BLACK, BLUE, GREEN, ORANGE, PLAIN_LINE, PURPLE, VERMILLION
from plots import End, draw_curve, draw_references, figure, label_ends, set_ticks
from samplers import guidance_of, parts

Points = list[tuple[float, float, float]]  # passes, distance and its error


def order_of(sampler: str) -> str:
    """ "halton 1, 2 groups" is of the order "halton, 2 groups": its temperature is left out."""
    name, groups = parts(sampler)
    order, alpha, _ = guidance_of(name)[0].partition(" ")
    return order + (", tempered" if alpha else "") + (f", {groups} groups" if groups > 1 else "")


def passes_of(sampler: str, steps: int) -> float:
    """Passes over a whole image; R groups add R - 1 in all, as partial passes compute a step's positions alone."""
    name, groups = parts(sampler)
    return (steps + groups - 1) * (1 if guidance_of(name)[1] == 1 else 2)


def best_points(summary: Summary, wanted: Callable[[str], bool]) -> Points:
    """At each number of steps the least distance of the samplers that are wanted."""
    rows: dict[int, list[tuple[tuple[float, float], str]]] = {}
    for (name, steps), row in summary.items():
        if steps and wanted(name):
            rows.setdefault(steps, []).append((row["frechet"], name))
    return [(passes_of(min(found)[1], steps), *min(found)[0]) for steps, found in rows.items()]


def plot(summary: Summary, path: Path, title: str) -> None:
    """Draw the orders, one also in groups up to 8 steps, one also guided, and what data reach.

    Args:
        summary: of all cells of the letters, without and with groups and guidance.
    """

    def of(order: str) -> Callable[[str], bool]:
        return lambda name: order_of(name) == order and guidance_of(parts(name)[0])[1] == 1

    lines: list[tuple[str, Callable[[str], bool], dict[str, Any]]] = [
        ("uniform, untempered", of("uniform"), {"color": BLACK, "linestyle": PLAIN_LINE}),
        ("uniform", of("uniform, tempered"), {"color": BLACK}),
        ("MaskGIT", of("maskgit, tempered"), {"color": VERMILLION}),
        ("moment", of("moment, tempered"), {"color": BLUE}),
        ("Halton", of("halton, tempered"), {"color": GREEN}),
        ("Halton, two groups", of("halton, tempered, 2 groups"), {"color": GREEN, "linestyle": (0, (5, 2))}),
        ("path planning", of("p2-moment, tempered"), {"color": ORANGE}),
        ("moment, guidance 2", lambda name: name == "moment 6, guidance 2", {"color": PURPLE}),
    ]
    with figure(path, title=title, figsize=(9, 5.2)) as page:
        axis, ends = page.subplots(), []
        for label, wanted, style in lines:
            points = sorted(point for point in best_points(summary, wanted) if "groups" not in label or point[0] < 16)
            draw_curve(axis, points, label, **style)
            ends.append(End(label, *points[-1][:2], style["color"]))
        axis.set(xscale="log", yscale="log", xlabel="passes over a whole image", ylabel="Frechet distance")
        references: dict[tuple[str, int], Row] = {key: row for key, row in summary.items() if not key[1]}
        ends += draw_references(axis, references, "frechet")
        set_ticks(axis.xaxis, (4, 5, 8, 9, 16, 32))
        set_ticks(axis.yaxis, (20, 30, 50, 100, 200, 300))
        label_ends(page, {axis: ends})
