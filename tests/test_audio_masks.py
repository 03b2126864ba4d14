"""What of a clip stays: each prompt against its definition, frame by frame."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch

from hf_maskdiff.audio_masks import keep_around, keep_codebooks, keep_every, keep_outside

FRAMES = 23


def kept(mask: torch.Tensor) -> list[int]:
    assert mask.dtype == torch.bool
    assert mask.shape[0] == 1
    return mask[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize(("period", "width"), [(1, 1), (2, 1), (7, 1), (7, 2), (7, 3), (7, 7), (30, 4)])
def test_every_frame_of_a_period(period: int, width: int) -> None:
    for offset in {0, 1, period - 1} & set(range(period)):
        middles = range(offset - period, FRAMES + period, period)
        around = {middle - width // 2 + i for middle in middles for i in range(width)}
        expected = [frame for frame in range(FRAMES) if frame in around]
        assert kept(keep_every(period, FRAMES, width, offset)) == expected


def test_codebooks_and_how_prompts_combine() -> None:
    assert [keep_codebooks(n, 3)[:, 0].tolist() for n in (0, 2)] == [[False] * 3, [True, True, False]]
    keep = (keep_every(7, FRAMES) | keep_outside(1.0, 2.0, FRAMES, 10.0)) & keep_codebooks(2, 4)
    assert keep.shape == (4, FRAMES)
    for codebook, frame in product(range(4), range(FRAMES)):
        assert keep[codebook, frame] == (codebook < 2 and (frame % 7 == 0 or not 10 <= frame < 20))


@pytest.mark.parametrize(
    ("start", "end", "first", "behind"),
    [
        (0.3, 0.7, 3, 7),
        (0.31, 0.69, 3, 7),
        (0.29, 0.71, 2, 8),
        (0.0, 2.3, 0, 23),
        (1.1, 1.2, 11, 12),
        (0.34, 0.36, 3, 4),
    ],
)
def test_a_span_takes_every_frame_that_it_touches(start: float, end: float, first: int, behind: int) -> None:
    """Ten frames a second, of which 0.3 s and 0.7 s are no binary fractions."""
    assert kept(~keep_outside(start, end, FRAMES, 10.0)) == list(range(first, behind))


def test_frames_around_beats() -> None:
    assert kept(keep_around([], FRAMES, 10.0)) == []
    assert kept(keep_around([0.3, 1.25], FRAMES, 10.0, after=0.0)) == [3, 12]
    assert kept(keep_around(torch.tensor([0.0, 1.0]), FRAMES, 10.0, before=0.2, after=0.15)) == [0, 1, 8, 9, 10, 11]
    assert kept(keep_around([2.29], FRAMES, 10.0, after=5.0)) == [22]


@pytest.mark.parametrize(
    "call",
    [
        lambda: keep_every(0, FRAMES),
        lambda: keep_every(2.5, FRAMES),
        lambda: keep_every(7, FRAMES, width=8),
        lambda: keep_every(7, FRAMES, offset=7),
        lambda: keep_codebooks(5, 4),
        lambda: keep_codebooks(-1, 4),
        lambda: keep_outside(1.0, 1.0, FRAMES, 10.0),
        lambda: keep_outside(1.0, 2.4, FRAMES, 10.0),
        lambda: keep_outside(-1.0, 2.0, FRAMES, 10.0),
        lambda: keep_outside(0.0, 1.0, FRAMES, 0.0),
        lambda: keep_around([250.0], FRAMES, 10.0),
        lambda: keep_around([float("nan")], FRAMES, 10.0),
        lambda: keep_around([1.0], FRAMES, 10.0, before=-0.1),
    ],
)
def test_wrong_arguments(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"must be .*, got .*\. Pass|, got .*\. Divide"):
        call()
