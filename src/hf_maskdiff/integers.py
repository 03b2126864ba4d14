"""Integers of every kind as `int`: numpy's, and tensors or arrays of one number. And what is a number at all."""

from __future__ import annotations

import operator
from numbers import Real
from typing import Any


def as_integer(value: Any) -> Any:
    """An `int` where that is what `value` stands for; anything else, bools among it, as it is."""
    if "bool" in str(getattr(value, "dtype", type(value))):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def is_integer(value: Any, at_least: int) -> bool:
    """Whether it stands for an integer, not a bool, of at least so much."""
    number = as_integer(value)
    return isinstance(number, int) and not isinstance(number, bool) and number >= at_least


def is_number(value: Any) -> bool:
    """Whether it is a real number, of Python or numpy, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """Numbers of numpy and torch, alone or in lists, as those of Python, which a file of JSON can hold."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
