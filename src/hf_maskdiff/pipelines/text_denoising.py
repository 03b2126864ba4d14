"""The denoising loop over a batch of windows, with guidance, caching and a count of the passes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..caching import Queries, places_of
from ..denoisers import TextDenoiser
from ..sampling import Generators
from .calls import CallCaches, PipelineCall
from .denoising import StepCallback, denoise
from .planned_passes import PlannedPasses
from .step_logits import StepLogits, StepRows
from .text_windows import WindowBatch


class WindowDenoiser:
    """Maps the blocks of a batch of windows to logits, as the denoising loop requires.

    Args:
        denoiser: the model, and its plan.
        batch: the windows.
        call: gives the guidance scale of each step; records the time of the current step.
        caches: the stores of the call.
        row_ids: the index of each window's sequence in the call.
        passes: counts the full and the partial passes of each sequence of the call, int64 `(2, num_sequences)`;
            updated in place.
        resumed: see `PassState`; None if no row has a block in this call before.
    """

    def __init__(
        self,
        denoiser: TextDenoiser,
        batch: WindowBatch,
        call: PipelineCall,
        caches: CallCaches,
        row_ids: list[int],
        passes: Tensor,
        resumed: Tensor | None = None,
    ) -> None:
        self.denoiser, self.batch, self.call, self.caches = denoiser, batch, call, caches
        self.row_ids, self.passes = row_ids, passes
        self._ids, self._unfinished = torch.tensor(row_ids, device=passes.device), list(range(len(row_ids)))
        resumed = torch.full_like(batch.starts, -1) if resumed is None else resumed
        windows = (
            batch.masked(batch.sample),
            batch.starts,
            batch.ends,
            batch.lengths.cpu(),
            resumed,
            batch.block_starts,
        )
        self._planned = PlannedPasses(denoiser.plan, *windows)
        in_blocks = (batch.sample == batch.mask_token_id).sum(-1)
        self._keeps_all = denoiser.plan is not None and denoiser.plan.outlives_blocks
        self._num_outside = (windows[0].sum(-1) - in_blocks).cpu()

    # --- the pass that a step begins with -----------------------------------------------------------------------------

    def pass_of_step(self, sample: Tensor, t: Tensor, now: StepRows) -> StepLogits:
        """The logits of those positions of the blocks that the step may reveal; the plan says what is computed."""
        batch, device = self.batch, sample.device
        rows = now.index(len(sample), device)
        tokens, of_rows = sample[rows], torch.tensor(now.rows)
        if now.choice is None:
            # Masked positions first; a row with fewer of them is filled up with known ones, whose logits nobody reads.
            masked = tokens == batch.mask_token_id
            columns = (~masked).long().argsort(dim=1, stable=True)[:, : int(now.remaining[of_rows].max())]
            wanted = masked.gather(1, columns)
        else:
            columns, wanted = now.choice.positions[rows], now.choice.valid[rows]
        first = torch.arange(len(sample), device=device)[rows, None] * sample.shape[1]
        places = torch.where(wanted, first + columns, -1)

        num_masked = self._num_outside[of_rows] + now.remaining[of_rows]
        queries = self._planned.next(now.step, rows, of_rows, batch.masked(tokens, rows), num_masked)
        at = batch.places_of(columns, rows)
        values = self._guided(t, lambda context: self._computed(context, tokens, t, rows, now, queries, at))
        self._unfinished = now.unfinished
        self.passes[0 if queries is None else 1, self._ids[rows]] += 1
        return StepLogits(values, places, now.rows)

    def _computed(
        self,
        context: str,
        tokens: Tensor,
        t: Tensor,
        rows: Tensor | slice,
        now: StepRows,
        queries: Queries | None,
        at: Tensor,
    ) -> Tensor:
        ids = self.batch.seen(tokens, rows, with_prompt=context == "cond")
        arguments: dict[str, Any] = {**self._sequences(rows), "logits_at": at}
        positions = None
        if queries is not None:
            positions, places = queries.positions, places_of(queries.positions)
            columns = torch.zeros_like(ids).scatter_(
                1, places, torch.arange(places.shape[1], device=ids.device).expand_as(places)
            )
            arguments |= {"logits_at": columns.gather(1, at), "num_runs": queries.num_runs}
            arguments |= {"length": self.batch.length}
            ids = ids.gather(1, places)
        return self._run(context, t, ids, now.rows, now.unfinished, positions, arguments)

    # --- passes of groups ---------------------------------------------------------------------------------------------

    def __call__(self, tokens: Tensor, t: Tensor, rows: Tensor | slice, positions: Tensor | None = None) -> Tensor:
        """Logits `(num_rows, n, vocab_size)` of the blocks' tokens, or of those at `positions`.

        A pass with `positions` continues what the last pass of the step has stored; one without stores nothing.
        """
        if positions is None:
            # A row that has drawn all its tokens waits for the others' groups.
            self.passes[0, self._ids[rows]] += (tokens == self.batch.mask_token_id).any(-1)
            return self._guided(t, lambda context: self._apart(context, tokens, t, rows))
        # A row without valid positions gets its tokens from full passes.
        self.passes[1, self._ids[rows]] += (positions >= 0).any(-1)
        stand, held = self.batch.places_of(positions, rows), self._unfinished
        arguments = {**self._sequences(rows), "length": self.batch.length}
        return self._guided(t, lambda context: self._run(context, t, tokens, held, held, stand, arguments))

    def _apart(self, context: str, tokens: Tensor, t: Tensor, rows: Tensor | slice) -> Tensor:
        ids = self.batch.seen(tokens, rows, with_prompt=context == "cond")
        at = self.batch.block_places(rows)
        with self.denoiser.cache_context(context):
            return self.denoiser(ids, t, **self._sequences(rows), logits_at=at, **self.caches.apart())

    # --- both ---------------------------------------------------------------------------------------------------------

    def _run(
        self,
        context: str,
        t: Tensor,
        ids: Tensor,
        rows: list[int],
        unfinished: list[int],
        positions: Tensor | None,
        arguments: dict[str, Any],
    ) -> Tensor:
        # Rows that have finished this block are needed in the next one by a plan that outlives blocks.
        kept = range(len(self.row_ids)) if self._keeps_all else unfinished
        passed, held = ([self.row_ids[row] for row in some] for some in (rows, kept))
        with self.denoiser.cache_context(context):  # diffusers' own caches need the context's name
            return self.caches.run(
                context, passed, held, positions, lambda stored: self.denoiser(ids, t, **arguments, **stored)
            )

    def _guided(self, t: Tensor, run: Callable[[str], Tensor]) -> Tensor:
        self.call.current_timestep = t  # diffusers' caches read it
        logits = run("cond")
        scale = self.call.guidance_scale_at(t)
        return logits if scale == 1 else run("uncond").lerp_(logits, scale)

    def _sequences(self, rows: Tensor | slice) -> dict[str, Any]:
        """What the model is told of the windows: what pads them, and where their blocks begin."""
        told = {"attention_mask": self.batch.attention_mask, "offsets": self.batch.offsets}
        return {name: None if value is None else value[rows] for name, value in told.items()}


def fill_in(
    denoiser: TextDenoiser,
    batch: WindowBatch,
    call: PipelineCall,
    generator: Generators,
    caches: CallCaches,
    passes: Tensor,
    row_ids: list[int],
    resumed: Tensor | None = None,
    *,
    progress_bar: Callable[..., AbstractContextManager],
    on_step_end: StepCallback,
    without_ended: Callable[[Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """Fill in the blocks of a batch of windows; returns the windows.

    Args:
        denoiser, batch, call, caches, row_ids, passes, resumed: see `WindowDenoiser`.
        generator: one for the batch, or one for each window.
        progress_bar, on_step_end, without_ended: see `denoise`.
    """
    run = WindowDenoiser(denoiser, batch, call, caches, row_ids, passes, resumed)
    try:
        sample = denoise(
            run,
            call.scheduler,
            batch.sample,
            generator,
            reuse_logits=not denoiser.time_conditioning,
            partial_cache=denoiser.partial_cache,
            pass_of_step=run.pass_of_step,
            lengths=batch.lengths,
            progress_bar=progress_bar,
            on_step_end=on_step_end,
            without_ended=without_ended,
            interrupted=lambda: call.interrupt,
        )
    finally:  # free the memory of diffusers' caches, also after an error
        denoiser._reset_stateful_cache()
    return batch.filled(sample)
