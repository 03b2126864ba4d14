"""Windows and blocks by themselves: where blocks begin in a window, and which rows have ended."""

from __future__ import annotations

import pytest
import torch

from hf_maskdiff.pipelines.text_windows import BlockGrid, WindowBatch

MASK, END, OTHER_END = 9, 3, 4


@pytest.mark.parametrize("block_size", [1, 3, 4])
def test_the_blocks_of_a_window_are_those_of_the_sequence(block_size: int) -> None:
    for offset in range(block_size):
        grid = BlockGrid(block_size, offset)
        for start in range(2 * block_size):
            within = grid.within(start)
            for position in range(start, start + 3 * block_size):
                assert within.end_of(position - start) == grid.end_of(position) - start
                # A block that the window begins in the middle of begins with the window.
                assert within.start_of(position - start) == max(grid.start_of(position) - start, 0)


def ended(*rows: list[int], first: int = 0, start: int = 0) -> list[list[int]]:
    """The rows without the masks of those that have ended; what each holds from `start` on is its block."""
    windows = [torch.tensor(row) for row in rows]
    batch = WindowBatch(windows, [slice(start, len(row)) for row in rows], None, MASK)
    left = batch.without_ended(batch.sample, [END, OTHER_END], torch.full((len(rows),), first))
    return [ids.tolist() for ids in batch.filled(left)]


def test_a_row_ends_with_an_end_that_no_mask_stands_before() -> None:
    assert ended([1, END, MASK, 2, MASK], [1, 2, OTHER_END, MASK, MASK]) == [
        [1, END, END, 2, END],
        [1, 2, OTHER_END, END, END],
    ]


def test_an_end_behind_a_mask_ends_nothing_yet() -> None:
    """The mask may become an end itself, and what stands before an end belongs to the text."""
    rows = [[1, MASK, END, MASK, MASK], [MASK, 2, 2, END, MASK], [1, 2, MASK, MASK, 1]]
    assert ended(*rows) == rows
    assert ended(rows[0], [1, 2, END, MASK, MASK]) == [rows[0], [1, 2, END, END, END]]


def test_an_end_in_the_prompt_ends_nothing() -> None:
    row = [1, END, 2, MASK, MASK]
    assert ended(row, first=3) == [row]
    assert ended(row, first=3, start=3) == [row]
    assert ended([1, END, 2, END, MASK], first=3, start=3) == [[1, END, 2, END, END]]
