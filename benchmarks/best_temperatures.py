"""Each order at its best choice temperature, and how far it is from the best order, paired by seed.

    python benchmarks/best_temperatures.py benchmarks/results/runs/samplers_at_equal_passes/letters.json

Reads a file of cells of `samplers_at_equal_passes.py`, and prints a table for each number of groups: orders by numbers
of steps, the best temperature in brackets ("plain" is the model's own), and behind it the difference from the column's
best. A temperature is chosen by the mean of the same seeds that are shown, so of many temperatures the best looks a
little too good. With `--tempered_only` the model's own temperature does not take part.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from arguments import new_parser
from cell_files import read_cells
from cells import Cells
from samplers import parts
from tables import print_table, with_error

from hf_maskdiff.evaluation.report import mean_and_error

BySeed = dict[int, float]
Column = dict[str, tuple[str, BySeed]]  # of each order: its best temperature, and the measure of each seed


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("file", type=Path, help="of cells, with a record for each seed")
    parser.add_argument("--measure", default="frechet", help="less is better")
    parser.add_argument("--orders", nargs="+", help="only these; default: all")
    parser.add_argument("--tempered_only", action="store_true", help="leave the model's own temperature out")
    parser.add_argument("--digits", type=int, default=1)
    return parser.parse_args(argv)


def order_of(sampler: str) -> tuple[str, str]:
    """ "moment 6" is the order "moment" at "6"; what has no temperature is "plain"."""
    order, _, alpha = sampler.partition(" ")
    return order, alpha or "plain"


def columns_of(cells: Cells, args: argparse.Namespace) -> dict[tuple[int, int], Column]:
    """By groups and steps, each order at the temperature whose mean over seeds is least."""
    found: dict[tuple[int, int], dict[str, dict[str, BySeed]]] = {}
    for cell in cells:
        name, groups = parts(cell["sampler"])
        order, alpha = order_of(name)
        wanted = (args.orders is None or order in args.orders) and "," not in name and cell["steps"]
        if wanted and not (args.tempered_only and alpha == "plain"):
            rows = found.setdefault((groups, cell["steps"]), {})
            rows.setdefault(order, {}).setdefault(alpha, {})[cell["seed"]] = cell[args.measure]
    return {key: {order: best(rows) for order, rows in orders.items()} for key, orders in found.items()}


def best(rows: Mapping[str, BySeed]) -> tuple[str, BySeed]:
    """The temperature with the least mean, among those that were measured with the most seeds."""
    most = max(map(len, rows.values()))
    return min(
        (item for item in rows.items() if len(item[1]) == most), key=lambda item: mean_and_error([*item[1].values()])[0]
    )


def shown(column: Column, order: str, digits: int) -> str:
    if order not in column:
        return ""
    alpha, values = column[order]
    _, (_, least) = min(column.items(), key=lambda item: mean_and_error([*item[1][1].values()])[0])
    own = f"{with_error(mean_and_error([*values.values()]), digits)} ({alpha})"
    shared = sorted(set(values) & set(least))
    if values is least or len(shared) < 2:
        return own
    return f"{own}; {with_error(mean_and_error([values[seed] - least[seed] for seed in shared]), digits)}"


def rows_of(columns: Mapping[int, Column], digits: int) -> Iterator[tuple[str, ...]]:
    for order in dict.fromkeys(order for column in columns.values() for order in column):
        yield order, *(shown(columns[steps], order, digits) for steps in sorted(columns))


def main(argv: Sequence[str] | None = None) -> dict[tuple[int, int], Column]:
    args = parse_args(argv)
    columns = columns_of(read_cells(args.file)["cells"], args)
    for groups in sorted({groups for groups, _ in columns}):
        own = {steps: column for (number, steps), column in columns.items() if number == groups}
        print(f"\n{args.measure}, {groups} groups to a step\n")
        print_table(["order", *(f"{steps} steps" for steps in sorted(own))], [*rows_of(own, args.digits)])
    return columns


if __name__ == "__main__":
    main()
