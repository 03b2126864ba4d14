"""How numbers are written: with their error, and as many digits as it deserves."""

from __future__ import annotations

import math

from .schema import Measure, Value


def with_error(value: float, error: float | None, digits: int | None = None) -> str:
    """A value and its standard error, "2.35 +- 0.04"; left out if it is unknown, None or NaN, or 0 with given digits.

    Args:
        digits: decimals; None for two of the error, and for four in all where there is no error.
    """
    if error is None or math.isnan(error) or (error == 0 and digits is not None):
        return f"{value:.4g}" if digits is None else f"{value:.{digits}f}"
    if digits is None:
        digits = 3 if error == 0 else max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f} +- {error:.{digits}f}"


def measured(value: Value | None, measure: Measure) -> str:
    """What a table says of a measure; nothing where it was not measured."""
    if value is None or value.value is None:
        return ""
    scale = 100 if measure.percent else 1
    error = None if value.error is None else scale * value.error
    return with_error(scale * value.value, error, measure.digits)
