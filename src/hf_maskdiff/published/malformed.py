"""Files of unknown origin: whatever they make a library raise becomes one `ValueError`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# What libraries say to their users, and what is no fault of a file.
_SAID = (OSError, ImportError, ValueError, KeyboardInterrupt, SystemExit, GeneratorExit)


@contextmanager
def refusing(what: str, remedy: str) -> Iterator[None]:
    """Makes one `ValueError` of what fails inside, libraries' own panics among it; theirs for users pass.

    Example:

        with refusing("the tokenizer in 'folder'", "Fetch its files again."):
            AutoTokenizer.from_pretrained("folder", trust_remote_code=False)

    Args:
        what: must be well-formed: the start of the sentence.
        remedy: its end.
    """
    try:
        yield
    except _SAID:
        raise
    except BaseException as error:  # a panic of a library in Rust is no `Exception`
        message = " ".join(str(error).split())[:300]
        raise ValueError(f"{what} must be well-formed, got {type(error).__name__}: {message}. {remedy}") from error


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
        if isinstance(error.__context__, json.JSONDecodeError | UnicodeDecodeError):
            raise ValueError(f"{what} must be readable, it is not: {error.__context__}. Fetch it again.") from error
        raise
    if not isinstance(settings, dict):
        raise ValueError(f"{what} must hold settings by name, got {type(settings).__name__}. Fetch it again.")
    return settings
