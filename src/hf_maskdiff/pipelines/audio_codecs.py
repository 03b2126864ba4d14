"""From waveforms to codes and back, by the codecs of transformers, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor
from transformers import EncodecModel, PreTrainedModel

# Frames of context on both sides of a chunk: more than the convolutions of DAC and LAC reach.
MARGIN = 32


class AudioCodec:
    """What a pipeline asks of a codec, and how most of transformers answer (DAC, Mimi, X-Codec).

    Args:
        model: `encode(waveform)` returns `audio_codes` `(batch_size, num_codebooks, num_frames)`,
            `decode(audio_codes=)` `audio_values`; it decodes the first codebooks alone, too.

    Attributes:
        sampling_rate: samples in a second.
        hop_length: samples in a frame.
        num_codebooks, codebook_size, channels: of its codes and waveforms.

    Raises:
        ValueError: the model's configuration does not say these.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.sampling_rate = self._setting("sampling_rate", "sample_rate")
        self.hop_length = self._hop_length()
        self.num_codebooks = self._setting("n_codebooks", "num_quantizers")
        self.codebook_size = self._setting("codebook_size")
        self.channels = int(getattr(model.config, "audio_channels", 1))

    def _setting(self, *names: str) -> int:
        found = next((value for name in names if (value := getattr(self.model.config, name, None)) is not None), None)
        if found is None:
            raise ValueError(
                f"`codec` must have one of {list(names)} in its configuration, got a {type(self.model).__name__}. "
                "Pass a codec of transformers that encodes to several codebooks, for example a DacModel."
            )
        return int(found)

    def _hop_length(self) -> int:
        return self._setting("hop_length", "frame_size")

    @property
    def frame_rate(self) -> float:
        """Frames in a second."""
        return self.sampling_rate / self.hop_length

    def require(self) -> None:
        """Raise `ValueError` if there is no codec."""

    def codes_of(self, waveform: Tensor) -> Tensor:
        """Codes of waveforms whose length is a multiple of a frame's, `(batch_size, num_codebooks, num_frames)`."""
        return self.model.encode(waveform, return_dict=True).audio_codes

    def waveform_of(self, codes: Tensor) -> Tensor:
        """The waveform of codes of the first codebooks, or of all, any shape with the same values."""
        return self.model.decode(audio_codes=codes, return_dict=True).audio_values


class EncodecCodec(AudioCodec):
    """EnCodec, whose codes are of chunks, of a bandwidth, and may be of a loudness.

    Raises:
        ValueError: for a model of chunks or loudness, of which codes alone do not tell.
    """

    def __init__(self, model: EncodecModel) -> None:
        super().__init__(model)
        config: Any = model.config
        if config.normalize or config.chunk_length_s is not None:
            raise ValueError(
                "`codec` must turn a whole clip into codes, got an EncodecModel with `normalize` or `chunk_length_s`, "
                "which needs the loudness of each chunk besides. Pass one without, such as facebook/encodec_24khz."
            )

    def _hop_length(self) -> int:
        return math.prod(self.model.config.upsampling_ratios)

    def codes_of(self, waveform: Tensor) -> Tensor:
        """See `AudioCodec`; all codebooks, as of the highest bandwidth."""
        config: Any = self.model.config
        return self.model.encode(waveform, bandwidth=config.target_bandwidths[-1], return_dict=True).audio_codes[0]

    def waveform_of(self, codes: Tensor) -> Tensor:
        """See `AudioCodec`."""
        return self.model.decode(codes[None], [None], return_dict=True).audio_values


class MissingCodec(AudioCodec):
    """What is known of the codec of a pipeline that has none, and so takes codes and returns codes.

    Args:
        sampling_rate, hop_length: of the codec; None if nobody knows.
        num_codebooks, codebook_size: of the pipeline's models.
    """

    channels = 1

    def __init__(
        self, sampling_rate: int | None, hop_length: int | None, num_codebooks: int, codebook_size: int
    ) -> None:
        if sampling_rate is None or hop_length is None:
            raise ValueError(
                f"`codec` must be there, or `sampling_rate` and `hop_length` of one, got {sampling_rate} and "
                f"{hop_length}. Load the pipeline with `codec=...`."
            )
        self.sampling_rate, self.hop_length = sampling_rate, hop_length
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size

    def require(self) -> None:
        """See `AudioCodec`."""
        raise ValueError(
            "`codec` must be there to read or make audio, got a pipeline without one. Load it with `codec=...`, or "
            'pass codes and `output_type="codes"`.'
        )


@singledispatch
def audio_codec(model: Any) -> AudioCodec:
    """How to speak with a codec."""
    return AudioCodec(model)


@audio_codec.register
def _(model: EncodecModel) -> AudioCodec:
    return EncodecCodec(model)


def encode(codec: AudioCodec, waveform: Tensor, chunk: int) -> Tensor:
    """Codes of waveforms, int64 `(batch_size, num_codebooks, num_frames)`; the last frame is filled up with silence.

    Clip by clip, so that what a clip becomes does not depend on the others, and chunk by chunk, each seen with `MARGIN`
    frames on both sides, so that the memory does not grow with the length.

    Args:
        waveform: `(batch_size, channels, num_samples)`.
        chunk: frames encoded at a time.
    """
    hop = codec.hop_length
    num_frames = -(-waveform.shape[-1] // hop)
    waveform = torch.nn.functional.pad(waveform, (0, num_frames * hop - waveform.shape[-1]))
    clips = []
    for clip in waveform.split(1):
        parts = [
            codec.codes_of(clip[..., seen.start * hop : seen.stop * hop])[..., own.start : own.stop]
            for seen, own in _chunks(num_frames, chunk)
        ]
        clips.append(torch.cat(parts, -1))
    return torch.cat(clips).long()


def decode(codec: AudioCodec, codes: Tensor, chunk: int) -> Tensor:
    """Waveforms of codes, `(batch_size, channels, num_samples)` in the codec's dtype, clip by clip and in chunks.

    A codec whose upsampling leaves out some samples at the end gives so many fewer than the frames cover.

    Args:
        codes: int64 `(batch_size, num_codebooks, num_frames)`, none of them masked.
        chunk: frames decoded at a time.
    """
    hop, num_frames = codec.hop_length, codes.shape[-1]
    clips = []
    for clip in codes.split(1):
        parts = []
        for seen, own in _chunks(num_frames, chunk):
            made = codec.waveform_of(clip[..., seen]).reshape(1, codec.channels, -1)
            is_last = seen.start + own.stop == num_frames
            parts.append(made[..., own.start * hop : None if is_last else own.stop * hop].clone())
        clips.append(torch.cat(parts, -1))
    return torch.cat(clips)


def _chunks(num_frames: int, chunk: int) -> Iterator[tuple[slice, slice]]:
    """For each chunk the frames that are seen, and which of these are its own."""
    for start in range(0, num_frames, chunk):
        end = min(start + chunk, num_frames)
        seen = slice(max(start - MARGIN, 0), min(end + MARGIN, num_frames))
        yield seen, slice(start - seen.start, end - seen.start)
