"""A report of files of results, in one page of Markdown: where they come from, their tables, and them side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .comparing import common
from .schema import Measure, Record, Results
from .tables import FIELDS, LABELS, Layout, table


def names_of(paths: Sequence[Path]) -> list[str]:
    """A name for each file, which no other has: as many of its last folders as it takes."""
    files = [path.resolve() for path in paths]
    twice = next((str(path) for path, file in zip(paths, files, strict=True) if files.count(file) > 1), None)
    if twice is not None:
        raise ValueError(f"a file of results counts once, got {twice!r} more than once. Pass each file once.")
    short = [file.with_suffix("") for file in files]
    parts = [file.parts for file in (short if len(set(short)) == len(short) else files)]
    lengths = range(1, max(map(len, parts)) + 1)
    every = (["/".join(own[-length:]) for own in parts] for length in lengths)
    return next(names for names in every if len(set(names)) == len(names))


def page(results: Mapping[str, Results], picture: str = "") -> str:
    """The report.

    Args:
        results: files by their names.
        picture: address of a picture of them; empty for none.
    """
    parts = ["# Results"]
    for name, file in results.items():
        parts += [f"## {name}", _origin(file), _table(file)]
        meanings = [_meaning(one, measure) for one, measure in file.measures.items() if _meaning(one, measure)]
        parts += ["\n".join(meanings)] if meanings else []
    found = common(results)
    if found:
        parts.append("## Side by side")
        parts.append(
            "Rows that several files have, by the sampler's name, steps and groups. A difference's error is that of "
            "two independent runs; without an error it is unknown. Look at models, data and numbers of samples above "
            "first: values of different ones do not compare."
        )
        parts += [f"**{name}**\n\n{rows}" for name, rows in found.items()]
    elif len(results) > 1:
        parts += ["## Side by side", "The files have no row in common, by the sampler's name, steps and groups."]
    if picture:
        parts.append(f"![Every measure against model passes]({picture})")
    return "\n\n".join(parts) + "\n"


def _origin(file: Results) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in file.versions.items())
    told = {
        "command": f"`{file.command}`",
        "model": file.model,
        "data": file.data,
        "machine": file.machine,
        "versions": versions,
        "notes": file.about,
    }
    return "\n".join(f"- {name}: {value}" for name, value in told.items() if value)


def _table(file: Results) -> str:
    """All records, with the columns that any of them has."""
    columns = [name for name in (*LABELS, *file.measures, "passes", "partial_passes", "seconds") if _shows(file, name)]
    return table([file], Layout(columns))


def _shows(file: Results, name: str) -> bool:
    if name in file.measures:
        return True
    if name == "num_substeps":
        return any(record.num_substeps > 1 for record in file.records)
    return any(_written(record, name) for record in file.records)


def _written(record: Record, name: str) -> str:
    return FIELDS[name].written(record)


def _meaning(name: str, measure: Measure) -> str:
    better = f" {measure.better} is better" if measure.better else ""
    words = ";".join(part for part in (f" {measure.meaning}" if measure.meaning else "", better) if part)
    return f"- {measure.title or name}:{words}" if words else ""
