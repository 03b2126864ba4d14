"""The sequences of one call of a text pipeline, filled in part by part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..denoisers import TextDenoiser
from ..sampling import Generators
from .call_progress import CallProgress
from .calls import PipelineCall
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
        left = (self.sequences, self._mask_token_id, self._lengths, lambda: call.interrupt, self._grids)
        with CallProgress.over(progress_bar, *left) as progress:
            while not call.interrupt and (rows := self._unfinished()):
                own = [generator[row] for row in rows] if isinstance(generator, Sequence) else generator
                self._fill_parts(rows, denoiser, call, own, progress, on_step_end, stream)

    def _unfinished(self) -> list[int]:
        return [row for row, ids in enumerate(self.sequences) if bool((ids == self._mask_token_id).any())]

    def _fill_parts(
        self,
        rows: list[int],
        denoiser: TextDenoiser,
        call: PipelineCall,
        generator: Generators,
        progress: CallProgress,
        on_step_end: StepCallback,
        stream: InOrder | None,
    ) -> None:
        """Fill in the next part of each of these sequences."""
        grids = [None if self._grids is None else self._grids[row] for row in rows]
        parts = [
            next_part(self.sequences[row], self._mask_token_id, *self._lengths, grid)
            for row, grid in zip(rows, grids, strict=True)
        ]
        batch = WindowBatch(
            [self.sequences[row][part.window] for row, part in zip(rows, parts, strict=True)],
            [part.block for part in parts],
            [self._prompts[row][part.window] for row, part in zip(rows, parts, strict=True)],
            self._mask_token_id,
            [grid.within(part.window.start) for grid, part in zip(grids, parts, strict=True) if grid is not None]
            or None,
        )
        stopping = torch.tensor([self._stops[row] for row in rows])
        never = torch.iinfo(torch.int64).max
        may_end = torch.tensor(
            [
                max(self._first_masks[row] - part.window.start, 0) if self._stops[row] else never
                for row, part in zip(rows, parts, strict=True)
            ],
            device=self.passes.device,
        )

        def on_step_end_shown(i: int, t: Tensor, sample: Tensor) -> Tensor:
            sample = on_step_end(i, t, sample)
            if self._ends and bool(stopping.any()):
                sample = batch.with_ends(sample, self._ends, may_end)
            if stream is not None:
                stream.show(self._with(rows[0], parts[0], batch.filled(sample)[0]))
            return sample

        row_ids = torch.tensor(rows, device=self.passes.device)
        arguments = (denoiser, batch, call, generator, self.passes, row_ids)
        filled = fill_in(*arguments, progress_bar=progress, on_step_end=on_step_end_shown)
        for row, part, ids in zip(rows, parts, filled, strict=True):
            self.sequences[row] = self._with(row, part, ids)

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
