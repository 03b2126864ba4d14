"""Rules that arguments of several commands share."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .names import SCHEDULERS, did_you_mean, did_you_mean_folder

_NAME = r"\w[\w.-]*"
_REPOSITORY = re.compile(rf"{_NAME}(?:/{_NAME})?")


def require_positive(args: argparse.Namespace, names: Iterable[str]) -> None:
    """Raise `ValueError` if one of these arguments is a number below 1; None is not a number and passes."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}. Pass a positive number.")


def require_path_or_repository(name: str, value: str) -> None:
    """Raise `ValueError` if a value is no path on this machine, and cannot be the name of a repository of the Hub.

    Whether the Hub has a repository of that name is not asked here.

    Args:
        name: the argument's name, as the message should write it.
    """
    if not Path(value).exists() and not may_be_repository(value):
        raise ValueError(
            f"{name} must be a folder that exists, or a repository of the Hub, got {value!r}. "
            f"{did_you_mean_folder(value) or 'Check the path.'}"
        )


def require_pipeline(value: str) -> None:
    """Raise `ValueError` if a value is neither the folder of a pipeline or of a model, nor a repository's name."""
    require_path_or_repository("`pipeline`", value)
    folder = Path(value)
    if not folder.exists() or (folder / "model_index.json").exists():
        return
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, Mapping):
        raise ValueError(
            "`pipeline` must be a folder with a model_index.json or, for a text model, a config.json, got "
            f"{value!r}, which has neither. Check the path."
        )
    if "_class_name" in config and "model_type" not in config:
        is_part = (folder.parent / "model_index.json").exists()
        raise ValueError(
            f"`pipeline` must be the folder of a whole pipeline, got {value!r}, which is a {config['_class_name']} "
            f"alone. {f'Did you mean {str(folder.parent)!r}?' if is_part else 'Check the path.'}"
        )


def require_scheduler(value: str) -> None:
    """Raise `ValueError` if a value is neither a scheduler's name, nor a folder, nor `owner/name` on the Hub."""
    if value in SCHEDULERS or Path(value).exists() or ("/" in value and may_be_repository(value)):
        return
    raise unknown_scheduler(value, "there is none of that name")


def unknown_scheduler(value: str, reason: str) -> ValueError:
    """The error for what is no scheduler, with the names that are known."""
    hint = did_you_mean(value, SCHEDULERS) or did_you_mean_folder(value) or "Check the spelling."
    if Path(value, "scheduler").is_dir():  # of a pipeline
        hint = f"Did you mean {str(Path(value, 'scheduler'))!r}?"
    return ValueError(
        f"`scheduler` must be one of {', '.join(SCHEDULERS)}, or a folder that exists or a repository of the Hub, with "
        f"a preset, got {value!r}: {reason}. {hint}"
    )


def may_be_repository(value: str) -> bool:
    """Whether a value has the form of a repository's name on the Hub: `name` or `owner/name`."""
    return _REPOSITORY.fullmatch(value) is not None
