"""Folders that appear whole or not at all, even if others write to the same place or a program is killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows, where nothing that was left behind is taken away
    fcntl = None  # type: ignore[assignment]

_LOCK = "lock"


def workshop_of(output: Path) -> Path:
    """Where a folder is made before it gets its name: beside it, hidden."""
    return output.parent / f".{output.name}.partial"


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A new folder to be filled, which is called `output` at the end, once all is on the disk.

    It is made in `.<name>.partial` beside `output`, of which one process at a time has the lock. A lock ends with its
    process, so that what a killed one has left is known, and taken away by the next.

    Raises:
        ValueError: there is something at `output`, or another process is writing it.
        OSError: what cannot be written, such as on a full disk; nothing is left behind.
    """
    output = output.absolute()
    new = [folder for folder in output.parents if not folder.exists()]
    try:
        _require_room(output)
        workshop = workshop_of(output)
        with _locked(workshop, output) as is_alone:
            _require_room(output)  # another one may have finished in the meantime
            if is_alone:
                _clean(workshop)
            folder = Path(tempfile.mkdtemp(dir=workshop))
            try:
                yield folder
                _name(folder, output)
            except SafetensorError as error:
                raise OSError(
                    f"`output` must be writable, {str(output)!r} is not: {error}. Free some space."
                ) from error
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        for parent in new:  # the deepest first; one that holds something stays
            with suppress(OSError):
                parent.rmdir()


def _require_room(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"`output` must be a new or empty folder, got {str(output)!r}. Pass another one.")


@contextmanager
def _locked(workshop: Path, output: Path) -> Iterator[bool]:
    """Holds the lock of a workshop, which is made and taken away; False where the file system has no locks."""
    while True:
        workshop.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(workshop / _LOCK, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # taken away between these two lines
            continue
        is_alone = _lock(lock, output)
        # The file that was opened may be one that its last owner has taken away since.
        if not is_alone or _is_file(lock, workshop / _LOCK):
            break
        os.close(lock)
    try:
        yield is_alone
    finally:
        if is_alone or not any(left.is_dir() for left in workshop.iterdir()):
            (workshop / _LOCK).unlink(missing_ok=True)
        os.close(lock)
        with suppress(OSError):  # another one has come
            workshop.rmdir()


def _lock(descriptor: int, output: Path) -> bool:
    """Takes the lock of a file; False where there are no locks, `ValueError` where another process has it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(
            f"`output` must be written by one program at a time, another one is at {str(output)!r}. Wait for it, or "
            "pass another folder."
        ) from error
    except OSError:  # of file systems without locks
        return False
    return True


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _clean(workshop: Path) -> None:
    """Takes away what killed processes have left."""
    for left in workshop.iterdir():
        if left.is_dir():
            shutil.rmtree(left)


def _name(folder: Path, output: Path) -> None:
    """Puts all on the disk, then gives it its name."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)  # a temporary folder is its owner's alone
    for path in [*folder.rglob("*"), folder]:
        _flush(path)
    _require_room(output)
    if output.exists():
        output.rmdir()
    try:
        folder.rename(output)
    except OSError:
        _require_room(output)  # where there are no locks, two can come to this line
        raise
    _flush(output.parent)


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
