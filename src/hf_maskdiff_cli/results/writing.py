"""Writes files of results: a record a line, so that a difference between two versions of a file is readable."""

from __future__ import annotations

import json
import math
import os
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from .schema import SCHEMA, Results


def write_results(results: Results, path: Path) -> None:
    """Write to a temporary file and rename it, so that the file is complete at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(as_text(results), encoding="utf-8")
    os.replace(partial, path)


def as_text(results: Results) -> str:
    """The file: what is as by default is left out, and records, measures and samplers have a line each."""
    content = {"schema": SCHEMA, **_plain(results)}
    lines = []
    for key, value in content.items():
        if key in ("records", "measures", "samplers") and value:
            lines.append(f" {json.dumps(key)}: {_lines(value)}")
        else:
            lines.append(f" {json.dumps(key)}: {_dumped(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _lines(value: Any) -> str:
    if isinstance(value, list):
        return "[\n" + ",\n".join(f"  {_dumped(one)}" for one in value) + "\n ]"
    return "{\n" + ",\n".join(f"  {json.dumps(name)}: {_dumped(one)}" for name, one in value.items()) + "\n }"


def _dumped(value: Any) -> str:
    return json.dumps(value, default=str, allow_nan=False)


def _plain(value: Any) -> Any:
    """What JSON holds for an object of the schema; None for what is not finite, which JSON does not have."""
    if hasattr(value, "__dataclass_fields__"):
        shown = {}
        for one in fields(value):
            found = getattr(value, one.name)
            default = one.default_factory() if one.default_factory is not MISSING else one.default
            if found != default and not (one.name == "seeds" and not found):
                shown[one.name] = _plain(found)
        return shown
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
