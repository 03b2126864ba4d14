"""The sequences of one call of a text pipeline, filled in part by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..denoisers import TextDenoiser
from ..sampling import Generators
from .call_progress import CallProgress
from .calls import CallCaches, PipelineCall
from .denoising import StepCallback
from .streaming import InOrder
from .text_denoising import fill_in
from .text_output import cut_at_end
from .text_prompts import EncodedPrompt
from .text_windows import BlockGrid, Part, WindowBatch, first, next_part


class TextRun:
    """Fills in all sequences of a call; those that still hold masks share a batch, each at its own part.

    Args:
        prepared: the encoded prompt of each sequence, masks included.
        is_chat: whether each is the answer to a chat, which comes back without the prompt.
        stops: whether each ends with the first end of text after its prompt.
        ends: tokens that end a text.
        lengths: `model_length`, `stride` and `block_length` of `next_part`.
        mask_token_id: the token at places to fill in.
        device: where the model runs.
        grid: makes the blocks that the model sees of the length of a prompt; None for a model that sees everything.

    Attributes:
        sequences: the tokens so far, int64 `(length,)` each.
        passes: full and partial passes of each sequence, int64 `(2, num_sequences)`.
    """

    def __init__(
        self,
        prepared: Sequence[EncodedPrompt],
        is_chat: Sequence[bool],
        stops: Sequence[bool],
        ends: Sequence[int],
        lengths: tuple[int | None, int | None, int | None],
        mask_token_id: int,
        device: torch.device,
        grid: Callable[[int], BlockGrid] | None = None,
    ) -> None:
        self.sequences = [one.ids.to(device).clone() for one in prepared]
        # What a pass without the prompt does not see; special tokens around a text are not the user's.
        self._prompts = [(one.ids != mask_token_id).logical_and(one.is_text()).to(device) for one in prepared]
        self._first_masks = [first(ids == mask_token_id) for ids in self.sequences]
        self._is_chat, self._stops, self._ends = is_chat, stops, ends
        self._lengths, self._mask_token_id = lengths, mask_token_id
        self._grids = None if grid is None else [grid(length) for length in self._first_masks]
        self.passes = torch.zeros(2, len(prepared), dtype=torch.int64, device=device)
        self._latest_parts: list[Part | None] = [None] * len(prepared)

    def fill(
        self,
        denoiser: TextDenoiser,
        call: PipelineCall,
        generator: Generators,
        progress_bar: Any,
        on_step_end: StepCallback,
        stream: InOrder | None = None,
    ) -> None:
        """Fill in part after part, until no sequence holds a mask or the call is interrupted.

        Args:
            denoiser: the model.
            call: the pipeline's call.
            generator: one for the batch, or one for each sequence.
            progress_bar: of the pipeline.
            on_step_end: see `denoise`.
            stream: is shown the sequence, the only one, before the first step and after each.
        """
        if stream is not None:
            stream.show(self.sequences[0])
        caches = CallCaches(denoiser)
        left = (self.sequences, self._mask_token_id, self._lengths, lambda: call.interrupt, self._grids)
        with CallProgress.over(progress_bar, *left) as progress:
            while not call.interrupt and (rows := self._unfinished()):
                own = [generator[row] for row in rows] if isinstance(generator, Sequence) else generator
                self._fill_parts(rows, denoiser, call, own, caches, progress, on_step_end, stream)

    def _unfinished(self) -> list[int]:
        masked = torch.stack([(ids == self._mask_token_id).any() for ids in self.sequences]).tolist()
        return [row for row, is_masked in enumerate(masked) if is_masked]

    def _fill_parts(
        self,
        rows: list[int],
        denoiser: TextDenoiser,
        call: PipelineCall,
        generator: Generators,
        caches: CallCaches,
        progress: CallProgress,
        on_step_end: StepCallback,
        stream: InOrder | None,
    ) -> None:
        """Fill in the next part of each of these sequences."""
        parts, batch = self._next_parts(rows)

        # A sampler that takes tokens back may change what stands in the block until it is finished.
        num_final = parts[0].window.start + parts[0].block.start if call.scheduler.revises else None

        def on_step_end_shown(i: int, t: Tensor, sample: Tensor) -> Tensor:
            sample = on_step_end(i, t, sample)
            if stream is not None:
                stream.show(self._with(rows[0], parts[0], batch.filled(sample)[0]), num_final)
            return sample

        resumed = [self._resumed(row, part) for row, part in zip(rows, parts, strict=True)]
        arguments = (denoiser, batch, call, generator, caches, self.passes, rows, torch.tensor(resumed))
        ended = self._ending(rows, parts, batch)
        filled = fill_in(*arguments, progress_bar=progress, on_step_end=on_step_end_shown, without_ended=ended)
        for row, part, ids in zip(rows, parts, filled, strict=True):
            self.sequences[row], self._latest_parts[row] = self._with(row, part, ids), part
        if stream is not None and num_final is not None:
            stream.show(self.sequences[0])

    def _next_parts(self, rows: list[int]) -> tuple[list[Part], WindowBatch]:
        """The next part of each of these sequences, and their windows as a batch."""
        grids = [None] * len(rows) if self._grids is None else [self._grids[row] for row in rows]
        parts = [
            next_part(self.sequences[row], self._mask_token_id, *self._lengths, grid)
            for row, grid in zip(rows, grids, strict=True)
        ]
        each = list(zip(rows, parts, grids, strict=True))
        batch = WindowBatch(
            [self.sequences[row][part.window] for row, part, _ in each],
            [part.block for part in parts],
            [self._prompts[row][part.window] for row, part, _ in each],
            self._mask_token_id,
            None if self._grids is None else [grid.within(part.window.start) for _, part, grid in each if grid],
        )
        return parts, batch

    def _ending(self, rows: list[int], parts: list[Part], batch: WindowBatch) -> Callable[[Tensor], Tensor] | None:
        """Takes the masks out of rows that have ended; None if none of these rows ends before its last position."""
        if not self._ends or not any(self._stops[row] for row in rows):
            return None
        never = torch.iinfo(torch.int64).max
        first_ends = [
            self._first_masks[row] - part.window.start if self._stops[row] else never
            for row, part in zip(rows, parts, strict=True)
        ]
        places = torch.tensor(first_ends, device=batch.sample.device)
        return lambda sample: batch.without_ended(sample, self._ends, places)

    def _resumed(self, row: int, part: Part) -> int:
        """Where the block before began in the window; -1 if there was none, or if the window has moved since."""
        latest = self._latest_parts[row]
        if latest is None or latest.window.start != part.window.start:
            return -1
        start = latest.block.start
        return start if self._grids is None else self._grids[row].within(part.window.start).start_of(start)

    def _with(self, row: int, part: Part, ids: Tensor) -> Tensor:
        """A sequence with these tokens in its part's window, up to its end of text."""
        sequence = self.sequences[row].clone()
        sequence[part.window] = ids
        if not self._stops[row]:
            return sequence
        return cut_at_end(sequence, self._ends, self._first_masks[row], self._mask_token_id)

    def written(self) -> list[Tensor]:
        """What of each sequence is shown as text: all of it, of a chat the answer alone."""
        starts = [length if chat else 0 for chat, length in zip(self._is_chat, self._first_masks, strict=True)]
        return [ids[start:] for ids, start in zip(self.sequences, starts, strict=True)]
