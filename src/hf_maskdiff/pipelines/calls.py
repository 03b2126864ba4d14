"""The state of one call of a pipeline, kept apart so that several threads may call the pipeline at the same time."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ..schedulers import MaskedDiffusionScheduler
from ..schedulers.checks import is_number, require
from .guidance import GuidanceScale, as_pair, share_of_rise
from .logits_rules import LogitsRules


class PipelineCall:
    """The state of one call, which later calls and calls in other threads do not see.

    Args:
        scheduler: the pipeline's scheduler. The call runs on a copy with its own timesteps; the pipeline's scheduler
            shows the timesteps of the latest call.
        num_inference_steps: see `MaskedDiffusionScheduler.set_timesteps`.
        temperature: the choice temperature, see `MaskedDiffusionScheduler.set_timesteps`.
        guidance_scale: one number for all steps, or a rise, see `share_of_rise`.
        sampling_temperature: the temperature at which tokens are drawn; 0 always takes the most probable token; None
            keeps the scheduler's.
        rules: what happens to logits before the scheduler reads them.

    Raises:
        ValueError: the scheduler cannot use the number of steps or the temperature.

    Attributes:
        scheduler: the copy.
        guidance_scale: as given; a callback may change it for the remaining steps.
        num_timesteps: number of steps run so far.
        current_timestep: the time of the current step; None between calls.
        interrupt: set it to True to stop before the next step.
    """

    def __init__(
        self,
        scheduler: MaskedDiffusionScheduler,
        num_inference_steps: int,
        temperature: float | Sequence[float] | None = None,
        guidance_scale: GuidanceScale = 1.0,
        sampling_temperature: float | None = None,
        rules: LogitsRules | None = None,
    ) -> None:
        if temperature is not None and scheduler.choice_temperature is None:
            raise ValueError(
                f"`temperature` must be left out with a {type(scheduler).__name__} that has no choice temperature, got "
                f"{temperature!r}. Pass `sampling_temperature` for the temperature at which tokens are drawn."
            )
        self._shared = scheduler
        self.scheduler = copy.copy(scheduler)
        if sampling_temperature is not None:
            remedy = "Pass 0 for the most probable tokens, 1 for the model's own distribution."
            valid = is_number(sampling_temperature) and 0 <= sampling_temperature < math.inf
            require(valid, "sampling_temperature", "a number of at least 0", sampling_temperature, remedy)
            self.scheduler = scheduler.with_sampling_temperature(sampling_temperature)
        self.scheduler.set_timesteps(num_inference_steps, temperature)
        self._shared.adopt_run(self.scheduler)
        self.guidance_scale = guidance_scale
        self.rules = LogitsRules() if rules is None else rules
        self.num_timesteps = 0
        self.current_timestep: Tensor | None = None
        self.interrupt = False

    def end_step(self) -> None:
        """Count a step, and update the timesteps that the pipeline's scheduler shows, since a run may change them."""
        self.num_timesteps += 1
        self._shared.adopt_run(self.scheduler)

    def guidance_scale_at(self, timestep: float | Tensor) -> float:
        """The scale of the step at time `timestep`: `start + (end - start) n / (T - 1)` in step n of T, for a pair."""
        start, end = as_pair(self.guidance_scale)
        num_steps = self.scheduler.num_inference_steps or 1
        step = min(round((1 - float(timestep)) * num_steps), num_steps - 1)  # a step at time 0 is as the last one
        return start + (end - start) * float(share_of_rise(self.guidance_scale, step, torch.tensor(num_steps)))

    def steps_left_after(self, timestep: float | Tensor) -> float:
        """How many steps follow the one at time `timestep`: T - 1 in the first of T, and 0 in the last."""
        left = float(timestep) * (self.scheduler.num_inference_steps or 1) - 1
        whole = round(left)
        return max(float(whole) if abs(left - whole) < 1e-3 else left, 0.0)  # times are in float32

    @property
    def may_guide(self) -> bool:
        """Whether the guidance scale of any step of the run is above 1."""
        return max(as_pair(self.guidance_scale)) > 1

    def guides_at(self, timestep: float | Tensor) -> bool:
        """Whether the scale of any row is another than 1 in the step at time `timestep`."""
        if self.scheduler.steps_by_masks:
            return any(scale != 1 for scale in as_pair(self.guidance_scale))
        return self.guidance_scale_at(timestep) != 1

    def guided(
        self,
        without: Tensor,
        logits: Tensor,
        timestep: float | Tensor,
        num_masks: Tensor,
        least: float = -math.inf,
    ) -> Tensor:
        """`without + scale (logits - without)`, written over `without`, with the scale of the step.

        Args:
            without, logits: of the pass without what guides, and of the one with it, `(num_rows, ...)`.
            timestep: of the step.
            num_masks: with how many masks each row began, int64 `(num_rows,)`: where the scheduler takes so many steps,
                a row's scale comes to its end in the row's own last step.
            least: scales below it are taken for it.
        """
        start, end = as_pair(self.guidance_scale)
        if start == end or not self.scheduler.steps_by_masks:
            return without.lerp_(logits, max(self.guidance_scale_at(timestep), least))
        step = round((1 - float(timestep)) * (self.scheduler.num_inference_steps or 1))
        share = share_of_rise(self.guidance_scale, step, num_masks)
        scales = (start + (end - start) * share).clamp(min=least).to(without.dtype)
        return without.lerp_(logits, scales.view(-1, *[1] * (without.ndim - 1)))


# The calls running in this thread, with their pipelines, innermost last: a callback may call another pipeline.
_RUNNING: ContextVar[tuple[tuple[int, PipelineCall], ...]] = ContextVar("running calls", default=())


