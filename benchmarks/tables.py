"""Prints results as Markdown tables, and writes them as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cells import Cells, Row, summarise


def print_table(headings: Sequence[str], rows: Iterable[Iterable[Any]], left: Collection[int] = (0,)) -> None:
    """Prints a table whose columns are aligned to the right, except those whose numbers are in `left`."""
    lines = ["---" if column in left else "---:" for column in range(len(headings))]
    for row in (headings, lines, *rows):
        print(f"| {' | '.join(map(str, row))} |")


def print_cells(cells: Cells, columns: Mapping[str, Callable[[Row], str]], most: str = "steps") -> None:
    """Prints a row per sampler and number of steps, with means over seeds."""
    rows = [
        (name, steps or "", *(column(row) for column in columns.values()))
        for (name, steps), row in summarise(cells).items()
    ]
    print_table(["sampler", most, *columns], rows)


def with_error(value: tuple[float, ...], digits: int = 2) -> str:
    """Mean and standard error; an unknown error, NaN, is left out."""
    mean, error = value
    return f"{mean:.{digits}f}" if math.isnan(error) else f"{mean:.{digits}f} +- {error:.{digits}f}"


def write_json(results: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1))
