"""Log-mel spectrograms: how loud each band of pitch is at each time, as a network or a loss hears a sound; and back."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Generator, Tensor
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
    spectrum = _stft(waveforms.float(), hann).abs() / hann.sum()
    filters = _filters(sampling_rate, window, num_bands).to(waveforms.device)
    return (filters @ spectrum).clamp(min=FLOOR).log10()


def waveforms_of(
    spectrogram: Tensor, sampling_rate: int, window: int, num_iterations: int = 60, generator: Generator | None = None
) -> Tensor:
    """Sounds that have these spectrograms, nearly: bands do not tell all frequencies, and no phases.

    Magnitudes that the bands would hear so are found by multiplicative updates, then phases that fit each other by the
    Griffin-Lim algorithm with momentum (Perraudin, Balazs and Sondergaard, 2013).

    Args:
        spectrogram (`Tensor` of shape `(batch_size, num_bands, num_columns)`): as `log_mel` returns it; what is no
            louder than its floor is silence.
        sampling_rate, window (`int`): those of `log_mel`.
        num_iterations (`int`): of each of both; more sound cleaner.
        generator (`torch.Generator`, *optional*): draws the first phases, on the CPU.

    Returns:
        `Tensor` of shape `(batch_size, (num_columns - 1) * (window // 4))`, floats about in [-1, 1].
    """
    device = spectrogram.device
    hann = torch.hann_window(window, device=device)
    filters = _filters(sampling_rate, window, spectrogram.shape[1]).to(device)
    loudness = (10 ** spectrogram.float() - FLOOR).clamp(min=0)
    wanted, gram = filters.T @ loudness, filters.T @ filters
    magnitude = wanted.clone()
    for _ in range(num_iterations):  # they stay positive, and come closer in each (Lee and Seung, 2000)
        magnitude = magnitude * wanted / (gram @ magnitude).clamp(min=1e-9)
    magnitude = magnitude * hann.sum()
    angles = 2 * torch.pi * torch.rand(magnitude.shape, generator=generator).to(device)
    spectrum, before = torch.polar(magnitude, angles), torch.zeros((), device=device)
    for _ in range(num_iterations):
        consistent = _stft(_inverse_stft(spectrum, hann), hann)
        ahead = consistent + 0.99 * (consistent - before)
        spectrum, before = magnitude * ahead / ahead.abs().clamp(min=1e-9), consistent
    return _inverse_stft(spectrum, hann)


def _stft(waveforms: Tensor, hann: Tensor) -> Tensor:
    return torch.stft(waveforms, len(hann), len(hann) // 4, window=hann, return_complex=True)


def _inverse_stft(spectrum: Tensor, hann: Tensor) -> Tensor:
    return torch.istft(spectrum, len(hann), len(hann) // 4, window=hann)


@lru_cache(maxsize=16)
def _filters(sampling_rate: int, window: int, num_bands: int) -> Tensor:
    """What each band hears of each frequency, `(num_bands, window // 2 + 1)`; the highest weight is 1."""
    bank = mel_filter_bank(window // 2 + 1, num_bands, 0.0, sampling_rate / 2, sampling_rate)
    return torch.from_numpy(bank).float().T.contiguous()
