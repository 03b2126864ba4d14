"""Errors in one line."""

from __future__ import annotations

# What the functions behind the commands raise for a user's mistake, and for a machine that cannot do what was asked.
USER_ERRORS = (ValueError, OSError, ImportError, MemoryError)

_LONGEST = 2000  # characters; some libraries list every tensor of a model


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks; its type where it says nothing."""
    words = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if len(words) > _LONGEST:
        words = f"{words[:_LONGEST]} ..."
    if isinstance(error, KeyError) or not words:  # which says no more than a key
        return f"{type(error).__name__} {words}".strip()
    return words
