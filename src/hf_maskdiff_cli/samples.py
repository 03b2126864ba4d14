"""What lies in a folder of samples, and what a pipeline makes: images, texts or sounds, by names of files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from .checks import may_be_repository
from .names import IMAGES, PIPELINES, SOUNDS, TEXTS, did_you_mean_folder
from .set_folder import HIDDEN

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


class Form(Enum):
    """How samples are stored. Only the last two say by themselves whether they are images or texts."""

    HUB = "a data set of the Hub"
    PARQUET = "parquet files"
    IMAGE_FILES = "image files"
    TEXT_FILES = ".txt files"


def form_of(source: str | Path) -> Form:
    """How the samples of a source are stored, by the first of these forms that its folder holds.

    Args:
        source: a folder; or `owner/name` or `owner/name:split`, a data set of the Hub, which is not asked for here.

    Raises:
        ValueError: a file, a folder of several sets or without samples, or a path that does not exist.
    """
    folder = Path(source)
    if not folder.exists():
        name = str(source).partition(":")[0]
        if not Path(name).exists() and not may_be_repository(name):
            raise not_samples(source, "there is no such folder. Check the path.")
        return Form.HUB
    if not folder.is_dir():
        raise ValueError(f"samples must lie in a folder, got the file {str(source)!r}. Pass the folder.")
    if any(folder.glob("*.parquet")) or (folder / HIDDEN).is_dir():
        return Form.PARQUET
    sets = sorted(path.parent.name for path in folder.glob(f"*/{HIDDEN}"))
    if sets:
        raise ValueError(
            f"one set is one folder, got {str(source)!r}, which holds {', '.join(sets)}. Pass {folder / sets[0]} and "
            "so on."
        )
    if any(is_image(path) for path in folder.rglob("*")):
        return Form.IMAGE_FILES
    if any(folder.glob("*.txt")):
        return Form.TEXT_FILES
    raise ValueError(
        f"a folder of samples must hold images, .txt files or parquet files, got {str(source)!r}, which holds none. "
        "Check the path."
    )


def not_samples(source: str | Path, reason: object) -> ValueError:
    """The error for a source that is neither a folder nor a data set of the Hub."""
    return ValueError(
        "samples must be a folder, or a data set of the Hub as `owner/name` or `owner/name:split`, got "
        f"{str(source)!r}: {reason} {did_you_mean_folder(str(source))}".rstrip()
    )


def is_image(path: Path) -> bool:
    """Whether a file's name ends as that of an image."""
    return path.suffix.lower() in IMAGE_ENDINGS


def kind_of_samples(source: str | Path) -> str | None:
    """`IMAGES` or `TEXTS`, or None where the samples must be opened to tell; errors as of `form_of`."""
    return {Form.IMAGE_FILES: IMAGES, Form.TEXT_FILES: TEXTS}.get(form_of(source))


def require_one_kind(kinds: set[str], sources: list[str]) -> None:
    """Raise `ValueError` if there are images and texts among the sets of one table."""
    if len(kinds) > 1:
        raise ValueError(f"sets in one table must be all images or all texts, got {sources}.")


def require_judged(kind: str) -> None:
    """Raise `ValueError` for samples of which no judge is here."""
    if kind == SOUNDS:
        raise ValueError(
            f"`pipeline` must make images or texts to be judged, got one of {kind}. Train a classifier of your sounds, "
            "as examples/judge_words.py has one of words."
        )


def require_reference_kind(kind: str, reference_kind: str, reference: str) -> None:
    """Raise `ValueError` if images would be compared with texts, or texts with images."""
    if kind == reference_kind:
        return
    if kind == IMAGES:
        raise ValueError(f"the reference of images must be images, got texts in {reference!r}.")
    raise ValueError(f"texts are compared with texts, got images in {reference!r}.")


def kind_of_pipeline(name: str, where: str) -> str:
    """`IMAGES`, `TEXTS` or `SOUNDS`: what a pipeline of this class makes.

    Args:
        name: of the class, as a `model_index.json` has it.
        where: it was found; for the message.

    Raises:
        ValueError: it is no pipeline whose samples this package makes, whatever its parts are called.
    """
    if name not in PIPELINES:
        raise ValueError(
            f"`pipeline` must hold one of {', '.join(PIPELINES)}, got {where!r}, of the class {name}. Open that one in "
            f"Python, `{name}.from_pretrained({where!r})`, or pass another."
        )
    return PIPELINES[name]


def kind_of_saved_pipeline(folder: str) -> str | None:
    """What a saved pipeline makes, or None where that cannot be read here: on the Hub, or without a valid index.

    Raises:
        ValueError: see `kind_of_pipeline`.
    """
    name = class_of_saved_pipeline(folder)
    return None if name is None else PIPELINES[name]


def class_of_saved_pipeline(folder: str) -> str | None:
    """The class of a saved pipeline, as `kind_of_saved_pipeline` reads it."""
    try:
        index: Any = json.loads(Path(folder, "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    name = index.get("_class_name") if isinstance(index, Mapping) else None
    if not isinstance(name, str):
        return None
    kind_of_pipeline(name, folder)
    return name
