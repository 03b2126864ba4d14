"""Reads files of results. A wrong file is one error, which names the place, the rule and the value."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NoReturn

from .lm_eval import is_of_lm_eval, of_lm_eval
from .schema import BETTER, SCHEMA, Measure, Record, Results, Sampler, Value

_REMEDY = "Write the file again with the program that made it, or correct this place."


def read_results(path: str | Path) -> Results:
    """The results in a file, of this package or of lm-evaluation-harness.

    Raises:
        OSError: there is no such file.
        ValueError: it is no file of results.
    """
    if Path(path).is_dir():
        raise ValueError(f"results must be a file, got the folder {str(path)!r}. Pass the .json files that are in it.")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"results must be a JSON file, got {str(path)!r}: {error}. {_REMEDY}") from error
    if is_of_lm_eval(content):
        content = of_lm_eval(content)
    return results_of(content, str(path))


def results_of(content: Any, source: str = "the results") -> Results:
    """The same of what a JSON file holds.

    Args:
        source: what an error calls the file.
    """
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f'`schema` must be "{SCHEMA}", got {found!r} in {source!r}. Pass a file that `hf-maskdiff evaluate` or '
            "`tune`, a program of benchmarks/ or lm-evaluation-harness wrote."
        )
    place = _Place(source)
    results: Results = place.read(Results, {key: value for key, value in content.items() if key != "schema"})
    for number, record in enumerate(results.records):
        at = place / f"records[{number}]"
        if record.sampler not in results.samplers:
            (at / "sampler").fail(f"a key of `samplers`, {sorted(results.samplers)}", record.sampler)
        for name in record.measures:
            if name not in results.measures:
                (at / "measures").fail(f"of the keys of `measures`, {sorted(results.measures)}", name)
    return results


class _Place:
    """A place in a file: what is there is checked, or named in an error."""

    def __init__(self, source: str, name: str = "") -> None:
        self.source, self.name = source, name

    def __truediv__(self, key: str) -> _Place:
        return _Place(self.source, f"{self.name}.{key}" if self.name else key)

    def fail(self, rule: str, value: Any) -> NoReturn:
        raise ValueError(f"`{self.name or 'the file'}` must be {rule}, got {value!r} in {self.source!r}. {_REMEDY}")

    def require(self, holds: bool, rule: str, value: Any) -> Any:
        if not holds:
            self.fail(rule, value)
        return value

    def read(self, kind: type, value: Any) -> Any:
        """An object of one of the schema's classes."""
        self.require(isinstance(value, dict), "an object", value)
        known = {one.name: one for one in fields(kind)}
        unknown = sorted(set(value) - set(known))
        self.require(not unknown, f"an object with the keys {', '.join(known)}", unknown)
        needed = [name for name, one in known.items() if one.default is MISSING and one.default_factory is MISSING]
        missing = [name for name in needed if name not in value]
        self.require(not missing, f"an object that has {', '.join(needed)}", f"none of the name {', '.join(missing)}")
        return kind(**{name: _READERS[kind][name](self / name, one) for name, one in value.items()})


# --- what each key may hold -------------------------------------------------------------------------------------------

_Reader = Callable[[_Place, Any], Any]


def _text(place: _Place, value: Any) -> Any:
    return place.require(isinstance(value, str), "a text", value)


def _optional(read: _Reader) -> _Reader:
    return lambda place, value: None if value is None else read(place, value)


def _whole(least: int) -> _Reader:
    rule = f"an integer of at least {least}"
    return lambda place, value: place.require(
        isinstance(value, int) and not isinstance(value, bool) and value >= least, rule, value
    )


def _number(place: _Place, value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return place.require(is_number, "a finite number, or null", value)


def _not_negative(place: _Place, value: Any) -> Any:
    return place.require(_number(place, value) >= 0, "a number of at least 0", value)


def _true_or_false(place: _Place, value: Any) -> Any:
    return place.require(isinstance(value, bool), "true or false", value)


def _better(place: _Place, value: Any) -> Any:
    return place.require(value in BETTER, 'one of "less", "more" and ""', value)


def _object(place: _Place, value: Any) -> Any:
    return place.require(isinstance(value, dict), "an object", value)


def _several(read: _Reader) -> _Reader:
    def many(place: _Place, value: Any) -> Any:
        place.require(isinstance(value, list), "a list", value)
        return [read(_Place(place.source, f"{place.name}[{i}]"), one) for i, one in enumerate(value)]

    return many


def _by_name(read: _Reader) -> _Reader:
    return lambda place, value: {name: read(place / name, one) for name, one in _object(place, value).items()}


def _of(kind: type) -> _Reader:
    return lambda place, value: place.read(kind, value)


_READERS: Mapping[type, Mapping[str, _Reader]] = {
    Value: {"value": _optional(_number), "error": _optional(_not_negative)},
    Measure: {
        "title": _text,
        "meaning": _text,
        "digits": _optional(_whole(0)),
        "better": _better,
        "percent": _true_or_false,
    },
    Sampler: {"title": _text, "scheduler": _optional(_object), "made_with": _object},
    Record: {
        "sampler": _text,
        "steps": _whole(0),
        "measures": _by_name(_of(Value)),
        "num_substeps": _whole(1),
        "model": _optional(_text),
        "data": _optional(_text),
        "passes": _optional(_not_negative),
        "partial_passes": _optional(_not_negative),
        "seconds": _optional(_not_negative),
        "num_samples": _optional(_whole(1)),
        "seeds": _several(_whole(0)),
        "source": _text,
    },
    Results: {
        "command": _text,
        "measures": _by_name(_of(Measure)),
        "samplers": _by_name(_of(Sampler)),
        "records": _several(_of(Record)),
        "about": _text,
        "model": _optional(_text),
        "data": _optional(_text),
        "machine": _text,
        "versions": _by_name(_text),
        "settings": _object,
    },
}
