"""The denoising loop over a batch of windows, with guidance, caching and a count of the passes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from torch import Tensor

from ..denoisers import TextDenoiser
from ..sampling import Generators
from .calls import PassCaches, PipelineCall
from .denoising import StepCallback, denoise
from .text_windows import WindowBatch


class WindowDenoiser:
    """Maps the blocks of a batch of windows to logits, as the denoising loop requires.

    It owns the caches of the run, which are freed with it.

    Args:
        denoiser: the model.
        batch: the windows.
        call: gives the guidance scale of each step; records the time of the current step.
    """

    def __init__(self, denoiser: TextDenoiser, batch: WindowBatch, call: PipelineCall) -> None:
        self.denoiser, self.batch, self.call = denoiser, batch, call
        self._caches = PassCaches(denoiser)

    def __call__(self, tokens: Tensor, t: Tensor, rows: Tensor | slice, positions: Tensor | None = None) -> Tensor:
        """Logits `(num_rows, n, vocab_size)` of the blocks' tokens, or of those at `positions`."""
        self.call.current_timestep = t  # diffusers' caches read it
        logits = self._pass("cond", tokens, t, rows, positions)
        scale = self.call.guidance_scale_at(t)
        if scale == 1:
            return logits
        return self._pass("uncond", tokens, t, rows, positions).lerp_(logits, scale)

    def _pass(self, context: str, tokens: Tensor, t: Tensor, rows: Tensor | slice, positions: Tensor | None) -> Tensor:
        batch = self.batch
        with self.denoiser.cache_context(context):  # diffusers' own caches need the context's name
            offsets = None if batch.offsets is None else batch.offsets[rows]
            if positions is not None:
                arguments = self._caches.arguments(context, rows, batch.places_of(positions))
                return self.denoiser(tokens, t, attention_mask=batch.attention_mask, **arguments)
            ids, at = batch.seen(tokens, rows, with_prompt=context == "cond")
            visible = None if batch.attention_mask is None else batch.attention_mask[rows]
            arguments = self._caches.arguments(context, rows, None)
            return self.denoiser(ids, t, attention_mask=visible, logits_at=at, offsets=offsets, **arguments)


def fill_in(
    denoiser: TextDenoiser,
    batch: WindowBatch,
    call: PipelineCall,
    generator: Generators,
    passes: Tensor,
    row_ids: Tensor,
    *,
    progress_bar: Callable[..., AbstractContextManager],
    on_step_end: StepCallback,
) -> list[Tensor]:
    """Fill in the blocks of a batch of windows; returns the windows.

    Args:
        denoiser: the model.
        batch: the windows and their blocks.
        call: the pipeline's call that this run belongs to.
        generator: one for the batch, or one for each window.
        passes: counts the full and the partial passes of each sequence of the call, int64 `(2, num_sequences)`; updated
            in place.
        row_ids: the index of each window's sequence, int64 `(batch_size,)`.
        progress_bar, on_step_end: see `denoise`.
    """
    run = WindowDenoiser(denoiser, batch, call)

    def counted(tokens: Tensor, t: Tensor, rows: Tensor | slice, positions: Tensor | None = None) -> Tensor:
        if positions is None:  # passes of a finished row are not counted: they change nothing in it
            passes[0, row_ids[rows]] += (tokens == batch.mask_token_id).any(-1)
        else:
            passes[1, row_ids[rows]] += (positions >= 0).any(-1)
        return run(tokens, t, rows, positions)

    try:
        sample = denoise(
            counted,
            call.scheduler,
            batch.sample,
            generator,
            reuse_logits=not denoiser.time_conditioning,
            partial_cache=denoiser.partial_cache,
            lengths=batch.lengths,
            progress_bar=progress_bar,
            on_step_end=on_step_end,
            interrupted=lambda: call.interrupt,
        )
    finally:  # free the memory of diffusers' caches, also after an error
        denoiser._reset_stateful_cache()
    return batch.filled(sample)
