"""Where results come from: the command, the machine and the versions of this process."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .schema import Results

PACKAGES = ("hf-maskdiff", "torch", "diffusers", "transformers", "accelerate", "numpy", "torch-fidelity", "faiss-cpu")


def command() -> str:
    """The words that started this process, without the folders of its program."""
    program = Path(sys.argv[0])
    shown = [f"python {program.parent.name}/{program.name}"] if program.suffix == ".py" else [program.name]
    return " ".join([*shown, *map(shlex.quote, sys.argv[1:])])


def machine() -> str:
    """The GPU where torch has one, else the processor and its cores. torch is asked only where it is imported."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {torch.cuda.device_count()} in all"
    return f"{platform.machine()}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """The versions of the packages that numbers may depend on, of those that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def also(earlier: Results | None, now: str) -> str:
    """The machine of a file that goes on: that of its first records too, if it was another."""
    if earlier is None or not earlier.machine or now in earlier.machine.split("; "):
        return now if earlier is None or not earlier.machine else earlier.machine
    return f"{earlier.machine}; {now}"
