"""What the audio pipeline takes, read and checked: waveforms, codes, what of them is kept, lengths, components."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..integers import as_integer, is_integer, is_number
from .audio_codecs import AudioCodec
from .calls import GuidanceScale, as_pair
from .image_inputs import label_ids

_LOUDEST = 2.0  # a little above 1 is common in decoded files; integers of 16 bits are far above
CALL_DEFAULTS = ("num_inference_steps", "num_fine_inference_steps", "guidance_scale", "chunk_length_s")


def read_audio(audio: Any, sampling_rate: int | None, codec: AudioCodec) -> Tensor:
    """Waveforms as a codec reads them, float32 `(num_clips, channels, num_samples)`.

    Args:
        audio: a clip, `(num_samples,)` or `(channels, num_samples)`, a list of such of one length, or a batch
            `(num_clips, channels, num_samples)`: arrays or tensors of floats.
        sampling_rate: of the clips, in samples a second; must be the codec's.
        codec: that will read them.

    Raises:
        ValueError: another sampling rate or number of channels, integers, values far outside [-1, 1] or NaN, clips of
            several lengths, or shorter than a frame.
    """
    if not is_integer(sampling_rate, at_least=1) or as_integer(sampling_rate) != codec.sampling_rate:
        raise ValueError(
            f"`sampling_rate` must be that of the codec, {codec.sampling_rate}, got {sampling_rate!r}. Resample the "
            f"audio first, for example with `torchaudio.functional.resample(audio, rate, {codec.sampling_rate})`."
        )
    given = list(audio) if isinstance(audio, list | tuple) or getattr(audio, "ndim", 0) == 3 else [audio]
    clips = [_clip(one, codec) for one in given]
    lengths = sorted({clip.shape[-1] for clip in clips})
    if len(lengths) != 1:
        raise ValueError(
            f"`audio` must hold clips of one length, got lengths {lengths or 'of no clip'}. Cut or pad them, or pass "
            "each in a call of its own."
        )
    if lengths[0] < codec.hop_length:
        raise ValueError(
            f"`audio` must hold at least the {codec.hop_length} samples of a frame, got {lengths[0]}. Pad it."
        )
    return torch.stack(clips)


def _clip(clip: Any, codec: AudioCodec) -> Tensor:
    """One clip, float32 `(channels, num_samples)`."""
    tensor = _tensor_of(clip)
    if not isinstance(tensor, Tensor) or tensor.ndim not in (1, 2) or not tensor.is_floating_point():
        got = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(clip).__name__
        raise ValueError(
            f"`audio` must be float arrays or tensors (num_samples,) or (channels, num_samples), got {got}. Divide "
            "integers of 16 bits by 32768."
        )
    tensor = tensor.detach().float()
    tensor = tensor if tensor.ndim == 2 else tensor[None]
    if tensor.shape[0] != codec.channels:
        raise ValueError(
            f"`audio` must have {codec.channels} channel(s) as (channels, num_samples), got {tuple(tensor.shape)}. "
            "Take the mean of several channels for one, and transpose what soundfile has read."
        )
    if not bool((tensor.abs() <= _LOUDEST).all()):
        raise ValueError(
            f"`audio` must hold samples in [-1, 1], got values from {float(tensor.min()):.3g} to "
            f"{float(tensor.max()):.3g}. Divide by the largest, or look where it became NaN."
        )
    return tensor


def _tensor_of(value: Any) -> Any:
    """A tensor of an array of numbers or bools; anything else as it is."""
    try:
        return torch.as_tensor(value) if hasattr(value, "__array__") else value
    except TypeError:  # an array of words or objects
        return value


def check_codes(codes: Any, num_codebooks: int, codebook_size: int, at_least: int | None = None) -> Tensor:
    """Codes to fill in or vary, int64 `(num_clips, num_codebooks, num_frames)`, the mask `codebook_size` among them.

    Args:
        at_least: they may be of this many codebooks or more; None for exactly `num_codebooks`.

    Raises:
        ValueError: another dtype or shape, or values that are neither codes nor the mask.
    """
    least = num_codebooks if at_least is None else at_least
    wanted = f"(num_clips, {num_codebooks if at_least is None else f'{least} to {num_codebooks}'}, num_frames)"
    valid = isinstance(codes, Tensor) and codes.dtype == torch.int64 and codes.ndim == 3 and codes.numel() > 0
    if not valid or not least <= codes.shape[1] <= num_codebooks:
        got = f"{codes.dtype} {tuple(codes.shape)}" if isinstance(codes, Tensor) else type(codes).__name__
        raise ValueError(
            f"`codes` must be int64 of shape {wanted}, got {got}. Pass what `pipe.encode_audio` or an earlier call "
            "returned as codes."
        )
    if not bool(((codes >= 0) & (codes <= codebook_size)).all()):
        raise ValueError(
            f"`codes` must hold codes in 0 .. {codebook_size - 1} or the mask {codebook_size}, got values from "
            f"{int(codes.min())} to {int(codes.max())}. Replace the others by the mask."
        )
    return codes


def read_keep(keep: Any, shape: tuple[int, int]) -> Tensor:
    """Which codes stay, bool `(num_clips or 1, num_codebooks, num_frames)`.

    Args:
        keep: bool; may be of one codebook or one frame, and then holds for all.
        shape: codebooks and frames of the clips.

    Raises:
        ValueError: no bools, or another shape.
    """
    tensor = _tensor_of(keep)
    valid = isinstance(tensor, Tensor) and tensor.dtype == torch.bool and tensor.ndim in (2, 3)
    if not valid or any(size not in (1, full) for size, full in zip(tensor.shape[-2:], shape, strict=True)):
        got = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(keep).__name__
        raise ValueError(
            f"`keep` must be bools of shape {shape}, with a dimension before for each clip, or 1 where all are alike, "
            f"got {got}. Make it with `hf_maskdiff.audio_masks` of the number of frames in the clip's codes."
        )
    return tensor.expand(*tensor.shape[:-2], *shape).reshape(-1, *shape)


def check_sources(audio: Any, codes: Any, audio_length_in_s: Any, keep: Any) -> None:
    """One of audio, codes and a length must be given; of audio it must be said what is kept."""
    given = {"audio": audio, "codes": codes, "audio_length_in_s": audio_length_in_s}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise ValueError(
            f"one of `audio`, `codes` and `audio_length_in_s` must be given, got {names or 'none'}. Pass a clip to "
            "vary, or the length of a new one."
        )
    if audio is not None and keep is None:
        raise ValueError(
            "`keep` must come with `audio`, got none, so that nothing of it would be left. Pass for example "
            "`keep=keep_every(7, num_frames)`, or `audio_length_in_s` for a new clip."
        )
    if audio_length_in_s is not None and keep is not None:
        raise ValueError("`keep` must come with `audio` or `codes`, got a length. Pass the clip to keep of.")


def check_read(audio: Any, sampling_rate: Any, fine_transformer: Any, num_fine_inference_steps: Any) -> None:
    """Raise `ValueError` for what a call says and nothing would read."""
    if audio is None and sampling_rate is not None:
        raise ValueError(
            f"`sampling_rate` must come with `audio`, whose rate it is, got {sampling_rate!r} alone. Leave it out; the "
            "output has that of the codec."
        )
    if fine_transformer is None and num_fine_inference_steps is not None:
        raise ValueError(
            "`num_fine_inference_steps` must be left out for a pipeline without a `fine_transformer`, got "
            f"{num_fine_inference_steps!r}. Pass `num_inference_steps` alone."
        )


def frames_of(name: str, seconds: Any, frame_rate: float) -> int:
    """How many frames so many seconds are, to the nearest; at least one."""
    if not is_number(seconds) or not 0 < float(seconds) < math.inf or round(float(seconds) * frame_rate) < 1:
        raise ValueError(
            f"`{name}` must be seconds of at least a frame, {1 / frame_rate:.3g}, got {seconds!r}. Pass a longer time."
        )
    return round(float(seconds) * frame_rate)


def overlap_of(chunk_overlap_s: float | None, chunk: int, frame_rate: float) -> int:
    """Frames that two windows of `chunk` frames share: a quarter of them unless said otherwise."""
    if chunk_overlap_s is None:
        return chunk // 4
    is_time = is_number(chunk_overlap_s) and 0 <= chunk_overlap_s < math.inf
    if not is_time or (frames := round(float(chunk_overlap_s) * frame_rate)) >= chunk:
        raise ValueError(
            f"`chunk_overlap_s` must be seconds from 0 on and less than the chunk's {chunk / frame_rate:.4g}, got "
            f"{chunk_overlap_s!r}. Pass a quarter of the chunk."
        )
    return frames


def class_ids(labels: Any, transformer: Any) -> list[int] | None:
    """Class ids of labels; None for a model without classes.

    Raises:
        ValueError: labels for such a model, or wrong ones.
    """
    config = transformer.config
    if not config.get("num_classes"):
        if labels is not None:
            raise ValueError(
                f"`class_labels` must be left out for a model without classes, got {labels!r}. Leave it out."
            )
        return None
    has_null_class = getattr(transformer, "has_null_class", True)
    return label_ids(labels, config.num_classes, has_null_class, config.get("id2label") or {})


def check_no_guidance(guidance_scale: GuidanceScale) -> None:
    """No scale may be above 1 for a model without classes."""
    if max(as_pair(guidance_scale)) > 1:
        raise ValueError(
            f"`guidance_scale` must not exceed 1 for a model without classes, got {guidance_scale!r}. Leave it out."
        )


def check_call_defaults(call_defaults: Mapping[str, Any] | None) -> None:
    """Raise `ValueError` for a default of what the pipeline has none of."""
    unknown = sorted(set(call_defaults or {}) - set(CALL_DEFAULTS))
    if unknown:
        raise ValueError(
            f"`call_defaults` must be among {list(CALL_DEFAULTS)}, got {unknown}. Pass others to the call."
        )


def check_rates(codec: AudioCodec, sampling_rate: int | None, hop_length: int | None) -> None:
    """The codec must be the one that the models were trained with, as far as the pipeline's configuration says."""
    wanted, found = (sampling_rate, hop_length), (codec.sampling_rate, codec.hop_length)
    if any(want not in (None, got) for want, got in zip(wanted, found, strict=True)):
        raise ValueError(
            f"`codec` must have the `sampling_rate` and `hop_length` {wanted} of the models, got {found}. Load the "
            "codec that they were trained with."
        )


