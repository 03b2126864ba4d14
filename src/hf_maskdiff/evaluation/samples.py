"""Sets of images or texts from any source: a folder, a set of `hf-maskdiff generate`, or a data set of the Hub."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from hf_maskdiff.pictures import in_eight_bits
from hf_maskdiff.sets.seals import is_sealed, is_whole
from hf_maskdiff_cli.names import IMAGES, TEXTS
from hf_maskdiff_cli.samples import Form, form_of, is_image, not_samples
from hf_maskdiff_cli.set_folder import CONFIGURATION, HIDDEN

STRINGS = ("string", "large_string")


@dataclass(frozen=True)
class ImageSamples:
    """Images that are read only when needed, so that a set may be larger than the memory.

    Args:
        name: the source of the images.
        count: number of images.
        read: returns the image with a given index, from 0.
        configuration: how they were made; empty if unknown.
    """

    kind: ClassVar[str] = IMAGES
    name: str
    count: int
    read: Callable[[int], Image.Image]
    configuration: dict[str, Any] = field(default_factory=dict)

    def batches(self, mode: str, batch_size: int, image_size: int | None = None) -> Iterator[Tensor]:
        """The images as uint8 `(batch_size, channels, height, width)`, in order.

        Args:
            mode: the PIL mode: "L" for one channel, "RGB" for three.
            image_size: resize the shorter side to this length, and cut out the central square; None keeps images as
                they are.

        Raises:
            ValueError: an image cannot be read, or differs in size from the first.
        """
        size = None
        for start in range(0, self.count, batch_size):
            batch = []
            for index in range(start, min(start + batch_size, self.count)):
                image = self._readable(index, mode)
                image = image if image_size is None else centre_square(image, image_size)
                size = size or image.size
                if image.size != size:
                    raise ValueError(
                        f"all images must have one size, got {size[0]} x {size[1]} and, at number {index} of "
                        f"{self.name}, {image.size[0]} x {image.size[1]}. Pass --image_size: it is part of the score."
                    )
                batch.append(torch.tensor(np.asarray(image)).reshape(*image.size[::-1], -1).permute(2, 0, 1))
            yield torch.stack(batch)

    def _readable(self, index: int, mode: str) -> Image.Image:
        try:
            return in_eight_bits(self.read(index), mode)
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:  # Pillow's, for broken PNG files
            raise ValueError(
                f"every sample must be an image that can be read, got {error} at number {index} of {self.name}. "
                "Remove it, or make it again."
            ) from error


def centre_square(image: Image.Image, side: int) -> Image.Image:
    """The central square of an image whose shorter side is resized to `side`, as references are usually prepared."""
    scale = side / min(image.size)
    width, height = (int(scale * length) if length != min(image.size) else side for length in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR) if image.size != (width, height) else image
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))


@dataclass(frozen=True)
class TextSamples:
    """Texts, and the tokens they were generated as if the set has them.

    Args:
        name: the source of the texts.
        texts: the texts.
        tokens: the tokens of each text, int64 `(length,)`; None if unknown.
        configuration: how they were made; empty if unknown.
    """

    kind: ClassVar[str] = TEXTS
    name: str
    texts: Sequence[str]
    tokens: Sequence[Tensor] | None = None
    configuration: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return len(self.texts)


Samples = ImageSamples | TextSamples


def load_samples(source: str | Path, limit: int | None = None) -> Samples:
    """Open a set: of images if it holds any, else of texts.

    Example:
        >>> load_samples("out/digits")  # written by `hf-maskdiff generate`
        >>> load_samples("imagenet/train")  # a folder of image files, with sub-folders or without
        >>> load_samples("plays")  # a folder of .txt files, a text each
        >>> load_samples("ylecun/mnist:test")  # a split of a data set on the Hub; without a split: train

    Args:
        source: a folder of parquet files, images or .txt files (the first of these kinds that it holds is read), or the
            name of a data set for `datasets.load_dataset`.
        limit: how many samples to take, chosen at random with a fixed seed; None takes all.

    Raises:
        ValueError: the source has nothing to read, is a folder of several sets, or is a set of `hf-maskdiff generate`
            that is not finished.
    """
    folder = Path(source)
    match form_of(source):
        case Form.HUB:
            return _of_hub(str(source), limit)
        case Form.PARQUET:
            return _of_parquet(folder, limit)
        case Form.IMAGE_FILES:
            images = _some(sorted(filter(is_image, folder.rglob("*"))), limit)
            return ImageSamples(str(source), len(images), lambda index: Image.open(images[index]))
        case Form.TEXT_FILES:
            return TextSamples(str(source), [_text_of(path) for path in _some(sorted(folder.glob("*.txt")), limit)])


def _some(things: Sequence[Any], limit: int | None) -> list[Any]:
    """At most `limit` things, in order, chosen at random, because the first ones might all be of one class."""
    if limit is None or limit >= len(things):
        return list(things)
    chosen = np.random.default_rng(0).permutation(len(things))[:limit]
    return [things[i] for i in sorted(chosen.tolist())]


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"every sample must be text in UTF-8, got {error} in {path}. Remove it, or make it again."
        ) from error


def _of_parquet(folder: Path, limit: int | None) -> Samples:
    import datasets

    configuration = _configuration_of(folder)
    files = sorted(map(str, folder.glob("*.parquet")))
    for file in files:
        _require_whole(Path(file), "checksums" in configuration)
    try:
        rows = datasets.Dataset.from_parquet(files) if files else []
    except Exception as error:  # its type depends on what is wrong with the file
        raise ValueError(
            f"the parquet files of {str(folder)!r} must be whole, got: {error}. Remove the damaged one and generate "
            "the set again: what is there is kept."
        ) from error
    if len(rows) < configuration.get("num_samples", 1):
        raise ValueError(
            f"a set must be finished before it is judged, got {len(rows)} of {configuration.get('num_samples', 1)} "
            f"samples in {str(folder)!r}. Run the same `generate` again: it makes what is missing."
        )
    return _of_rows(rows, str(folder), configuration, limit)


def _configuration_of(folder: Path) -> dict[str, Any]:
    """How a set was made; nothing where `hf-maskdiff generate` did not make it."""
    settings = folder / HIDDEN / CONFIGURATION
    if not settings.is_file():
        return {}
    try:
        return dict(json.loads(settings.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"a set must have its description, got a damaged {str(settings)!r}: {error}. Generate the set again in "
            "another folder."
        ) from error


def _require_whole(path: Path, must_be_sealed: bool) -> None:
    """Raise `ValueError` for a shard that is not as it was written. Other parquet files carry no checksum of ours."""
    content = path.read_bytes()
    if (must_be_sealed or is_sealed(content)) and not is_whole(content):
        raise ValueError(
            f"the parquet files of {str(path.parent)!r} must be whole, got {path.name}, whose checksum does not fit. "
            "Run the same `generate` again: it makes what is damaged again."
        )


def _of_hub(name: str, limit: int | None) -> Samples:
    import datasets

    repo, _, split = name.partition(":")
    try:
        rows = datasets.load_dataset(repo, split=split or "train", trust_remote_code=False)
    except Exception as error:  # the Hub's client also raises errors of its HTTP library
        raise not_samples(name, error) from error
    return _of_rows(rows, name, {}, limit)


def _holds_ids(features: Any, column: str) -> bool:
    """Whether a column holds lists of integers, as Arrow sees it: `datasets` has named such a column in three ways."""
    kind = features.arrow_schema.field(column).type if column in features else None
    return str(getattr(kind, "value_type", "")).startswith("int")


def _of_rows(rows: Any, name: str, configuration: dict[str, Any], limit: int | None) -> Samples:
    import datasets

    rows = rows if limit is None else rows.select(_some(range(len(rows)), limit))
    kinds = {column: type(kind).__name__ for column, kind in rows.features.items()}
    images = [column for column, kind in kinds.items() if kind == "Image"]
    if images:
        # Load bytes, so that this package decodes the images, and reports broken ones in its own message.
        raw = rows.select_columns(images[:1]).cast_column(images[0], datasets.Image(decode=False))
        return ImageSamples(name, len(rows), lambda index: _decoded(raw[index][images[0]]), configuration)
    strings = [column for column, kind in rows.features.items() if getattr(kind, "dtype", "") in STRINGS]
    if "text" in strings or len(strings) == 1:
        tokens = [torch.tensor(row) for row in rows["tokens"]] if _holds_ids(rows.features, "tokens") else None
        return TextSamples(name, list(rows["text" if "text" in strings else strings[0]]), tokens, configuration)
    raise ValueError(
        f'a data set of samples must have a column of images, a column "text", or one column of strings, got '
        f"{rows.features} in {name!r}."
    )


def _decoded(cell: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"])
