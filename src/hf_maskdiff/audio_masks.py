"""Which codes of a clip stay, as people prompt models of audio: every few frames, the first codebooks, around a span.

Each function returns bools, True where a code is kept, of one row `(1, num_frames)` or one column `(num_codebooks, 1)`.
`&` and `|` combine them, `~` turns them around, and a pipeline takes whatever comes out:

```python
num_frames, rate = codes.shape[-1], pipe.frame_rate
keep = keep_every(7, num_frames) | keep_outside(2.0, 3.5, num_frames, rate)
keep = keep & keep_codebooks(3, pipe.num_codebooks)  # and of those frames the first three codebooks alone
```

A frame covers `1 / frame_rate` seconds, and codebook 0 is the coarsest. The prompts are those of VampNet
(arXiv 2307.04686).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .integers import as_integer, is_integer, is_number

# Times such as 0.1 s are no binary fractions: so much of a frame is taken for none.
_OF_A_FRAME = 1e-6


def keep_every(period: int, num_frames: int, width: int = 1, offset: int = 0) -> Tensor:
    """Every P-th frame with its neighbours, bool `(1, num_frames)`: the model varies what lies between.

    Args:
        period: P, frames from one kept frame to the next; 1 keeps all.
        num_frames: of the clip.
        width: frames kept together, the P-th in their middle; of an even number one more before it than behind it.
        offset: the first of the P-th frames.

    Raises:
        ValueError: a number that is no integer, below 1 (`offset`: below 0), or a width or offset that does not fit
            into the period.
    """
    period, num_frames = _count("period", period), _count("num_frames", num_frames)
    width, offset = _count("width", width), _count("offset", offset, 0)
    if width > period or offset >= period:
        raise ValueError(
            f"`width` must be at most, and `offset` below the `period` {period}, got {width} and {offset}. Pass "
            "smaller ones, or a longer period."
        )
    frames = torch.arange(num_frames)
    return ((frames - offset + width // 2) % period < width)[None]


def keep_codebooks(num_kept: int, num_codebooks: int) -> Tensor:
    """The first codebooks, which hold the coarse shape of the sound, bool `(num_codebooks, 1)`.

    Args:
        num_kept: how many of them; 0 keeps none.
        num_codebooks: of the pipeline.

    Raises:
        ValueError: a number that is no integer, below 0, or of more codebooks than there are.
    """
    num_kept, num_codebooks = _count("num_kept", num_kept, 0), _count("num_codebooks", num_codebooks)
    if num_kept > num_codebooks:
        raise ValueError(
            f"`num_kept` must be at most `num_codebooks` {num_codebooks}, got {num_kept}. Pass how many of the first "
            "codebooks shall stay."
        )
    return (torch.arange(num_codebooks) < num_kept)[:, None]


def keep_outside(start: float, end: float, num_frames: int, frame_rate: float) -> Tensor:
    """All but a span of time that is drawn anew (inpainting), bool `(1, num_frames)`.

    Args:
        start, end: of the span, in seconds. Each frame of which any part lies in it is drawn anew.
        num_frames: of the clip.
        frame_rate: frames in a second.

    Raises:
        ValueError: an end that is not behind the start, or a span that is not within the clip.
    """
    num_frames, frame_rate = _count("num_frames", num_frames), _rate(frame_rate)
    seconds = num_frames / frame_rate
    if not (_is_time(start, seconds) and _is_time(end, seconds) and start < end):
        raise ValueError(
            f"`start` and `end` must be seconds within the clip's {seconds:.4g}, in this order, got {start!r} and "
            f"{end!r}. Pass where the part to draw anew begins and ends."
        )
    frames = torch.arange(num_frames)
    first, behind = _first_frame(start, frame_rate), _frame_behind(end, frame_rate)
    return ((frames < first) | (frames >= behind))[None]


def keep_around(
    times: Iterable[float] | Tensor, num_frames: int, frame_rate: float, before: float = 0.0, after: float = 0.05
) -> Tensor:
    """The frames around given times, such as beats, bool `(1, num_frames)`: new music with the old rhythm.

    Args:
        times: in seconds, for example what a beat tracker has found.
        num_frames: of the clip.
        frame_rate: frames in a second.
        before, after: how much is kept before and behind each time, in seconds. Each frame of which any part lies in
            between is kept, and the frame of the time itself.

    Raises:
        ValueError: a time outside the clip, or a length below 0.
    """
    num_frames, frame_rate = _count("num_frames", num_frames), _rate(frame_rate)
    seconds, found = num_frames / frame_rate, [float(time) for time in times]
    wrong = [time for time in found if not _is_time(time, seconds)]
    if wrong:
        raise ValueError(
            f"`times` must be seconds within the clip's {seconds:.4g}, got {wrong[0]!r}. Divide milliseconds by "
            "1000, or leave out what lies behind the end."
        )
    if not (_is_time(before, math.inf) and _is_time(after, math.inf)):
        raise ValueError(
            f"`before` and `after` must be seconds from 0 on, got {before!r} and {after!r}. Pass 0 for none."
        )
    frames, kept = torch.arange(num_frames), torch.zeros(num_frames, dtype=torch.bool)
    for time in found:
        first = _first_frame(max(time - before, 0), frame_rate)
        behind = max(_frame_behind(time + after, frame_rate), _first_frame(time, frame_rate) + 1)
        kept |= (frames >= first) & (frames < behind)
    return kept[None]


def _first_frame(seconds: float, frame_rate: float) -> int:
    return math.floor(seconds * frame_rate + _OF_A_FRAME)


def _frame_behind(seconds: float, frame_rate: float) -> int:
    return math.ceil(seconds * frame_rate - _OF_A_FRAME)


def _is_time(value: Any, most: float) -> bool:
    return is_number(value) and 0 <= float(value) <= most + _OF_A_FRAME and float(value) < math.inf


def _rate(frame_rate: float) -> float:
    if not is_number(frame_rate) or not 0 < frame_rate < math.inf:
        raise ValueError(f"`frame_rate` must be a number above 0, got {frame_rate!r}. Pass `pipe.frame_rate`.")
    return float(frame_rate)


def _count(name: str, value: Any, least: int = 1) -> int:
    if not is_integer(value, at_least=least):
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}. Pass a whole number.")
    return as_integer(value)
