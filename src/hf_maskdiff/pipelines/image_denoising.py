"""The denoiser of images as the loop calls it: of which class or text, guided and cached."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..caching import CacheSwitch, places_of
from ..schedulers import EmbeddingNoise
from .calls import CallCaches, GuidanceScale, PipelineCall, as_pair
from .image_conditions import COND, UNCOND, ImageCondition
from .looking_ahead import require_no_cache
from .planned_passes import PlannedPasses
from .step_logits import StepLogits, StepRows


class ImageDenoiser:
    """Logits of codes, as the loop asks for them; its caches end with it.

    Args:
        caching: the pipeline's switch; it knows the model.
        condition: what each image shall show.
        call: says how strongly to guide; learns which step runs.
        batch_size: number of images.

    Raises:
        ValueError: the scheduler looks ahead while a cache of diffusers is on.
    """

    def __init__(self, caching: CacheSwitch, condition: ImageCondition, call: PipelineCall, batch_size: int) -> None:
        require_no_cache(call.scheduler, caching.cache_of_diffusers)
        self.transformer, self.condition, self.call = caching.model, condition, call
        self._plan, self._caches = caching.plan, CallCaches(caching)
        self._unfinished = list(range(batch_size))
        self._planned: PlannedPasses | None = None
        self._noise: EmbeddingNoise | None = None

    @property
    def guidance(self) -> GuidanceScale:
        """How strongly the logits are guided; a callback may change it."""
        return self.call.guidance_scale

    def pass_of_step(self, sample: Tensor, t: Tensor, now: StepRows) -> StepLogits:
        """The logits of the images that need a pass; the plan says what is computed for them."""
        if not self.condition.takes_noise:
            now.require_no_noise()
        self._noise = now.embedding_noise
        rows, of_rows = now.index(len(sample), sample.device), torch.tensor(now.rows)
        tokens = sample.flatten(1)[rows]
        masked = sample.flatten(1) == self.call.scheduler.config.mask_token_id
        if self._planned is None:
            self._num_masks = masked.sum(-1)
            self._planned = PlannedPasses.over_whole_rows(self._plan, self.call.scheduler, masked)
        chosen = None
        if now.choice is not None:
            chosen = torch.where(now.choice.valid, now.choice.positions, ~now.choice.positions)[rows]
        latest = (masked[rows], now.remaining[of_rows], now.put_back)
        queries = self._planned.next(now.step, rows, of_rows, *latest, chosen)
        self._unfinished = now.unfinished
        if queries is not None and self._runs_without(t) and self._caches.lack(UNCOND, now.rows):
            queries = None  # a callback has switched guidance on
        if queries is None:
            values = self._guided(t, sample[rows], rows, now.rows)
            if isinstance(rows, slice):
                return StepLogits(values)
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        else:
            positions = queries.positions
            values = self._guided(t, tokens.gather(1, places_of(positions)), rows, now.rows, positions)
        first = torch.arange(len(sample), device=tokens.device)[rows, None] * tokens.shape[1]
        return StepLogits(values, torch.where(positions < 0, -1, first + positions), now.rows)

    def __call__(self, tokens: Tensor, t: Tensor, rows: Tensor | slice, positions: Tensor | None = None) -> Tensor:
        """Logits `(num_rows, L, codebook_size)` of the codes, or of those at `positions`.

        A pass with `positions` continues what the last pass of the step has stored; one without stores nothing.
        """
        return self._guided(t, tokens, rows, None if positions is None else self._unfinished, positions)

    def _guided(
        self, t: Tensor, tokens: Tensor, rows: Tensor | slice, stored: list[int] | None, positions: Tensor | None = None
    ) -> Tensor:
        self.call.current_timestep = t  # diffusers' caches ask for it
        noise = {} if self._noise is None else {"embedding_noise": self._noise.of_rows(rows)}
        steps_left = self._steps_left(t, rows)

        def logits(context: str) -> Tensor:
            arguments, named = self.condition.arguments(context, rows, steps_left)
            return self._pass(context, (tokens, *arguments), named | noise, stored, positions)

        cond = logits(COND)
        if not self._runs_without(t):
            self._caches.forget(UNCOND)
            return cond
        uncond = logits(UNCOND)
        if not self.call.scheduler.steps_by_masks and self.call.guidance_scale_at(t) <= 1:
            return cond
        return self.call.guided(uncond, cond, t, self._num_masks[rows], least=1)

    def _steps_left(self, t: Tensor, rows: Tensor | slice) -> float | Tensor:
        """How many steps follow this one; where each row takes as many steps as it has masks, one number for each."""
        scheduler = self.call.scheduler
        if not scheduler.steps_by_masks:
            return self.call.steps_left_after(t)
        step = round((1 - float(t)) * (scheduler.num_inference_steps or 1))
        return (self._num_masks[rows] - 1 - step).clamp(min=0).float()

    def _runs_without(self, t: Tensor) -> bool:
        """Whether the step needs the pass without the condition, for its logits or for what later steps read of it."""
        in_all_steps = self._plan is not None or self.call.scheduler.steps_by_masks
        highest = max(as_pair(self.call.guidance_scale)) if in_all_steps else self.call.guidance_scale_at(t)
        return self.condition.is_given and highest > 1

    def _pass(
        self,
        context: str,
        arguments: tuple[Any, ...],
        named: dict[str, Any],
        stored: list[int] | None,
        positions: Tensor | None,
    ) -> Tensor:
        """A pass of the rows `stored`, which the stores of the run follow; None for a pass apart from them."""

        def forward(caching: dict[str, Any]) -> Tensor:
            return self.transformer(*arguments, return_dict=False, **caching, **named)[0]

        with self.transformer.cache_context(context):  # diffusers' own caches read it
            if stored is None:
                return forward(self._caches.apart())
            return self._caches.run(context, stored, self._unfinished, positions, forward)
