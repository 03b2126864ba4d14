"""Filling in sequences part by part: the window of a sequence that the model sees, and the block that it fills in."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .step_logits import at_rows


@dataclass(frozen=True)
class Part:
    """The next part of a sequence.

    Args:
        window: the range of the sequence that the model sees.
        block: the range of the window that is filled in.
    """

    window: slice
    block: slice


@dataclass(frozen=True)
class BlockGrid:
    """The blocks that a model sees from left to right in one sequence.

    Args:
        block_size: positions in a block.
        offset: positions that the first block lacks at its beginning.
    """

    block_size: int
    offset: int = 0

    def start_of(self, position: int) -> int:
        """Where the block of a position begins."""
        return max((position + self.offset) // self.block_size * self.block_size - self.offset, 0)

    def end_of(self, position: int) -> int:
        """The first position behind the block of a position."""
        return ((position + self.offset) // self.block_size + 1) * self.block_size - self.offset

    def within(self, start: int) -> BlockGrid:
        """The same blocks in a window that begins at `start`."""
        return BlockGrid(self.block_size, (self.offset + start) % self.block_size)


def next_part(
    sequence: Tensor,
    mask_token_id: int,
    model_length: int | None,
    stride: int | None,
    block_length: int | None,
    grid: BlockGrid | None = None,
) -> Part:
    """The part to fill in next.

    A window holds `stride` positions from the first mask on, and before them as much of the sequence as fits. A block
    of `block_length` positions begins at the first mask.

    Args:
        sequence: int64 `(length,)`, with at least one mask.
        mask_token_id: the token at positions that are to be filled in.
        model_length: the length of the longest window; None for no limit.
        stride: number of new positions in a window; None for as many as fit.
        block_length: number of positions that are filled in together; None for the whole window.
        grid: blocks that the model sees from left to right. The window then ends with the block of the first mask,
            since nothing behind it is seen, and `block_length` divides the blocks; None fills in a block at a time.
    """
    return _part_at(first(sequence == mask_token_id), len(sequence), model_length, stride, block_length, grid)


def num_parts(
    sequence: Tensor,
    mask_token_id: int,
    model_length: int | None,
    stride: int | None,
    block_length: int | None,
    grid: BlockGrid | None = None,
) -> int:
    """How many parts fill in all of a sequence, one after the other; arguments as of `next_part`."""
    masks = (sequence == mask_token_id).nonzero()[:, 0].tolist()
    count = done = 0
    while done < len(masks):
        part = _part_at(masks[done], len(sequence), model_length, stride, block_length, grid)
        done = bisect_left(masks, part.window.start + part.block.stop)
        count += 1
    return count


def _part_at(
    first_mask: int,
    num_tokens: int,
    model_length: int | None,
    stride: int | None,
    block_length: int | None,
    grid: BlockGrid | None,
) -> Part:
    length = min(model_length or num_tokens, num_tokens)
    context = length - min(stride or length, length)
    if grid is not None:
        return _part_in_blocks(first_mask, num_tokens, length, context, block_length, grid)
    start = max(min(first_mask - context, num_tokens - length), 0)
    block = slice(0, length)
    if block_length is not None:
        block = slice(first_mask - start, min(first_mask - start + block_length, length))
    return Part(slice(start, start + length), block)


def _part_in_blocks(
    first_mask: int, num_tokens: int, length: int, context: int, block_length: int | None, grid: BlockGrid
) -> Part:
    end = min(grid.end_of(first_mask), num_tokens)
    start = max(min(grid.start_of(first_mask) - context, num_tokens - length), 0)
    if start > grid.start_of(start):  # a window begins with a block
        start = grid.end_of(start)
    filled = end
    if block_length is not None:
        filled = min(BlockGrid(block_length, grid.offset).end_of(first_mask), end)
    return Part(slice(start, end), slice(first_mask - start, filled - start))


class WindowBatch:
    """Windows of several sequences as one batch, and the blocks in them.

    Args:
        windows: int64 `(length,)` each; lengths may differ.
        blocks: the range of each window that is filled in.
        hidden: bool like the windows: the tokens that the pass without a prompt must not see; None if there is no such
            pass.
        mask_token_id: the token at positions that are to be filled in.
        grids: the blocks that the model sees in each window; None for a model that sees everything.

    Attributes:
        lengths: lengths of the windows, int64 `(batch_size,)`.
        starts, ends: the ranges of the blocks, int64 `(batch_size,)` on the CPU.
        attention_mask: bool `(batch_size, L)`, False for padding; None if all windows have the same length.
        sample: the blocks, int64 `(batch_size, size)`. A block shorter than `size` is extended by the tokens before it,
            the nearest first, and then by padding; all of these are known.
        length: the longest window.
        block_starts: where those of the `grids` begin in which `blocks` are, int64 `(batch_size,)` on the CPU, or None.
        offsets: positions that the first block of each window lacks, int64 `(batch_size,)`; None if all are whole.
    """

    def __init__(
        self,
        windows: list[Tensor],
        blocks: Sequence[slice],
        hidden: list[Tensor] | None,
        mask_token_id: int,
        grids: Sequence[BlockGrid] | None = None,
    ) -> None:
        device = windows[0].device
        self.mask_token_id = mask_token_id
        self._lengths = [len(window) for window in windows]
        self.lengths = torch.tensor(self._lengths, device=device)
        # The model does not see the padding, which may be any token but the mask: masks would be filled in.
        self._seen = pad_sequence(windows, batch_first=True, padding_value=0 if mask_token_id else 1)
        self._hidden = None if hidden is None else pad_sequence(hidden, batch_first=True, padding_value=False)
        length = self.length = self._seen.shape[1]
        places = torch.arange(length, device=device)
        same = all(len(window) == length for window in windows)
        self.attention_mask = None if same else places < self.lengths[:, None]
        size = max(block.stop - block.start for block in blocks)
        self.starts = torch.tensor([block.start for block in blocks])
        self.ends = torch.tensor([block.stop for block in blocks])
        starts, ends = self.starts.to(device)[:, None], self.ends.to(device)[:, None]
        # Behind a block may stand masks of the next one, before it only what is known; before that, padding.
        columns, sizes = places[:size], ends - starts
        backwards = starts - 1 - (columns - sizes)
        self._places = torch.where(columns < sizes, starts + columns, backwards) % length
        self.offsets = self.block_starts = None
        if grids is not None:
            each = zip(grids, blocks, strict=True)
            self.block_starts = torch.tensor([grid.start_of(block.start) for grid, block in each])
            if any(grid.offset for grid in grids):
                self.offsets = torch.tensor([grid.offset for grid in grids], device=device)
        self._is_whole = size == length and not any(block.start for block in blocks)
        self.sample = self._seen if self._is_whole else self._seen.gather(1, self._places)

    def places_of(self, positions: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Convert positions in the blocks to positions in the windows; those given as `-p - 1` keep this form."""
        if self._is_whole:
            return positions
        stand = self.places_at(torch.where(positions < 0, ~positions, positions), rows)
        return torch.where(positions < 0, ~stand, stand)

    def places_at(self, columns: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Convert columns of the blocks, none of them negative, to positions in the windows."""
        return columns if self._is_whole else at_rows(self._places, rows).gather(1, columns)

    def without_ended(self, sample: Tensor, ends: Sequence[int], from_places: Tensor) -> Tensor:
        """The sample without the masks of rows that have ended: what stands behind an end of text is cut off.

        Args:
            sample: the blocks, int64 `(batch_size, size)`.
            ends: tokens that end a text.
            from_places: the first position at which one may end each window, int64 `(batch_size,)`.

        Returns:
            `sample` itself where no row has just ended. Looking makes the host wait for an accelerator.
        """
        masked = sample == self.mask_token_id
        ended = torch.isin(sample, sample.new_tensor(list(ends))) & (self._places >= from_places[:, None])
        before = masked.long().cumsum(-1) == 0  # a mask before the end may become one itself
        just = (ended & before).any(-1) & masked.any(-1)
        return sample.masked_fill(masked & just[:, None], ends[0]) if bool(just.any()) else sample

    def block_places(self, rows: Tensor | slice) -> Tensor | None:
        """Where the blocks of `rows` stand in their windows, int64 `(num_rows, size)`; None if they are the windows."""
        return None if self._is_whole else self._places[rows]

    def with_blocks(self, tokens: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """The windows of `rows` if their blocks hold `tokens`, int64 `(num_rows, size)`; int64 `(num_rows, L)`."""
        if self._is_whole:
            return tokens
        return at_rows(self._seen, rows).scatter(1, at_rows(self._places, rows), tokens)

    def masked(self, windows: Tensor) -> Tensor:
        """Which positions of windows are masked, bool `(num_rows, L)`."""
        return windows == self.mask_token_id

    def without_prompt(self, windows: Tensor, rows: Tensor | slice) -> Tensor:
        """The windows of `rows` with masks for the `hidden` tokens."""
        return windows if self._hidden is None else windows.masked_fill(self._hidden[rows], self.mask_token_id)

    def filled(self, sample: Tensor) -> list[Tensor]:
        """The windows with `sample` in their blocks."""
        filled = sample if self._is_whole else self._seen.scatter(1, self._places, sample)
        return [ids[:length] for ids, length in zip(filled, self._lengths, strict=True)]


def first(wanted: Tensor) -> int:
    """The index of the first True; the length if there is none."""
    found = wanted.nonzero()
    return int(found[0]) if len(found) else len(wanted)
