"""Labelled images as tensors, from the Hub, from an image folder, from arrays, or from MNIST's own IDX files."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_maskdiff.pictures import in_eight_bits, is_grey
from hf_maskdiff_cli.samples import is_image

IDX_PREFIXES = {"train": "train", "test": "t10k"}


class LabelledImages(NamedTuple):
    """
    Args:
        images (`Tensor` of shape `(num_images, channels, height, width)`): uint8, on the CPU.
        labels (`Tensor` of shape `(num_images,)`): int64, on the CPU.
        class_names (`tuple[str, ...]`): the name of each label.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


def load_labelled_images(
    split: str,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    image_size: int | None = None,
    num_channels: int | None = None,
) -> LabelledImages:
    """Reads one split of a set of small images into memory, as one tensor that a training loop can index.

    Example:
        >>> images, labels, class_names = load_labelled_images("test", dataset="ylecun/mnist")
        >>> images.shape
        torch.Size([10000, 1, 28, 28])

    Args:
        split (`str`): "train" or "test". If a source has no test split, its validation split is used; if it has
            neither, a fixed tenth of the training split is held out.
        dataset (`str`, *optional*): name of a data set on the Hub with an image and a class column.
        data_dir (`str` or `Path`, *optional*): a local folder instead: IDX files named as MNIST's
            (`train-images-idx3-ubyte`, gzipped or not), arrays that `numpy.savez` wrote to `train.npz` and `test.npz`
            (`images` of shape `(num_images, height, width[, 3])` in uint8, `labels`, `class_names`), or an image
            folder with one sub-folder per class (`train/cat/1.png`).
        image_size (`int`, *optional*): resizes images to squares of this side; None keeps their size, which must then
            be the same for all.
        num_channels (`int`, *optional*): 1 for grey, 3 for colour; grey images may be read as colour too. None is 3
            if any image has colour, else 1.

    Raises:
        ValueError: if not exactly one source is given, or the source has no such images.
    """
    if (dataset is None) == (data_dir is None):
        raise ValueError(
            f"exactly one of `dataset` and `data_dir` must be given, got {dataset!r} and {data_dir!r}. "
            "Pass a data set of the Hub, such as dataset='ylecun/mnist', or a local folder."
        )
    if split not in IDX_PREFIXES:
        raise ValueError(f"`split` must be 'train' or 'test', got {split!r}.")
    if num_channels not in (None, 1, 3):
        raise ValueError(f"`num_channels` must be 1 (grey), 3 (colour) or None, got {num_channels}. Leave it out.")
    if data_dir is not None and not Path(data_dir).is_dir():
        raise ValueError(f"`data_dir` must be a folder, got {str(data_dir)!r}. Check the path.")
    if data_dir is not None and any(Path(data_dir).glob("*-images*ubyte*")):
        return _load_idx(Path(data_dir), split, image_size, num_channels)
    if data_dir is not None and (Path(data_dir) / "train.npz").exists():
        return _load_arrays(Path(data_dir) / f"{split}.npz", image_size, num_channels)
    if data_dir is not None:
        _require_classes(Path(data_dir))
    return _load_dataset(split, dataset, data_dir, image_size, num_channels)


def read_idx(path: str | Path) -> NDArray[np.uint8]:
    """Reads one IDX file of unsigned bytes (yann.lecun.com/exdb/mnist), gzipped if its name ends in `.gz`."""
    path = Path(path)
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"an IDX file of unsigned bytes must start with 00 00 08, {path} starts with {data[:3]!r}.")
    header = 4 + 4 * data[3]
    shape = tuple(np.frombuffer(data[4:header], dtype=">u4").astype(int).tolist())
    if len(data) != header + int(np.prod(shape)):
        raise ValueError(f"{path} must hold {shape} bytes after its header, got {len(data) - header}. Fetch it again.")
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def _require_classes(folder: Path) -> None:
    """Raise `ValueError` for images that lie beside each other, in the folder itself or in that of a split."""
    for place in (folder, *(folder / split for split in ("train", "validation", "test"))):
        images = sorted(path.name for path in place.glob("*") if is_image(path))
        if images and not (place / "metadata.csv").exists() and not (place / "metadata.jsonl").exists():
            raise ValueError(
                f"`data_dir` must hold a sub-folder of images for each class, got {len(images)} beside each other in "
                f"{str(place)!r}, such as {images[0]!r}. Move them, for example to {str(place / 'cat' / images[0])!r}."
            )


