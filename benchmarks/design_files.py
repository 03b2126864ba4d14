"""Files of designs: samples with the score of each, of which `antibody_report.py` makes results."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_designs(path: Path) -> dict[str, Any]:
    """Settings and cells of a file that `write_designs` wrote."""
    return json.loads(path.read_text())


def write_designs(found: Mapping[str, Any], path: Path) -> None:
    """Write to a temporary file and rename it, so that the file is complete at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps({name: found[name] for name in ("settings", "cells")}, indent=1))
    os.replace(partial, path)
