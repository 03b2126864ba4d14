"""The denoising loop over a batch of windows, with guidance, caching and a count of the passes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..caching import Queries, places_of
from ..denoisers import TextDenoiser
from ..denoisers.transformers_pass import is_compiled
from ..sampling import Generators, first_rows, ranks
from .calls import CallCaches, GuidanceScale, PipelineCall, as_pair
from .denoising import StepCallback, denoise
from .looking_ahead import require_no_cache
from .planned_passes import PlannedPasses
from .step_logits import StepLogits, StepRows, at_rows
from .text_windows import WindowBatch

# "cond" sees the prompt, "uncond" does not.
Contexts = tuple[str, ...]


class WindowDenoiser:
    """Maps the blocks of a batch of windows to logits, as the denoising loop requires.

    Args:
        denoiser: the model, and its plan.
        batch: the windows.
        call: gives the guidance scale of each step, and the rules of logits; records the time of the current step.
        caches: the stores of the call.
        row_ids: the index of each window's sequence in the call.
        passes: counts the full and the partial passes of each sequence of the call, int64 `(2, num_sequences)`;
            updated in place.
        resumed: see `PassState`; None if no row has a block in this call before.

    Raises:
        ValueError: the scheduler looks ahead, or reads more than the plan computes, while a cache is on.
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
        require_no_cache(call.scheduler, denoiser.cache_of_diffusers)
        self.denoiser, self.batch, self.call, self.caches = denoiser, batch, call, caches
        self.row_ids, self.passes = row_ids, passes
        self._contexts: Contexts = ()
        self._began = batch.sample  # the tokens that the step begins with
        self._ids, self._unfinished = torch.tensor(row_ids, device=passes.device), list(range(len(row_ids)))
        self._ones = torch.ones_like(self._ids)
        resumed = torch.full_like(batch.starts, -1) if resumed is None else resumed
        windows = (
            batch.masked(batch.with_blocks(batch.sample)),
            batch.starts,
            batch.ends,
            batch.lengths.cpu(),
            resumed,
            batch.block_starts,
        )
        self._planned = PlannedPasses(denoiser.plan, call.scheduler, *windows)
        in_blocks = self._num_masks = (batch.sample == batch.mask_token_id).sum(-1)
        self._keeps_all = denoiser.plan is not None and denoiser.plan.outlives_blocks
        self._num_outside = (windows[0].sum(-1) - in_blocks).cpu()

    @property
    def guidance(self) -> GuidanceScale:
        """How strongly the logits are guided; a callback may change it."""
        return self.call.guidance_scale

    # --- the pass that a step begins with -----------------------------------------------------------------------------

    def pass_of_step(self, sample: Tensor, t: Tensor, now: StepRows) -> StepLogits:
        """The logits of those positions of the blocks that the step may reveal; the plan says what is computed."""
        now.require_no_noise()
        batch, device, contexts = self.batch, sample.device, self._contexts_at(t)
        self._began = sample
        if self.denoiser.plan is not None and contexts != self._contexts:  # of a new context nothing is stored
            now = replace(now, step=0, rows=now.unfinished)
            if not self.caches.keep_only(_name(contexts)):
                self._planned.forget_resumed()
        self._contexts = contexts
        rows = now.index(len(sample), device)
        of_rows = rows if isinstance(rows, slice) else torch.tensor(now.rows)
        windows = batch.with_blocks(at_rows(sample, rows), rows)
        if now.choice is None:
            # What is read first; a row with less of it is filled up with other positions, whose logits nobody reads.
            wanted = at_rows(now.read, rows)
            size, most = wanted.shape[1], int(at_rows(now.num_read, of_rows).max())
            # Of a compiled model all logits are computed: each number of them would be a graph of its own.
            if most == size or is_compiled(self.denoiser.model):
                columns = ranks(size, device).expand(wanted.shape)
            else:
                columns = wanted.long().argsort(dim=1, descending=True, stable=True)[:, :most]
                wanted = wanted.gather(1, columns)
        else:
            columns, wanted = at_rows(now.choice.positions, rows), at_rows(now.choice.valid, rows)
        first = at_rows(first_rows(*sample.shape, device), rows)
        places = torch.where(wanted, first + columns, -1)

        at, queries = batch.places_at(columns, rows), None
        if self.denoiser.plan is not None:
            num_masked = at_rows(self._num_outside + now.remaining, of_rows)
            chosen = None if now.choice is None else torch.where(wanted, at, ~at)
            latest = (batch.masked(windows), num_masked, now.put_back)
            queries = self._planned.next(now.step, rows, of_rows, *latest, chosen)
        values = self._guided(t, rows, lambda contexts: self._computed(contexts, windows, t, rows, now, queries, at))
        values = self._ruled(values, windows, rows)
        self._unfinished = now.unfinished
        self._count(queries, rows)
        return StepLogits(values, places, now.rows)

    def _count(self, queries: Queries | None, rows: Tensor | slice) -> None:
        """Note a pass of some rows, whole or partial."""
        ids = at_rows(self._ids, rows)
        if queries is not None:  # some positions of the batch's longest row may be all positions of another
            is_partial = at_rows(self.batch.lengths, rows) != queries.num_computed
            ids = ids + is_partial * self.passes.shape[1]
        self.passes.view(-1).index_add_(0, ids, at_rows(self._ones, rows))

    def _computed(
        self,
        contexts: Contexts,
        windows: Tensor,
        t: Tensor,
        rows: Tensor | slice,
        now: StepRows,
        queries: Queries | None,
        at: Tensor,
    ) -> Tensor:
        ids = self._seen_in(contexts, windows, rows)
        arguments: dict[str, Any] = {**self._sequences(rows), "logits_at": at}
        if queries is None:
            return self._run(contexts, t, ids, now.rows, now.unfinished, None, arguments)
        arguments |= {"num_runs": queries.num_runs, "length": self.batch.length, "span": queries.span}
        if queries.span is not None:
            start, stop = queries.span
            ids, arguments["logits_at"] = ids[:, start:stop], (at - start).clamp(0, stop - start - 1)
        else:
            places = places_of(queries.positions)
            columns = ids.new_zeros(len(places), ids.shape[1]).scatter_(
                1, places, torch.arange(places.shape[1], device=ids.device).expand_as(places)
            )
            arguments["logits_at"] = columns.gather(1, at)
            ids = ids.gather(1, _repeated(places, contexts))
        return self._run(contexts, t, ids, now.rows, now.unfinished, queries.positions, arguments)

    # --- passes of groups ---------------------------------------------------------------------------------------------

    def __call__(self, tokens: Tensor, t: Tensor, rows: Tensor | slice, positions: Tensor | None = None) -> Tensor:
        """Logits `(num_rows, n, vocab_size)` of the blocks' tokens, or of those at `positions`.

        A pass with `positions` continues what the last pass of the step has stored; one without stores nothing.
        """
        if positions is None:
            # A row that has drawn all its tokens waits for the others' groups. Of one that looks ahead there are more.
            needed = (tokens == self.batch.mask_token_id).any(-1).long()
            self.passes[0].index_put_((self._ids[rows],), needed, accumulate=True)
            if self.denoiser.plan is None:
                self._contexts = self._contexts_at(t)
            windows = self.batch.with_blocks(tokens, rows)
            values = self._guided(t, rows, lambda contexts: self._apart(contexts, windows, t, rows))
            return self._ruled(values, windows, rows)
        # A row without valid positions gets its tokens from full passes.
        self.passes[1, self._ids[rows]] += (positions >= 0).any(-1)
        stand, held = self.batch.places_of(positions, rows), self._unfinished
        arguments = {**self._sequences(rows), "length": self.batch.length}

        def run(contexts: Contexts) -> Tensor:
            return self._run(contexts, t, _repeated(tokens, contexts), held, held, stand, arguments)

        values = self._guided(t, rows, run)
        if not self.call.rules:
            return values
        written = at_rows(self._began, rows).scatter(1, places_of(positions), tokens)
        return self._ruled(values, self.batch.with_blocks(written, rows), rows)

    def _apart(self, contexts: Contexts, windows: Tensor, t: Tensor, rows: Tensor | slice) -> Tensor:
        ids = self._seen_in(contexts, windows, rows)
        given = {**self._sequences(rows), "logits_at": self.batch.block_places(rows)}
        arguments = {name: _repeated(value, contexts) for name, value in given.items()}
        with self.denoiser.cache_context(contexts[0]):
            return self.denoiser(ids, self._times(t, rows, contexts), **arguments, **self.caches.apart())

    # --- both ---------------------------------------------------------------------------------------------------------

    def _seen_in(self, contexts: Contexts, windows: Tensor, rows: Tensor | slice) -> Tensor:
        """What the model is given of the windows of `rows`, once for each context."""
        if contexts == ("cond",):
            return windows
        return torch.cat([windows if one == "cond" else self.batch.without_prompt(windows, rows) for one in contexts])

    def _run(
        self,
        contexts: Contexts,
        t: Tensor,
        ids: Tensor,
        rows: list[int],
        unfinished: list[int],
        positions: Tensor | None,
        arguments: dict[str, Any],
    ) -> Tensor:
        # Rows that have finished this block are needed in the next one by a plan that outlives blocks. Rows of the
        # second context are further rows of the store.
        kept = list(range(len(self.row_ids))) if self._keeps_all else unfinished
        starts = [k * self.passes.shape[1] for k in range(len(contexts))]
        passed, held = ([start + self.row_ids[row] for start in starts for row in some] for some in (rows, kept))
        given = {name: _repeated(value, contexts) for name, value in arguments.items()}
        queries = None if positions is None else _repeated(positions, contexts)
        times = self._times(t, rows, contexts)
        with self.denoiser.cache_context(contexts[0]):  # diffusers' own caches need the context's name
            return self.caches.run(
                _name(contexts), passed, held, queries, lambda stored: self.denoiser(ids, times, **given, **stored)
            )

    def _times(self, t: Tensor, rows: Tensor | slice | list[int], contexts: Contexts) -> Tensor:
        """The time that the model is told: the step's, or each row's own where rows take as many steps as masks."""
        scheduler = self.call.scheduler
        if not (scheduler.steps_by_masks and self.denoiser.time_conditioning):
            return t
        step = round((1 - float(t)) * (scheduler.num_inference_steps or 1))
        return _repeated((1 - step / self._num_masks[rows].double()).clamp(min=0).float(), contexts)

    def _contexts_at(self, t: Tensor) -> Contexts:
        """With the prompt, and for guidance without it; a plan needs both in all steps of a call, or in none."""
        call = self.call
        guides = call.guides_at(t) if self.denoiser.plan is None else set(as_pair(call.guidance_scale)) != {1}
        return ("cond", "uncond") if guides else ("cond",)

    def _guided(self, t: Tensor, rows: Tensor | slice, run: Callable[[Contexts], Tensor]) -> Tensor:
        """Guided logits; with a plan both contexts are one batch, as passes over few positions cost little more so."""
        self.call.current_timestep = t  # diffusers' caches read it
        contexts = self._contexts
        if len(contexts) == 1:
            return run(contexts)
        if self.denoiser.plan is None:
            logits = run(("cond",))
            without_prompt = run(("uncond",))
        else:
            logits, without_prompt = run(contexts).chunk(2)
        return self.call.guided(without_prompt, logits, t, self._num_masks[rows])

    def _ruled(self, logits: Tensor, windows: Tensor, rows: Tensor | slice) -> Tensor:
        """Logits as the scheduler is to read them."""
        if not self.call.rules:
            return logits
        seen = self.batch.attention_mask
        return self.call.rules(logits, windows, None if seen is None else at_rows(seen, rows))

    def _sequences(self, rows: Tensor | slice) -> dict[str, Any]:
        """What the model is told of the windows: what pads them, and where their blocks begin."""
        told = {"attention_mask": self.batch.attention_mask, "offsets": self.batch.offsets}
        return {name: None if value is None else at_rows(value, rows) for name, value in told.items()}


def _name(contexts: Contexts) -> str:
    """What the store of these contexts is called."""
    return "+".join(contexts)


def _repeated(value: Any, contexts: Contexts) -> Any:
    """A tensor's rows once for each context; anything else as it is."""
    return torch.cat([value] * len(contexts)) if isinstance(value, Tensor) and len(contexts) > 1 else value


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
    start, end = as_pair(call.guidance_scale)
    try:
        sample = denoise(
            run,
            call.scheduler,
            batch.sample,
            generator,
            reuse_logits=not denoiser.time_conditioning and start == end,
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
