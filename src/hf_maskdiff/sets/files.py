"""Files of a set that are there whole or not at all, also after a kill, a full disk or a power cut."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from hf_maskdiff_cli.set_folder import HIDDEN

_ATTEMPTS = 3
_Result = TypeVar("_Result")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file of a set, by way of a partial file in the set's hidden folder, which must exist.

    Raises:
        OSError: it could not be written; the message has the path and says that what is finished is kept.
    """

    def replace() -> None:
        with _partial_file(path, content) as partial:
            os.replace(partial, path)
        _flush_folder(path.parent)

    with telling_what_to_do(path):
        _repeated(replace)


def write_if_absent(path: Path, content: bytes) -> bool:
    """Write a file of a set unless it exists; of several that try at the same time, on any machines, one succeeds.

    Returns:
        False where it existed already. On a network's file system that loses an answer it may be False although the
        file is this one: read it.

    Raises:
        OSError: as of `write_atomically`.
    """
    with telling_what_to_do(path):
        return _repeated(lambda: _link(path, content))


def _repeated(deed: Callable[[], _Result]) -> _Result:
    """Do it again where a file has vanished: a run that begins removes partial files, as if a killed one left them."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return deed()
        except FileNotFoundError:
            continue
    return deed()


def _link(path: Path, content: bytes) -> bool:
    with _partial_file(path, content) as partial:
        try:
            os.link(partial, path)
        except FileExistsError:
            return False
        except FileNotFoundError:
            raise
        except OSError:  # a file system without links: as exclusive, but a kill in between leaves half a file
            try:
                with open(path, "xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            except FileExistsError:
                return False
    _flush_folder(path.parent)
    return True


@contextmanager
def _partial_file(path: Path, content: bytes) -> Iterator[Path]:
    """The content in a file of another name, which nobody else has, on any machine."""
    hidden = path.parent if path.parent.name == HIDDEN else path.parent / HIDDEN
    partial = hidden / f".{path.name}.{uuid.uuid4().hex[:12]}.{os.getpid()}.partial"
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    finally:
        with suppress(OSError):
            partial.unlink()


def _flush_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def telling_what_to_do(path: Path) -> Iterator[None]:
    """Give an `OSError` of the block a message that names the path and the remedy."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror or error}; what is finished is kept. Make room, and run the same command again"
        raise OSError(error.errno, reason, str(path)) from error