def _of_the_call(name: str, doc: str) -> Any:
    """A property of a pipeline that reads and sets an attribute of its current call."""

    def get(pipe: CallStateMixin) -> Any:
        return getattr(pipe._call, name)

    def put(pipe: CallStateMixin, value: Any) -> None:
        setattr(pipe._call, name, value)

    return property(get, put, doc=doc)


class CallStateMixin:
    """Gives a pipeline the properties that diffusers' users read and set; each call keeps its own values.

    In a callback they belong to the call that runs the callback; elsewhere to the latest call.
    """

    scheduler: MaskedDiffusionScheduler
    _latest_call: PipelineCall | None = None

    @property
    def _call(self) -> PipelineCall:
        running = [call for pipe, call in _RUNNING.get() if pipe == id(self)]
        if running:
            return running[-1]
        if self._latest_call is None:
            raise AttributeError(f"this {type(self).__name__} has not been called yet. Call it first.")
        return self._latest_call

    @contextmanager
    def _running(self, call: PipelineCall) -> Iterator[PipelineCall]:
        """Inside this context, the pipeline's properties are those of `call`."""
        self._latest_call = call
        token = _RUNNING.set((*_RUNNING.get(), (id(self), call)))
        try:
            yield call
        finally:
            call.current_timestep = None
            _RUNNING.reset(token)

    _num_timesteps = _of_the_call("num_timesteps", "Steps run.")
    _current_timestep = _of_the_call("current_timestep", "The time of the current step.")
    _guidance_scale = _of_the_call("guidance_scale", "A callback may set it for the remaining steps.")
    _interrupt = _of_the_call("interrupt", "Set it to True to stop before the next step.")

    @property
    def num_timesteps(self) -> int:
        """Number of steps run by the latest call; each costs one model pass, or two with guidance."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> Tensor | None:
        """The time of the current step, None between calls; diffusers' caches read it."""
        return self._current_timestep

    @property
    def guidance_scale(self) -> GuidanceScale:
        """The call's guidance scale; a callback may set `pipe._guidance_scale` for the remaining steps."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the guidance scale of any step of the run is above 1."""
        return self._call.may_guide

    def guidance_scale_at(self, timestep: float | Tensor) -> float:
        """The scale of the step at time `timestep`: `start + (end - start) n / (T - 1)` in step n of T."""
        return self._call.guidance_scale_at(timestep)

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in a callback to stop; remaining masks stay visible in the output."""
        return self._interrupt


class CallCaches:
    """The keys and values of one call, for each cache context; they are freed with it.

    Rows are named by their index in the call, so that what one block stores can serve the next. A row that is finished
    leaves the store with the next pass.

    Args:
        denoiser: its `plan` and `partial_cache` say whether passes are cached, and its `new_cache` creates a cache.
    """

    def __init__(self, denoiser: Any) -> None:
        groups = denoiser.partial_cache
        self.are_on = denoiser.plan is not None or (groups is not None and groups.num_substeps > 1)
        self._make = denoiser.new_cache
        self._of_contexts: dict[str, tuple[Any, list[int]]] = {}

    def run(
        self,
        context: str,
        rows: list[int],
        unfinished: list[int],
        positions: Tensor | None,
        forward: Callable[[dict[str, Any]], Tensor],
    ) -> Tensor:
        """Run a pass that fills the store of a context, or reads and completes it.

        Args:
            context: its name.
            rows: the rows of the pass, in its order.
            unfinished: those whose keys and values are still needed; `rows` are among them, in the same order.
            positions: positions of the queries, int64 `(num_rows, K)`; None if the pass computes all positions.
            forward: called with the arguments that concern the cache; returns the logits.
        """
        if not self.are_on:
            return forward({})
        cache, held = self._of_contexts.get(context, (None, []))
        if positions is None and (cache is None or rows == unfinished):
            cache = self._make() if cache is None else cache  # a full pass replaces what it holds, layer by layer
            self._of_contexts[context] = (cache, rows)
            return forward({"cache": cache})
        if held != unfinished and set(unfinished) <= set(held):
            cache = cache.take(_places_in(held, unfinished))
            self._of_contexts[context] = (cache, unfinished)
            held = unfinished
        if rows == held:
            return forward({"cache": cache, "positions": positions})
        # Some rows need no pass now, but will later: theirs stay as they are.
        index = _places_in(held, rows)
        part = self._make() if positions is None else cache.take(index)
        logits = forward({"cache": part} if positions is None else {"cache": part, "positions": positions})
        cache.put(index, part)
        return logits

    def keep_only(self, context: str) -> bool:
        """Drop the stores of other contexts, which miss the passes from here on; returns whether this one is held."""
        self._of_contexts = {name: held for name, held in self._of_contexts.items() if name == context}
        return context in self._of_contexts

    def lack(self, context: str, rows: list[int]) -> bool:
        """Whether the store of a context does not have these rows; then it begins anew with the next pass."""
        lacks = not set(rows) <= set(self._of_contexts.get(context, (None, []))[1])
        if lacks:
            self.forget(context)
        return lacks

    def forget(self, context: str) -> None:
        """Drop the store of a context that takes no part in a pass, and so would be out of date in the next one."""
        self._of_contexts.pop(context, None)

    def apart(self) -> dict[str, Any]:
        """The argument of a full pass that leaves the stores as they are."""
        return {"cache": self._make()} if self.are_on else {}


def _places_in(held: list[int], rows: list[int]) -> Tensor:
    return torch.tensor([held.index(row) for row in rows])
