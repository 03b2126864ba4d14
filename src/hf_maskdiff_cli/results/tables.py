"""Tables of results in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from .combining import combined
from .numbers import measured
from .schema import Measure, Record, Results


def _plain(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


@dataclass(frozen=True)
class _Field:
    """A column that every record has, whatever was measured."""

    title: str
    written: Callable[[Record], str]


FIELDS: Mapping[str, _Field] = {
    "steps": _Field("steps", lambda record: str(record.steps or "")),
    "num_substeps": _Field("R", lambda record: str(record.num_substeps) if record.steps else ""),
    "model": _Field("model", lambda record: record.model or ""),
    "data": _Field("data", lambda record: record.data or ""),
    "passes": _Field("passes", lambda record: _plain(record.passes)),
    "partial_passes": _Field("partial passes", lambda record: _plain(record.partial_passes)),
    "seconds": _Field("seconds", lambda record: _plain(record.seconds)),
    "num_samples": _Field("samples", lambda record: str(record.num_samples or "")),
    "seeds": _Field("seeds", lambda record: ", ".join(map(str, record.seeds))),
}
LABELS = ("steps", "num_substeps", "model", "data", "num_samples", "seeds")  # what tells the rows of a sampler apart
# What may stand across a table, and what its heading says; the first numbers of a table stand first.
ACROSS: Mapping[str, Callable[[Record], tuple[float, str]]] = {
    "steps": lambda record: (record.steps, f"{record.steps} steps"),
    "num_substeps": lambda record: (
        record.num_substeps,
        f"R = {record.num_substeps}" if record.num_substeps > 1 else "",
    ),
}


@dataclass(frozen=True)
class Layout:
    """What a table shows.

    Args:
        columns: measures, and names of `FIELDS`; of these, those that tell rows apart stand first, and once.
        across: names of `ACROSS`; a row has the other columns once for each of their values.
        samplers: patterns of the names of samplers, in the order of the rows; empty for all, in the file's.
        steps: which numbers of steps, beside references; empty for all.
        num_substeps: which numbers of groups; empty for all.
        title: what the column of the samplers is called.
    """

    columns: Sequence[str]
    across: Sequence[str] = ()
    samplers: Sequence[str] = ()
    steps: Sequence[int] = ()
    num_substeps: Sequence[int] = ()
    title: str = "sampler"

    def shows(self, record: Record) -> bool:
        """Whether a record is of the table."""
        is_named = not self.samplers or any(fnmatchcase(record.sampler, one) for one in self.samplers)
        is_counted = not record.steps or not self.steps or record.steps in self.steps
        return is_named and is_counted and (not self.num_substeps or record.num_substeps in self.num_substeps)


def table(results: Sequence[Results], layout: Layout) -> str:
    """The table of one file, or of several that have the same measures.

    Raises:
        ValueError: the layout names what the files do not have.
    """
    measures: dict[str, Measure] = {name: one for file in results for name, one in file.measures.items()}
    _require_known(layout, measures, results)
    rows: dict[tuple[Any, ...], dict[Any, Record]] = {}
    headings: dict[Any, str] = {}
    for file in results:
        for record in combined(file.records):
            if not layout.shows(record):
                continue
            place, heading = _place(record, layout.across)
            key = (file.title(record.sampler), record.sampler, *_rest(record, layout.across))
            if place in rows.setdefault(key, {}):
                raise ValueError(
                    f"a place of a table must hold one record, got two of {record.sampler!r} with {record.steps} "
                    "steps. Pass each file once, and give samplers of different files different names."
                )
            rows[key][place] = record
            if record.steps:
                headings[place] = heading
    places = sorted(headings) or [_REFERENCE]
    rows = _references_first(rows, places[0])
    return _written(_in_order(rows, layout), places, headings, layout, measures)


_REFERENCE: tuple[float, ...] = ()  # the place of real data, which has no steps: that of the first heading


def _require_known(layout: Layout, measures: Mapping[str, Measure], results: Sequence[Results]) -> None:
    for rule, given, known in (("columns", layout.columns, {*measures, *FIELDS}), ("across", layout.across, {*ACROSS})):
        unknown = sorted(set(given) - known)
        if unknown:
            raise ValueError(f"`{rule}` must be of {', '.join(sorted(known))}, got {unknown}. Check the spelling.")
    names = [name for file in results for name in file.samplers]
    for pattern in layout.samplers:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"`samplers` must be of {', '.join(names)}, got {pattern!r}. Check the spelling.")


def _place(record: Record, across: Sequence[str]) -> tuple[tuple[float, ...], str]:
    if not record.steps:
        return _REFERENCE, ""
    found = [ACROSS[name](record) for name in across]
    return tuple(number for number, _ in found), ", ".join(words for _, words in found if words)


def _rest(record: Record, across: Sequence[str]) -> tuple[Any, ...]:
    """What tells the rows of a sampler apart: steps and groups, where they are not across."""
    own = {"steps": record.steps, "num_substeps": record.num_substeps}
    return (*(value for name, value in own.items() if name not in across), record.model, record.data)


def _references_first(rows: Mapping[tuple[Any, ...], dict[Any, Record]], first: Any) -> dict[Any, dict[Any, Record]]:
    def moved(row: Mapping[Any, Record]) -> dict[Any, Record]:
        return {first if place == _REFERENCE else place: one for place, one in row.items()}

    return {key: moved(row) for key, row in rows.items()}


def _in_order(rows: Mapping[tuple[Any, ...], dict[Any, Record]], layout: Layout) -> list[tuple[str, dict[Any, Record]]]:
    def rank(row: Mapping[Any, Record]) -> int:
        name = next(iter(row.values())).sampler
        return next((i for i, one in enumerate(layout.samplers) if fnmatchcase(name, one)), 0)

    return [(key[0], row) for key, row in sorted(rows.items(), key=lambda item: rank(item[1]))]


def _written(
    rows: Sequence[tuple[str, Mapping[Any, Record]]],
    places: Sequence[Any],
    headings: Mapping[Any, str],
    layout: Layout,
    measures: Mapping[str, Measure],
) -> str:
    columns = [  # those that a place has nothing of are left out
        (place, name)
        for place in places
        for name in layout.columns
        if name not in LABELS and any(_cell(row.get(place), name, measures) for _, row in rows)
    ]
    shown = [record for _, row in rows for record in row.values()]
    labels = [
        name for name in LABELS if name not in layout.across and (name in layout.columns or _differs(name, shown))
    ]
    first = dict(reversed(columns))
    titles = [
        f"{headings[place]}: {_title(name, measures)}"
        if headings.get(place) and first[place] == name
        else _title(name, measures)
        for place, name in columns
    ]
    lines = [
        (
            title,
            *(FIELDS[name].written(next(iter(row.values()))) for name in labels),
            *(_cell(row.get(place), name, measures) for place, name in columns),
        )
        for title, row in rows
    ]
    return markdown([layout.title, *(FIELDS[name].title for name in labels), *titles], lines)


def _differs(name: str, records: Sequence[Record]) -> bool:
    """Whether rows would look the same without this label."""
    values = {FIELDS[name].written(record) for record in records if record.steps}
    return name in ("steps", "num_substeps", "model", "data") and len(values) > 1


def _title(name: str, measures: Mapping[str, Measure]) -> str:
    if name in measures:
        found = measures[name]
        return (found.title or name) + (", %" if found.percent else "")
    return FIELDS[name].title


def _cell(record: Record | None, name: str, measures: Mapping[str, Measure]) -> str:
    if record is None:
        return ""
    return measured(record.measures.get(name), measures[name]) if name in measures else FIELDS[name].written(record)


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is of words and whose other ones are of numbers."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
