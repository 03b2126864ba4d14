"""Log-mel spectrograms: how loud each band of pitch is at each time, as a network or a loss hears a sound."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

FLOOR = 1e-3  # a sine of amplitude 1 is 0.5: what is 54 dB below it is silence


def log_mel(waveforms: Tensor, sampling_rate: int, window: int, num_bands: int) -> Tensor:
    """Base-10 logarithm of the loudness of each band; what is softer than a thousandth counts as that.

    Args:
        waveforms (`Tensor` of shape `(batch_size, num_samples)`): floats in [-1, 1]; more than half a window long.
        sampling_rate (`int`): samples in a second.
        window (`int`): samples that are seen at a time, a Hann window; a quarter of it lies between two columns.
        num_bands (`int`): bands from 0 to half the sampling rate, equally wide in mel.

    Returns:
        `Tensor` of shape `(batch_size, num_bands, 1 + num_samples // (window // 4))`, in [-3, 0] or a little above.
    """
    hann = torch.hann_window(window, device=waveforms.device)
    spectrum = torch.stft(waveforms.float(), window, window // 4, window=hann, return_complex=True).abs() / hann.sum()
    filters = _filters(sampling_rate, window, num_bands).to(waveforms.device)
    return (filters @ spectrum).clamp(min=FLOOR).log10()


@lru_cache(maxsize=16)
def _filters(sampling_rate: int, window: int, num_bands: int) -> Tensor:
    """What each band hears of each frequency, `(num_bands, window // 2 + 1)`; the highest weight is 1."""
    bank = mel_filter_bank(window // 2 + 1, num_bands, 0.0, sampling_rate / 2, sampling_rate)
    return torch.from_numpy(bank).float().T.contiguous()
