"""The page that `gpu.py` writes from its numbers; it needs only these."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

HEADER = """# On a GPU

```bash
python benchmarks/gpu.py                             # under five minutes, no downloads, writes out/gpu
python benchmarks/gpu.py --report out/gpu/gpu.json   # makes this page of it
```

measures on one CUDA device what the other pages promise: laws, waits, times, memory and compilation. The header of
[benchmarks/gpu.py](../benchmarks/gpu.py) says what a machine without a network needs. The second command writes this
page, from `gpu.json`: it is not edited.
"""
NOT_RUN = """
**It has not been run on a GPU yet:** nothing in this repository has been measured on one.
"""


def page(results: dict[str, Any] | None) -> str:
    """The whole page, for a run or, with None, before any run."""
    if results is None:
        return HEADER + NOT_RUN
    machine = dict(results["machine"])
    card = machine.pop("card", "no section has begun")
    versions = ", ".join(f"{name} {found}" for name, found in machine.items())
    header = f"{results['date']}, {card}. {versions}."
    parts = [HEADER, f"\n{_filled(header)}\n"]
    if "since" in results:
        parts.append(f"\n{_filled(results['since'])}\n")
    if results["tiny"]:
        parts.append("\n**A try with tiny sizes: the numbers say nothing.**\n")
    for name, section in results["sections"].items():
        parts.append(f"\n## {section['title']}\n\n{_filled(section['reading'])}\n")
        when = f", on {section['date']}" if "date" in section else ""
        parts.append(f"\n`{name}`: {section['status']}, {section['seconds']:.0f} s{when}.\n")
        parts += [f"\n{part}\n" for part in _body(section["rows"])]
    return "".join(parts)


def _body(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """A table for each set of rows with the same columns, and a list of what failed."""
    tables: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if "error" not in row:
            tables.setdefault(tuple(column for column in row if column != "case"), []).append(row)
    for columns, same in tables.items():
        lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
        lines += [" | ".join(_cell(row[column]) for column in columns) for row in same]
        yield "\n".join(f"| {line} |" for line in lines)
    failed = [f"- {row['case']}: {_cell(row['error'])}" for row in rows if "error" in row]
    if failed:
        yield "\n".join(["Failed:", "", *failed])


def _filled(text: str) -> str:
    return textwrap.fill(text, 119, break_long_words=False, break_on_hyphens=False)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value).replace("|", "\\|").replace("](", "] (")  # which would make it a link
