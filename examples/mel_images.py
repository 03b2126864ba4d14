"""Shared by the programs that treat a sound as an image: log-mel spectrograms as grey pictures, and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from hf_maskdiff.evaluation.mel import log_mel, waveforms_of

SIDE = 64  # bands, the highest in the first row, and columns
WINDOW = 512  # samples; a quarter of it lies between two columns, so that 64 of them take 1 second at 8 kHz
_DEEPEST = 3.0  # a black pixel is so many powers of ten below a white one


def num_samples() -> int:
    """Of the sound that fills a picture."""
    return (SIDE - 1) * (WINDOW // 4)


def images_of(waveforms: Tensor, sampling_rate: int) -> Tensor:
    """Pictures `(batch_size, 1, SIDE, SIDE)` in [0, 1] of sounds `(batch_size, up to num_samples())` in [-1, 1]."""
    missing = num_samples() - waveforms.shape[1]
    if missing < 0:
        raise ValueError(
            f"a sound must have at most {num_samples()} samples, which fill a picture, got {waveforms.shape[1]}. Cut "
            "it, or render clips of a lower sampling rate."
        )
    spectrogram = log_mel(F.pad(waveforms, (0, missing)), sampling_rate, WINDOW, SIDE)
    return (spectrogram / _DEEPEST + 1).clamp(0, 1).flip(1)[:, None]


def sounds_of(images: Tensor, sampling_rate: int, seed: int = 0) -> Tensor:
    """Sounds `(batch_size, num_samples())` of pictures as `images_of` makes them; their phases are made up."""
    generator = Generator().manual_seed(seed)
    return waveforms_of((images[:, 0].flip(1) - 1) * _DEEPEST, sampling_rate, WINDOW, generator=generator)


def rows_above(frequency: float, sampling_rate: int) -> int:
    """How many rows, from the top, are of bands whose middle lies above a frequency in Hz."""
    mels = [2595 * torch.tensor(1 + hertz / 700).log10().item() for hertz in (frequency, sampling_rate / 2)]
    middles = (torch.arange(SIDE) + 1) / (SIDE + 1) * mels[1]
    return int((middles > mels[0]).sum())
