"""The folder of a set of samples, as `hf-maskdiff generate` writes it, and which folders it may be written to."""

from __future__ import annotations

from pathlib import Path

# The folder, inside that of a set, with its configuration and unfinished parts; `datasets.load_dataset` skips it.
HIDDEN = ".generation"
CONFIGURATION = "configuration.json"


def require_set_folder(folder: Path) -> None:
    """Raise `ValueError` unless a folder is new, empty, or holds a set; hidden files do not count.

    Whether the set is the one that is wanted cannot be told before its pipeline is loaded.
    """
    if (folder / HIDDEN / CONFIGURATION).is_file():
        return
    if folder.exists() and (not folder.is_dir() or any(folder.glob("[!.]*"))):
        raise ValueError(
            f"`output_dir` must be new, empty, or hold a set that shall be completed, got {str(folder)!r}. "
            "Pass another folder."
        )