def _load_idx(folder: Path, split: str, image_size: int | None, num_channels: int | None) -> LabelledImages:
    def read(kind: str) -> NDArray[np.uint8]:
        matches = sorted(folder.glob(f"{IDX_PREFIXES[split]}-{kind}*ubyte*"))
        if not matches:
            raise ValueError(
                f"`data_dir` must hold a file {IDX_PREFIXES[split]}-{kind}-...-ubyte(.gz) for the {split} split, "
                f"got {sorted(path.name for path in folder.iterdir())}."
            )
        return read_idx(matches[0])

    images, labels = read("images"), read("labels")
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(f"images and labels must be equally many, got the shapes {images.shape} and {labels.shape}.")
    if num_channels == 3 or image_size not in (None, images.shape[1]):
        raise ValueError(
            f"IDX files are read as they are: grey, {images.shape[1]} pixels a side; got num_channels={num_channels} "
            f"and image_size={image_size}. Leave both out, or pass an image folder."
        )
    names = tuple(str(label) for label in range(int(labels.max(initial=0)) + 1))
    return LabelledImages(torch.tensor(images)[:, None], torch.tensor(labels, dtype=torch.int64), names)


# What numpy raises for a file that is no archive of arrays, or a broken one: it differs between versions.
_UNREADABLE = (KeyError, ValueError, TypeError, AttributeError, EOFError, OSError, zipfile.BadZipFile, zlib.error)


def _load_arrays(path: Path, image_size: int | None, num_channels: int | None) -> LabelledImages:
    if not path.exists():
        raise ValueError(f"`data_dir` must hold {path.name} beside train.npz, got {str(path.parent)!r}. Write both.")
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels, names = file["images"], file["labels"], tuple(str(name) for name in file["class_names"])
    except _UNREADABLE as error:
        raise ValueError(
            f"{path} must hold the arrays images, labels and class_names, got {error}. Write it with numpy.savez."
        ) from error
    images = images[..., None] if images.ndim == 3 else images
    channels = images.shape[-1]
    if images.dtype != np.uint8 or images.ndim != 4 or channels not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"images in {path} must be uint8 of shape (num_images, height, width), or with 3 channels at the end, "
            f"got {images.dtype} of shape {images.shape}."
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or not _all_named(labels, names):
        raise ValueError(
            f"labels in {path} must be {len(images)} whole numbers from 0 to {len(names) - 1}, one of class_names for "
            f"each image, got {labels.dtype} of shape {labels.shape}."
        )
    if num_channels not in (None, channels) or image_size not in (None, images.shape[1]):
        raise ValueError(
            f"arrays are read as they are: {channels} channels, {images.shape[1]} pixels a side; got num_channels="
            f"{num_channels} and image_size={image_size}. Leave both out, or write other arrays."
        )
    in_order = torch.from_numpy(images).movedim(-1, 1).contiguous()
    return LabelledImages(in_order, torch.from_numpy(labels.astype(np.int64)), names)


def _all_named(labels: NDArray[np.int64], names: tuple[str, ...]) -> bool:
    return bool(((labels >= 0) & (labels < len(names))).all())


def _load_dataset(
    split: str, dataset: str | None, data_dir: str | Path | None, image_size: int | None, num_channels: int | None
) -> LabelledImages:
    # Imported here, because the import takes a second and IDX files do not need it.
    import datasets

    if dataset is not None:
        splits = datasets.load_dataset(dataset, trust_remote_code=False)
    else:
        splits = datasets.load_dataset("imagefolder", data_dir=str(data_dir), trust_remote_code=False)
    if "test" not in splits and "validation" not in splits:
        splits = splits["train"].train_test_split(test_size=0.1, seed=0)
    rows = splits["validation"] if split == "test" and "test" not in splits else splits[split]
    image_columns = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    label_columns = [name for name, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)]
    if not image_columns or not label_columns:
        raise ValueError(
            f"the data set must have an image column and a class column, got {rows.features}. "
            "In an image folder, each class is a sub-folder."
        )

    images = []
    for image in rows[image_columns[0]]:
        image = in_eight_bits(image, "L" if is_grey(image) else "RGB")
        if image_size is not None and image.size != (image_size, image_size):
            image = image.resize((image_size, image_size))
        images.append(np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1))
    sizes = {image.shape[1:] for image in images}
    if len(sizes) != 1:
        raise ValueError(f"all images must have one size, got {sorted(sizes)[:3]} and so on. Pass `image_size`.")
    most = max(len(image) for image in images)
    if num_channels == 1 < most:
        number = next(number for number, image in enumerate(images) if len(image) == most)
        raise ValueError(
            f"`num_channels` must be 3 for images in colour, got 1, and number {number} of the {split} split is one. "
            "Leave it out, or make the images grey first."
        )
    images = [np.broadcast_to(image, (num_channels or most, *image.shape[1:])) for image in images]
    labels = torch.tensor(rows[label_columns[0]], dtype=torch.int64)
    return LabelledImages(torch.from_numpy(np.stack(images)), labels, tuple(rows.features[label_columns[0]].names))
