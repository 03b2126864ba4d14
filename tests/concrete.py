"""Every concrete scheduler: those that are exported, and those of the examples of a scheduler of one's own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from types import ModuleType

import hf_maskdiff
from hf_maskdiff import MaskedDiffusionScheduler, OneStepScheduler


def _concrete(names: Iterable[object]) -> list[type[MaskedDiffusionScheduler]]:
    classes = [c for c in names if isinstance(c, type) and issubclass(c, MaskedDiffusionScheduler)]
    return [c for c in classes if not c.__abstractmethods__]


@cache
def _module(path: Path) -> ModuleType:
    """A file as the module of its name, by which diffusers finds its classes again; made once, so that they are one."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scheduler_in(place: str) -> type[MaskedDiffusionScheduler]:
    """The class that `FILE:CLASS` names."""
    file, _, name = place.rpartition(":")
    return getattr(_module(Path(file).resolve()), name)


def _schedulers() -> list[type[MaskedDiffusionScheduler]]:
    exported = _concrete(getattr(hf_maskdiff, name) for name in hf_maskdiff.__all__)
    for name in ("custom_scheduler", "custom_remasking"):
        example = Path(__file__).resolve().parents[1] / "examples" / f"{name}.py"
        if example.exists():
            exported += [c for c in _concrete(vars(_module(example)).values()) if c.__module__ == name]
    return exported


# One is for models that make all tokens in one pass, and takes no second step: `schedulers/test_one_step.py` has it.
SCHEDULERS = [found for found in _schedulers() if found is not OneStepScheduler]
