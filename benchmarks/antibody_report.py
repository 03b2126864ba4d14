"""Tables and picture of `antibodies.py`: measures of each cell, and samplers compared two by two."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from antibody_measures import Value, apart, distance, is_mixed, nearest_germline
from cells import Cells, Row, Summary
from equal_passes_report import LABELS, LOOKS, Measures, beyond_curve, curve_of, is_of_curve
from looks import BLACK
from plots import figure
from samplers import parts
from tables import print_table, with_error
from torch import Tensor

from hf_maskdiff.evaluation.text_metrics import sentence_entropy

Designs = dict[tuple[str, int], dict[int, dict[str, Any]]]  # by sampler and steps, then by seed
SHOWN = Measures("nats", "apart", (3, 3))
# Each is compared with the other in nats and in law; a number is a choice temperature.
CONTRASTS = [
    *((f"maskgit {alpha}", f"moment {alpha}") for alpha in (16, 6, 3, 1)),
    *((f"uniform {alpha}", "uniform") for alpha in (16, 6, 3, 1)),
    *((f"moment {alpha}", f"uniform {alpha}") for alpha in (16, 6, 3, 1)),
    ("moment-apart-3 6", "moment 6"),
    ("halton", "uniform"),
    ("halton 6", "uniform 6"),
    ("hybrid 6", "moment 6"),
    ("hybrid 6", "halton 6"),
    *((f"{name}, {number} groups", name) for name in ("uniform", "moment 6", "halton 6") for number in (2, 4)),
    ("extrapolating", "uniform"),
    ("trapezoidal", "ancestral"),
    ("remdm-rescale", "ancestral"),
    ("remdm-moment 6", "moment 6"),
    ("freecorrection 6", "moment 6"),
    ("p2-moment 6", "moment 6"),
]


def by_pair(cells: Cells) -> Designs:
    found: Designs = {}
    for cell in cells:
        found.setdefault((cell["sampler"], cell["steps"]), {})[cell["seed"]] = cell
    return found


@cache
def encoded(designs: tuple[str, ...]) -> Tensor:
    """Residues as numbers, `(num_designs, length)`."""
    return torch.tensor([[ord(letter) for letter in design] for design in designs])


def residues(cells: dict[int, dict[str, Any]], seeds: Sequence[int]) -> Tensor:
    return encoded(tuple(design for seed in seeds for design in cells[seed]["designs"]))


def mean_of(values: Sequence[float] | Tensor) -> Value:
    """Mean and standard error over designs."""
    numbers = torch.as_tensor(values, dtype=torch.float64)
    return float(numbers.mean()), float(numbers.std()) / math.sqrt(len(numbers))


def nats_of(cells: dict[int, dict[str, Any]], seeds: Sequence[int]) -> Tensor:
    return torch.tensor([value for seed in seeds for value in cells[seed]["nats"]], dtype=torch.float64)


def summary_of(cells: Cells, design: str, length: int) -> Summary:
    """Every measure with its standard error; those that need the reference only if its cells are there."""
    found = by_pair(cells)
    reference = found.get(("uniform", length))
    theirs = residues(reference, sorted(reference)) if reference else None
    summary: Summary = {}
    for key, own in found.items():
        seeds = sorted(own)
        drawn = residues(own, seeds)
        row: Row = {"nats": mean_of(nats_of(own, seeds)), "apart": apart(drawn)}
        if design != "chain":  # of whole chains no two are equal
            row["distinct"] = (len(drawn.unique(dim=0)) / len(drawn), math.nan)
        row["entropy"] = mean_of(sentence_entropy(list(drawn)))
        row["number"] = (len(drawn), math.nan)
        row["seconds"] = (fmean(own[seed]["seconds"] for seed in seeds), math.nan)
        if theirs is not None and key != ("uniform", length):
            row["places"], row["pairs"] = distance(drawn, theirs, size=1), distance(drawn, theirs)
        if design == "chain":
            chains = [chain for seed in seeds for chain in own[seed]["designs"]]
            nearest = [nearest_germline(chain) for chain in chains]
            row["framework"] = mean_of([share for _, share in nearest])
            row["heavy"] = mean_of([float(gene.startswith("IGH")) for gene, _ in nearest])
            row["mixed"] = mean_of([float(is_mixed(chain)) for chain in chains])
        summary[key] = row
    plain = _plain(summary)
    for (sampler, steps), row in summary.items():
        beyond = None if is_of_curve(sampler) else beyond_curve(row, SHOWN, curve_of(plain, SHOWN, steps))
        if beyond:
            row["beyond"] = beyond
    return summary


def contrasts(cells: Cells) -> Iterator[tuple[str, str, int, Value, Value]]:
    """For each pair of samplers and number of steps: the difference in nats, paired, and the distance of their laws.

    R groups to a step are also compared with as many plain steps more as their R - 1 partial passes cost.
    """
    found = by_pair(cells)
    for first, second in CONTRASTS:
        for steps in sorted({steps for name, steps in found if name == first}):
            num_substeps = parts(first)[1]
            pairs = [(second, second, steps)]
            if num_substeps > 1:
                more = steps + num_substeps - 1
                pairs.append((f"{second}, {more} steps", second, more))
            for title, name, number in pairs:
                own, other = found[first, steps], found.get((name, number), {})
                seeds = sorted(own.keys() & other.keys())
                if seeds:
                    nats = mean_of(nats_of(own, seeds) - nats_of(other, seeds))
                    yield first, title, steps, nats, distance(residues(own, seeds), residues(other, seeds))


# --- tables -----------------------------------------------------------------------------------------------------------

# Digits of each measure that is shown, if any row has it.
COLUMNS = {
    **{"nats": 3, "apart": 3, "entropy": 3, "distinct": 2, "places": 3, "pairs": 3},
    **{"framework": 3, "heavy": 2, "mixed": 2, "beyond": 3},
}


def print_report(cells: Cells, design: str, length: int) -> Summary:
    """Prints both tables, and returns what the first is made of."""
    summary = summary_of(cells, design, length)
    columns = [name for name in COLUMNS if any(name in row for row in summary.values())]
    rows = []
    for (sampler, steps), row in sorted(summary.items(), key=lambda item: item[0][1]):
        values = [with_error(row[name], COLUMNS[name]) if name in row else "" for name in columns]
        rows.append((sampler, steps, int(row["number"][0]), *values))
    print_table(["sampler", "steps", "designs", *columns], rows)
    print("\ncompared two by two: difference in nats, and the squared distance of the laws of two places\n")
    compared = [
        (first, second, steps, with_error(nats, 3), with_error(law, 3))
        for first, second, steps, nats, law in contrasts(cells)
    ]
    print_table(["sampler", "less", "steps", "nats", "pairs"], compared, left=(0, 1))
    return summary


def _plain(summary: Summary) -> Summary:
    """Without partial caching, whose steps take more than a pass."""
    return {key: row for key, row in summary.items() if "groups" not in key[0]}


# --- picture ----------------------------------------------------------------------------------------------------------


def plot(summary: Summary, length: int, path: Path, title: str = "Antibodies at equal passes") -> None:
    """Nats against diversity for up to four numbers of steps, those with the most samplers."""
    counts: dict[int, int] = {}
    for _, steps in _plain(summary):
        if steps != length:
            counts[steps] = counts.get(steps, 0) + 1
    panels = sorted(sorted(counts, key=lambda steps: -counts[steps])[:4])
    num_rows = -(-len(panels) // 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with figure(path, title=title, figsize=(11, 1.8 + 4 * num_rows)) as page:
        grid = page.subplots(num_rows, min(len(panels), 2), squeeze=False, sharex=True, sharey=True)
        axes = list(grid.flat)
        for axis, steps in zip(axes, panels, strict=False):
            draw_panel(axis, summary, steps, length)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        for row in grid:
            row[0].set_ylabel("nats a residue")
        legends = (axis.get_legend_handles_labels() for axis in axes)
        handles = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
        page.legend(handles.values(), handles, fontsize=10, loc="outside lower center", ncols=4, frameon=False)


def draw_panel(axis: Any, summary: Summary, steps: int, length: int) -> None:
    own = {name: row for (name, number), row in _plain(summary).items() if number == steps}
    curve = curve_of(_plain(summary), SHOWN, steps)
    line = {"color": BLACK, "marker": ".", "linewidth": 2, "label": "uniform, any temperature"}
    axis.plot([x for (x, _), _ in curve], [y for _, (y, _) in curve], **line)
    for name, row in own.items():
        look = LOOKS.get(name.split(" ")[0])
        if look:
            colour, marker, label = look
            style = {"color": colour, "marker": marker, "markersize": 8, "linestyle": "", "label": label}
            (x, across), (y, along) = row["apart"], row["nats"]
            style |= {"markerfacecolor": colour if " " in name else "white", "elinewidth": 1, "zorder": 3}
            axis.errorbar(x, y, along, across, **style)
    if ("uniform", length) in summary:
        row = summary["uniform", length]
        style = {"color": BLACK, "marker": "*", "markersize": 13, "linestyle": "", "label": "one residue a pass"}
        axis.plot(row["apart"][0], row["nats"][0], zorder=4, **style)
    axis.set(xlabel=LABELS["apart"].replace("chains", "designs"), title=f"{steps} passes")