def check_models(codec: AudioCodec, transformer: Any, fine_transformer: Any, mask_token_id: int) -> None:
    """Codec, models and scheduler must have the same codes, and the fine model be given those of the coarse one."""
    config = transformer.config
    fine = config if fine_transformer is None else fine_transformer.config
    sizes = {"codec": codec.codebook_size, "transformer": config.codebook_size, "fine_transformer": fine.codebook_size}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"all components must have one `codebook_size`, got {sizes}. Load those that belong together.")
    if mask_token_id != config.codebook_size:
        raise ValueError(
            f"`scheduler` must have the model's mask {config.codebook_size}, got `mask_token_id` {mask_token_id}. Make "
            "it with `from_config(pipe.scheduler.config)`, of the scheduler that the model came with."
        )
    if config.get("num_conditioning_codebooks"):
        raise ValueError(
            f"`transformer` must draw the first codebooks, got one that is given {config.num_conditioning_codebooks}. "
            "Pass it as `fine_transformer`."
        )
    given = fine.get("num_conditioning_codebooks") or 0
    if fine_transformer is not None and given != config.num_codebooks:
        raise ValueError(
            f"`fine_transformer` must be given the {config.num_codebooks} codebooks of the `transformer`, got one that "
            f"is given {given}. Load models that belong together."
        )
    classes = config.get("num_classes"), fine.get("num_classes")
    if all(classes) and classes[0] != classes[1]:
        raise ValueError(
            f"`fine_transformer` must have the classes of the `transformer`, {classes[0]}, or none, got {classes[1]}. "
            "Load models that belong together."
        )
    total = config.num_codebooks + (0 if fine_transformer is None else fine.num_codebooks)
    if total > codec.num_codebooks:
        raise ValueError(
            f"`codec` must have the {total} codebooks of the models, got {codec.num_codebooks}. Load the codec that "
            "they were trained with."
        )
