"""WAV files of 16 bits, without further packages."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import torch


def wav(audio: Any, sampling_rate: int) -> bytes:
    """The bytes of a WAV file of 16 bits.

    Args:
        audio (`Tensor` or array of shape `(channels, num_samples)`): floats in [-1, 1]; what is louder is cut off.
        sampling_rate (`int`): samples in a second.

    Raises:
        ValueError: of another shape, or no floats.
    """
    clip = torch.as_tensor(audio)
    if clip.ndim != 2 or not clip.is_floating_point():
        raise ValueError(
            f"`audio` must have the shape (channels, num_samples) and hold floats, got {clip.dtype} "
            f"{tuple(clip.shape)}. Pass one of the `audios` of a call, or `audio[None]` of one channel."
        )
    buffer = io.BytesIO()
    samples = (clip.detach().cpu().float().clamp(-1, 1).T * 32767).round().to(torch.int16)
    with wave.open(buffer, "wb") as file:
        file.setnchannels(len(clip))
        file.setsampwidth(2)
        file.setframerate(sampling_rate)
        file.writeframes(samples.contiguous().numpy().tobytes())
    return buffer.getvalue()


def write_wav(path: str | Path, audio: Any, sampling_rate: int) -> None:
    """Write a clip `(channels, num_samples)` as a WAV file of 16 bits; see `wav`. Folders are made where needed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(wav(audio, sampling_rate))
