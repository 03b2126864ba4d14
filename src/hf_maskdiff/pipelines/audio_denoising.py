"""The runs of the loop in one call of the audio pipeline: coarse codebooks first, window after window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..caching import CacheSwitch
from ..sampling import Generators
from .audio_conditions import AudioCondition
from .audio_windows import put, seen, windows
from .call_progress import CallProgress
from .calls import PipelineCall
from .denoising import StepCallback, denoise
from .image_denoising import ImageDenoiser


@dataclass(frozen=True)
class Stage:
    """The codebooks that one model draws.

    Args:
        switch: knows the model and its caches.
        own: its codebooks.
        given: the codebooks that it is given; none of them may hold a mask.
        num_inference_steps: of each window.
        classes, no_class, labels_given: see `AudioCondition`.
    """

    switch: CacheSwitch
    own: slice
    given: slice | None
    num_inference_steps: int
    classes: Tensor | None = None
    no_class: int = 0
    labels_given: bool = False

    def condition(self, codes: Tensor, starts: Tensor, length: int) -> AudioCondition:
        """What the model is told of the clips in these windows."""
        given = None if self.given is None else seen(codes[:, self.given], starts, length)
        return AudioCondition(self.classes, self.no_class, self.labels_given, given)


def fill_in(
    stages: Sequence[Stage],
    codes: Tensor,
    call: PipelineCall,
    temperature: Any,
    generator: Generators,
    lengths: tuple[int, int],
    progress_bar: Any,
    on_step_end: StepCallback,
) -> Tensor:
    """Codes without masks; those that are known stay.

    Args:
        stages: in their order; each finds the codebooks that it is given filled in.
        codes: int64 `(batch_size, num_codebooks, num_frames)`, the mask where to draw.
        call: the pipeline's.
        temperature: the choice temperature of the call, see `MaskedDiffusionScheduler.set_timesteps`.
        generator: one for the batch, or one for each clip.
        lengths: frames that a model sees at a time, and how many of them an earlier window shares.
        progress_bar: of the pipeline.
        on_step_end: see `denoise`; it sees the stage's codebooks of the window.
    """
    mask, (length, overlap) = call.scheduler.config.mask_token_id, lengths
    length = min(length, codes.shape[2])
    masked = (codes == mask).cpu()  # the one look at the codes: what a run fills in is known before it begins
    plans = [windows(masked[:, stage.own].any(1), length, min(overlap, length - 1)) for stage in stages]
    num_runs = sum(len(plan) for plan in plans)
    with CallProgress(progress_bar, num_runs, lambda: call.interrupt) as progress:
        for stage, plan in zip(stages, plans, strict=True):
            call.scheduler.set_timesteps(stage.num_inference_steps, temperature)
            for starts in plan:
                if call.interrupt:
                    return codes
                condition = stage.condition(codes, starts, length)
                window = seen(codes[:, stage.own], starts, length)
                filled = _run(stage.switch, condition, window, call, generator, progress, on_step_end)
                codes = codes.clone()
                codes[:, stage.own] = put(codes[:, stage.own], starts, filled)
    return codes


def _run(
    switch: CacheSwitch,
    condition: AudioCondition,
    window: Tensor,
    call: PipelineCall,
    generator: Generators,
    progress: CallProgress,
    on_step_end: StepCallback,
) -> Tensor:
    run = ImageDenoiser(switch, condition, call, len(window))
    try:
        return denoise(
            run,
            call.scheduler,
            window,
            generator,
            partial_cache=switch.partial_cache,
            pass_of_step=run.pass_of_step,
            progress_bar=progress,
            on_step_end=on_step_end,
            interrupted=lambda: call.interrupt,
        )
    finally:  # what diffusers' caches hold is freed, also after an error
        switch.model._reset_stateful_cache()
