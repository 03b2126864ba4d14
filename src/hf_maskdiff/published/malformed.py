"""Files of unknown origin: whatever they make a library raise becomes one `ValueError`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_UNREADABLE = (json.JSONDecodeError, UnicodeDecodeError)
# What libraries say to their users, and what is no fault of a file.
_SAID = (OSError, ImportError, ValueError, KeyboardInterrupt, SystemExit, GeneratorExit)


@contextmanager
def refusing(what: str, remedy: str, passed: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Makes one `ValueError` of what fails inside, libraries' own panics among it; theirs for users pass.

    Example:

        with refusing("the tokenizer in 'folder'", "Fetch its files again."):
            AutoTokenizer.from_pretrained("folder", trust_remote_code=False)

    Args:
        what: must be well-formed: the start of the sentence.
        remedy: its end.
        passed: what may be no fault of a file besides: where memory is taken, `RuntimeError` may say that it lacks.
    """
    try:
        yield
    except BaseException as error:  # a panic of a library in Rust is no `Exception`
        if isinstance(error, (*_SAID, *passed)) and not isinstance(error, RecursionError):
            raise
        message = " ".join(str(error).split())[:300]
        raise ValueError(f"{what} must be well-formed, got {type(error).__name__}: {message}. {remedy}") from error


def read_json(path: Path) -> Any:
    """What a .json file holds; to be called by `settings_of`."""
    return json.loads(path.read_text(encoding="utf-8"))


def settings_of(what: str, load: Callable[[], Any]) -> dict[str, Any]:
    """What a library reads in a .json file, if that is a dictionary.

    Args:
        what: the file, for the error.
        load: reads it.

    Raises:
        ValueError: there is a file, and it holds anything else.
        OSError: there is none.
    """
    try:
        with refusing(what, "Fetch it again."):
            settings = load()
    except OSError as error:  # which libraries also say where a file cannot be read, and mean that it is not there
        if isinstance(error.__context__, _UNREADABLE):
            raise ValueError(f"{what} must be readable, it is not: {error.__context__}. Fetch it again.") from error
        raise
    except _UNREADABLE as error:
        raise ValueError(f"{what} must be readable, it is not: {error}. Fetch it again.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{what} must hold settings by name, got {type(settings).__name__}. Fetch it again.")
    return settings
