"""Every concrete scheduler: those that are exported, and that of the example of a scheduler of one's own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

import hf_maskdiff
from hf_maskdiff import MaskedDiffusionScheduler


def _concrete(names: Iterable[object]) -> list[type[MaskedDiffusionScheduler]]:
    classes = [c for c in names if isinstance(c, type) and issubclass(c, MaskedDiffusionScheduler)]
    return [c for c in classes if not c.__abstractmethods__]


def _schedulers() -> list[type[MaskedDiffusionScheduler]]:
    exported = _concrete(getattr(hf_maskdiff, name) for name in hf_maskdiff.__all__)
    example = Path(__file__).parents[1] / "examples" / "custom_scheduler.py"
    if not example.exists():
        return exported
    spec = importlib.util.spec_from_file_location("custom_scheduler", example)
    module = sys.modules["custom_scheduler"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return exported + [c for c in _concrete(vars(module).values()) if c.__module__ == "custom_scheduler"]


SCHEDULERS = _schedulers()
