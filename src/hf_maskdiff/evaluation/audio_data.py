"""Labelled clips as tensors, from arrays such as `examples/render_speech.py` writes."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class LabelledClips(NamedTuple):
    """
    Args:
        audios (`Tensor` of shape `(num_clips, num_samples)`): int16, on the CPU; 32768 is the loudest.
        labels (`Tensor` of shape `(num_clips,)`): int64, on the CPU.
        class_names (`tuple[str, ...]`): the name of each label.
        sampling_rate (`int`): samples in a second.
    """

    audios: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    sampling_rate: int


# What numpy raises for a file that is no archive of arrays, or a broken one: it differs between versions.
_UNREADABLE = (KeyError, ValueError, TypeError, AttributeError, EOFError, OSError, zipfile.BadZipFile, zlib.error)


def load_labelled_clips(split: str, data_dir: str | Path) -> LabelledClips:
    """Reads one split of a set of short clips of one length into memory, as one tensor that a loop can index.

    Args:
        split (`str`): "train" or "test".
        data_dir (`str` or `Path`): a folder with arrays that `numpy.savez` wrote to `train.npz` and `test.npz`:
            `audios` of shape `(num_clips, num_samples)` in int16, `labels`, `class_names` and `sampling_rate`.

    Raises:
        ValueError: if there is no such file, or it holds something else.
    """
    path = Path(data_dir) / f"{split}.npz"
    if not path.exists():
        raise ValueError(
            f"`data_dir` must hold {path.name}, got {str(data_dir)!r}. examples/render_speech.py writes it."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            audios, labels, rate = file["audios"], file["labels"], int(file["sampling_rate"])
            names = tuple(str(name) for name in file["class_names"])
    except _UNREADABLE as error:
        raise ValueError(
            f"{path} must hold the arrays audios, labels, class_names and sampling_rate, got {error}. Write it with "
            "numpy.savez."
        ) from error
    if audios.dtype != np.int16 or audios.ndim != 2 or 0 in audios.shape:
        raise ValueError(
            f"audios in {path} must be int16 of shape (num_clips, num_samples), got {audios.dtype} of shape "
            f"{audios.shape}. Give all clips one length."
        )
    if labels.dtype.kind not in "iu" or labels.shape != audios.shape[:1] or not _all_named(labels, len(names)):
        raise ValueError(
            f"labels in {path} must be {len(audios)} whole numbers from 0 to {len(names) - 1}, one of class_names for "
            f"each clip, got {labels.dtype} of shape {labels.shape}."
        )
    return LabelledClips(torch.from_numpy(audios), torch.from_numpy(labels.astype(np.int64)), names, rate)


def _all_named(labels: np.ndarray, num_names: int) -> bool:
    return bool(((labels >= 0) & (labels < num_names)).all())
