"""Tables and picture of `samplers_at_equal_passes.py`: quality beside diversity, and what no temperature would give."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from cells import Cells, Row, Summary, differences, summarise
from looks import BLACK, BLUE, BROWN, GREEN, GREY, ORANGE, PURPLE, VERMILLION
from measures import measure_of
from plots import figure, set_ticks
from tables import print_table, with_error

from hf_maskdiff_cli import results

Value = tuple[float, float]  # mean and standard error


@dataclass(frozen=True)
class Measures:
    """What is shown of a bed: two measures, how many digits of each, and the numbers of passes of the picture.

    Args:
        curve: whether a sampler can be compared with the uniform order at other temperatures.
        log: whether the picture's axis of the quality is logarithmic.
    """

    quality: str
    diversity: str
    digits: tuple[int, int]
    passes: int = 8
    curve: bool = True
    log: bool = False


SHOWN: Mapping[str, Measures] = {
    "antibodies": Measures("nats", "apart", (3, 3)),
    "antibodies, float32": Measures("nats", "apart", (3, 3), curve=False),
    "digits": Measures("frechet", "within-class variance", (2, 2), passes=16, log=True),
    "letters": Measures("frechet", "within-class variance", (2, 2), log=True),
    "words": Measures("frechet", "within-class variance", (1, 2), log=True),
    "text": Measures("nats", "entropy", (3, 3)),
    "long text": Measures("nats", "entropy", (3, 3)),
    "chain": Measures("pairs", "nats", (4, 3), curve=False, log=True),
}


def summary_of(bed: str, found: Mapping[str, Any]) -> Summary:
    """Means and errors, over seeds; of a bed whose cells have the variance of their samples, over all samples."""
    cells: Cells = found["cells"]
    summary = summarise([{key: value for key, value in cell.items() if key != "variance"} for cell in cells])
    for (sampler, steps), row in summary.items():
        variances = [
            cell["variance"]
            for cell in cells
            if (cell["sampler"], cell["steps"]) == (sampler, steps) and "variance" in cell
        ]
        if variances:
            error = math.sqrt(sum(variances) / len(variances) / (len(variances) * found["settings"]["number"]))
            row["nats"] = row["nats"][0], error
    return summary


# --- what lies below the curve ----------------------------------------------------------------------------------------


def is_of_curve(sampler: str) -> bool:
    """Whether it is the uniform order, at any choice temperature."""
    return sampler.split(" ")[0] == "uniform"


def curve_of(summary: Summary, shown: Measures, steps: int) -> list[tuple[Value, Value]]:
    """The uniform order at each of its temperatures: diversity, and quality, by rising diversity."""
    rows = [row for (name, number), row in summary.items() if number == steps and is_of_curve(name)]
    return sorted((row[shown.diversity], row[shown.quality]) for row in rows)


def beyond_curve(row: Row, shown: Measures, curve: Sequence[tuple[Value, Value]]) -> Value | None:
    """Quality minus that of the uniform order at the temperature with as much diversity.

    What is more diverse than all of the curve is compared with its end, which is at the model's own temperature; None
    for what is less diverse than all of it. The error holds those of both diversities, times the slope of the curve.
    """
    if not curve:
        return None
    (value, error), (own, own_error) = row[shown.quality], row[shown.diversity]
    at = min(own, curve[-1][0][0])
    for ((low, low_error), (first, first_error)), ((high, high_error), (last, last_error)) in pairwise(curve):
        if low <= at <= high and low < high:
            share, slope = (at - low) / (high - low), (last - first) / (high - low)
            there = (1 - share) * first + share * last
            across = math.hypot(own_error, (1 - share) * low_error, share * high_error)
            return value - there, math.hypot(error, (1 - share) * first_error, share * last_error, slope * across)
    return None


# --- tables -----------------------------------------------------------------------------------------------------------


def rows_of(found: Mapping[str, Any]) -> Iterator[results.Record]:
    """A row for each bed, sampler and number of passes, rounded as the tables are."""
    for bed, own in found.items():
        shown = SHOWN[bed]
        for (sampler, steps), row in summary_of(bed, own).items():
            measures = {
                name: rounded(row[name], digits)
                for name, digits in zip((shown.quality, shown.diversity), shown.digits, strict=True)
            }
            yield results.Record(sampler, steps, measures, model=bed)


def rounded(value: Value, digits: int) -> results.Value:
    return results.Value(round(value[0], digits), None if math.isnan(value[1]) else round(value[1], digits))


def write_summary(found: Mapping[str, Any], path: Path) -> None:
    """The rows of all beds as one file of results, in which a bed is a model."""
    rows = list(rows_of(found))
    samplers = dict.fromkeys(row.sampler for row in rows)
    summary = results.Results(
        command="python benchmarks/samplers_at_equal_passes.py",
        measures={name: measure_of(name) for row in rows for name in row.measures},
        samplers={name: results.Sampler() for name in samplers},
        records=rows,
        about="means over seeds of the files of the beds; a model is a bed",
    )
    results.write_results(summary, path)


def print_tables(beds: Mapping[str, Any]) -> None:
    for bed, found in beds.items():
        shown, summary = SHOWN[bed], summary_of(bed, found)
        steps = sorted({number for _, number in summary})
        names = list(dict.fromkeys(name for name, _ in summary))
        heading = f"{shown.quality}, {shown.diversity}"
        print(f"\n{bed}: {heading}\n")
        print_table(["sampler", *map(str, steps)], [(name, *two_of(summary, shown, name, steps)) for name in names])
        print(f"\nstandard errors: {largest_errors(summary, shown)}")
        if shown.curve:
            print(f"\n{bed}: {shown.quality} beyond the uniform order's at as much {shown.diversity}\n")
            rows = [(name, *beyond(summary, shown, name, steps)) for name in names if not is_of_curve(name)]
            print_table(["sampler", *map(str, steps)], [row for row in rows if any(row[1:])])
        print_paired(bed, found["cells"], shown, [number for number in steps if number])


# Samplers of second order, and those that take much back: what each of them is otherwise.
PLAIN_ONE = {
    "trapezoidal": "ancestral",
    "extrapolating": "uniform",
    "extrapolating-halton": "halton",
    "remdm-strong": "ancestral",
    "remdm-loop": "ancestral",
    "remdm-dfm": "ancestral",
}


def print_paired(bed: str, cells: Cells, shown: Measures, steps: Sequence[int]) -> None:
    """Differences of the quality from the sampler without the change, seed by seed."""
    summary = summarise(differences(cells, PLAIN_ONE))
    rows = [
        (
            f"{name} minus {plain}",
            *(
                with_error(summary[name, n][shown.quality], shown.digits[0]) if (name, n) in summary else ""
                for n in steps
            ),
        )
        for name, plain in PLAIN_ONE.items()
    ]
    if rows := [row for row in rows if any(row[1:])]:
        print(f"\n{bed}: {shown.quality}, paired by seed\n")
        print_table(["samplers", *map(str, steps)], rows)


def two_of(summary: Summary, shown: Measures, name: str, steps: Sequence[int]) -> list[str]:
    rows = [summary.get((name, number)) for number in steps]
    first, second = shown.digits
    return [f"{row[shown.quality][0]:.{first}f}, {row[shown.diversity][0]:.{second}f}" if row else "" for row in rows]


def beyond(summary: Summary, shown: Measures, name: str, steps: Sequence[int]) -> Iterator[str]:
    for number in steps:
        row = summary.get((name, number))
        found = beyond_curve(row, shown, curve_of(summary, shown, number)) if row else None
        yield with_error(found, shown.digits[0]) if found else ""


def largest_errors(summary: Summary, shown: Measures) -> str:
    parts = []
    for name, digits in zip((shown.quality, shown.diversity), shown.digits, strict=True):
        errors = [row[name][1] for row in summary.values() if not math.isnan(row[name][1])]
        parts.append(f"{name} at most {max(errors):.{digits}f}" if errors else f"{name} of one seed")
    return ", ".join(parts)


# --- picture ----------------------------------------------------------------------------------------------------------

# Sampler's first word -> colour, marker and name; a sampler with a temperature is filled.
LOOKS = {
    "halton": (GREEN, "o", "Halton"),
    "extrapolating-halton": (GREEN, "D", "extrapolating, Halton"),
    "moment": (BLUE, "o", "moment"),
    "moment-apart-2": (BLUE, "s", "moment, apart"),
    "moment-apart-3": (BLUE, "s", "moment, apart"),
    "hybrid": (BLUE, "^", "hybrid"),
    "maskgit": (VERMILLION, "o", "MaskGIT"),
    "ancestral": (GREY, "o", "ancestral"),
    "trapezoidal": (ORANGE, "o", "trapezoidal"),
    "extrapolating": (ORANGE, "D", "extrapolating"),
    "confidence": (BROWN, "o", "confidence"),
    "remdm-rescale": (PURPLE, "o", "ReMDM, rescale"),
    "remdm-strong": (PURPLE, "s", "ReMDM, rescale, eta 0.3"),
    "remdm-moment": (PURPLE, "P", "ReMDM, moment"),
    "remdm-dfm": (PURPLE, "D", "ReMDM, flow's corrector"),
    "remdm-loop": (PURPLE, "v", "ReMDM, loop"),
    "p2-standing": (VERMILLION, "P", "P2, standing"),
    "p2-redrawn": (VERMILLION, "X", "P2, redrawn"),
    "p2-moment": (BLUE, "P", "P2, moment"),
    "freecorrection": (BLUE, "X", "FreeCorrection"),
    "freecorrection-uniform": (GREY, "X", "FreeCorrection, uniform"),
    "editing-mask": (BROWN, "v", "editing, to masks"),
}
PANELS = ("antibodies", "digits", "letters", "text", "long text", "chain")
LABELS = {
    "nats": "nats, lower is better",
    "pairs": "KL of adjacent pairs, nats",
    "frechet": "Frechet distance, lower is better",
    "apart": "share of places at which two chains differ",
    "within-class variance": "variance within a class, relative to real",
    "entropy": "entropy of a text, nats",
}


def plot(beds: Mapping[str, Summary], path: Path, title: str = "Quality and diversity at equal passes") -> None:
    """A panel for each bed: the uniform order's curve over temperatures, and each sampler as a point."""
    names = [bed for bed in PANELS if bed in beds]
    if not names:
        return
    with figure(path, title=title, figsize=(11, 2.2 + 3.4 * ((len(names) + 1) // 2))) as page:
        panels = list(page.subplots((len(names) + 1) // 2, 2, squeeze=False).flat)
        for axis, bed in zip(panels, names, strict=False):
            draw_panel(axis, beds[bed], bed)
        for axis in panels[len(names) :]:
            axis.set_visible(False)
        legends = (axis.get_legend_handles_labels() for axis in page.axes)
        handles = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
        page.legend(handles.values(), handles, fontsize=10, loc="outside lower center", ncols=4, frameon=False)


def draw_panel(axis: Any, summary: Summary, bed: str) -> None:
    shown = SHOWN[bed]
    steps = shown.passes
    curve = curve_of(summary, shown, steps)
    line = {"color": BLACK, "marker": ".", "linewidth": 2, "label": "uniform, any temperature"}
    axis.plot([x for (x, _), _ in curve], [y for _, (y, _) in curve], **line)
    for (name, number), row in summary.items():
        look = LOOKS.get(name.split(" ")[0].removesuffix(","))
        point = (row[shown.diversity][0], row[shown.quality][0])
        if number == 0 or name == "one a pass":
            axis.plot(
                *point, color=BLACK, marker="*", markersize=13, linestyle="", zorder=4, label="data, or one a pass"
            )
        elif number == steps and look and "top-p" not in name:
            colour, marker, label = look
            style = {"color": colour, "marker": marker, "markersize": 8, "linestyle": "", "label": label}
            axis.plot(*point, markerfacecolor=colour if " " in name else "white", zorder=3, **style)
    across = "nats a token; data have those of the star" if shown.diversity == "nats" else LABELS[shown.diversity]
    axis.set(xlabel=across, ylabel=LABELS[shown.quality], title=f"{bed}, {steps} passes")
    if shown.log:
        axis.set_yscale("log")
        set_ticks(axis.yaxis, (0.03, 0.05, 0.1, 0.2, 0.5, 1, 5, 7, 10, 15, 20, 30, 40, 60))
