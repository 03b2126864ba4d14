"""Long clips, filled in part by part: which frames a model sees at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def windows(masked: Tensor, length: int, overlap: int) -> list[Tensor]:
    """Where the windows begin that a model sees one after the other, until nothing is masked.

    Each row has its own, which do not depend on the others. A window reaches back from the row's first mask by
    `overlap` frames, whose codes are known by then, or by more where the masks that it can fill in leave room: then
    they stand in its middle.

    Args:
        masked: which frames hold a mask, bool `(batch_size, num_frames)` on the CPU.
        length: frames in a window, at most `num_frames`.
        overlap: frames of a window that an earlier one has filled in, below `length`.

    Returns:
        For each window in turn its first frames, int64 `(batch_size,)`; a row that is finished has any.
    """
    num_frames = masked.shape[1]
    frames, found = torch.arange(num_frames), []
    while bool(masked.any()):
        first = masked.int().argmax(1)
        in_reach = masked & (frames < (first + length - overlap)[:, None])
        needed = (frames * in_reach).amax(1) + 1 - first
        context = ((length - needed) // 2).clamp(min=overlap)
        starts = (first - context).clamp(min=0, max=num_frames - length)
        found.append(starts)
        masked = masked & ((frames < starts[:, None]) | (frames >= (starts + length)[:, None]))
    return found


def seen(codes: Tensor, starts: Tensor, length: int) -> Tensor:
    """What stands in the windows, `(batch_size, num_codebooks, length)`."""
    return codes.gather(2, _places(codes, starts, length))


def put(codes: Tensor, starts: Tensor, filled: Tensor) -> Tensor:
    """The codes with the windows filled in."""
    return codes.scatter(2, _places(codes, starts, filled.shape[2]), filled)


def _places(codes: Tensor, starts: Tensor, length: int) -> Tensor:
    places = starts.to(codes.device)[:, None] + torch.arange(length, device=codes.device)
    return places[:, None].expand(-1, codes.shape[1], -1)
