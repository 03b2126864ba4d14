"""Whose a folder is: the description of a set, written once by the first run and equal for all others."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hf_maskdiff_cli.set_folder import CONFIGURATION, HIDDEN

from .files import write_if_absent

# Sets of earlier versions lack these: what made their samples, and that their files carry checksums.
MADE_BY = "made_by"
_CHECKSUMS = {"checksums": "sha256"}
_PATIENCE = 5.0  # seconds for another machine to finish writing its description, where that is not one act
_LONGEST = 300  # characters of a value in a message
_ABSENT = object()


class Claim:
    """A folder belongs to one description, and stays so: no clock, lock or process decides that, but one file.

    Args:
        folder: of the set.
        configuration: what decides the samples, as JSON can hold it.

    Attributes:
        is_sealed: whether every file of the set carries a checksum; known once `take` has returned.
    """

    def __init__(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        self.folder, self.path = folder, folder / HIDDEN / CONFIGURATION
        self.wanted: dict[str, Any] = json.loads(json.dumps(dict(configuration) | _CHECKSUMS))
        self._held: bytes | None = None
        self.is_sealed = True

    def take(self) -> bool:
        """Claim the folder, or see that it is claimed by an equal description; cheap where that was seen before.

        Returns:
            whether it was free.

        Raises:
            ValueError: it is another description's. The message says what differs, and what to do.
        """
        with suppress(OSError):
            if self._held is not None and self.path.read_bytes() == self._held:
                return False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        was_free = write_if_absent(self.path, json.dumps(self.wanted, indent=2, sort_keys=True).encode())
        # Also after writing: who has the folder is what the file says, and nothing else.
        content, present = self._read()
        require_same(self.folder, present, self.wanted)
        self._held, self.is_sealed = content, present.get("checksums") is not None
        return was_free

    def release(self) -> None:
        """Free the folder for another description. Only for one in which nothing was made."""
        with suppress(OSError):
            if self.path.read_bytes() == self._held:
                self.path.unlink()
        self._held = None

    @property
    def name(self) -> bytes:
        """Stands in each unfinished file, which belongs to the run of this description alone."""
        return hashlib.sha256(self._held or b"").hexdigest().encode()

    def warn(self) -> None:
        """Say what is not known of a set that an earlier version began."""
        if not self.is_sealed:
            print(
                f"{self.folder}: was begun by an earlier version, which noted no checksums, nor which weights made the "
                "samples. It is completed as it is; to be sure, generate it again in a new folder.",
                file=sys.stderr,
            )

    def _read(self) -> tuple[bytes, dict[str, Any]]:
        end = time.monotonic() + _PATIENCE
        while True:
            content = self.path.read_bytes()
            try:
                return content, dict(json.loads(content))
            except (ValueError, TypeError) as error:
                if time.monotonic() > end:
                    raise ValueError(
                        f"`output_dir` must hold a set with its description, got a damaged {str(self.path)!r}: "
                        f"{error}. Delete the folder {str(self.folder)!r}, or pass another one."
                    ) from error
            time.sleep(0.1)


def require_same(folder: Path, present: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise `ValueError` at the first difference between what a folder holds and what shall be made in it.

    A set of an earlier version is compared by what it says.
    """
    ignored = set() if "checksums" in present else {MADE_BY, *_CHECKSUMS}
    for key in sorted((present.keys() | wanted.keys()) - {MADE_BY} - ignored):
        # As they are written, where NaN is equal to itself.
        if _words(present.get(key)) != _words(wanted.get(key)):
            before, now = _unequal(present.get(key), wanted.get(key))
            raise ValueError(
                f"`output_dir` must hold a set of the same configuration, got {str(folder)!r}, where `{key}` is "
                f"{_short(before)} and not {_short(now)}. Pass the same arguments to complete that set. For "
                "another one pass another folder, or delete this one first."
            )
    if MADE_BY in ignored:
        return
    for key, before, now in _differences(present.get(MADE_BY), wanted.get(MADE_BY)):
        raise ValueError(
            f"`output_dir` must hold a set that the same model makes, got {str(folder)!r}, whose samples were made "
            f"with another `{key}`: {_abbreviated(before)}, now {_abbreviated(now)}. Put back what made them to "
            "complete the set. For a set of what there is now pass another folder, or delete this one first."
        )


def _words(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _unequal(before: Any, now: Any) -> tuple[Any, Any]:
    """Two values, reduced to the keys in which they differ if they are dictionaries."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return before, now
    keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key, _ABSENT) != now.get(key, _ABSENT)]
    return {key: before[key] for key in keys if key in before}, {key: now[key] for key in keys if key in now}


def _differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The leaves in which two nested dictionaries differ, by their dotted names."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key, _ABSENT), now.get(key, _ABSENT), f"{name}.{key}" if name else key)
    elif before != now:
        yield name or "model", before, now


def _short(value: Any) -> str:
    words = repr(value)  # of prompts there may be many
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]} ..."


def _abbreviated(value: Any) -> str:
    """A hash in as many digits as are read, a version as it is."""
    return "none" if value is _ABSENT or value is None else repr(str(value)[:16])
