"""Rules that arguments of several commands share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

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
        name: of the argument, as the message shall write it.
    """
    if not Path(value).exists() and not may_be_repository(value):
        raise ValueError(
            f"{name} must be a folder that exists, or a repository of the Hub, got {value!r}. Check the path."
        )


def may_be_repository(value: str) -> bool:
    """Whether a value has the form of a repository's name on the Hub: `name` or `owner/name`."""
    return _REPOSITORY.fullmatch(value) is not None
