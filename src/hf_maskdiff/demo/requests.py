"""Numbers that a user has set, as the runs need them."""

from __future__ import annotations

from typing import Any

MOST_STEPS = 1024
_LARGEST_SEED = 2**32 - 1
MOST_GUIDANCE = 10


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number within limits.

    Raises:
        ValueError: anything else; the message calls it by its name on the page.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value != value // 1
        or not least <= value <= most
    ):
        raise ValueError(
            f"“{name}” must be a whole number from {least} to {most}, got {value!r}. Set it to one of these."
        )
    return int(value)


def number(name: str, value: Any, least: float, most: float) -> float:
    """A number within limits; errors as of `whole`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ValueError(
            f"“{name}” must be a number from {least:g} to {most:g}, got {value!r}. Set it to one of these."
        )
    return float(value)


def guidance_of(value: Any) -> float:
    """The guidance scale; errors as of `whole`."""
    return number("Guidance", value, 0, MOST_GUIDANCE)


def steps_of(value: Any) -> int:
    """The number of steps; errors as of `whole`."""
    return whole("Steps", value, 1, MOST_STEPS)


def seed_of(value: Any) -> int:
    """The seed; errors as of `whole`."""
    return whole("Seed", value, 0, _LARGEST_SEED)


def remarks_on_guidance(guidance_scale: float, label: int | None) -> list[str]:
    """What must be said where a scale has no class to guide towards."""
    if guidance_scale > 1 and label is None:
        return ["No class is chosen, so there is nothing to guide towards: “Guidance” is not used."]
    return []
