"""A step that is drawn several times, and of which the model says which draw leads on best."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sampling import first_rows
from ..schedulers import Choice, ChooseThenSampleScheduler, MaskedDiffusionScheduler
from .step_input import StepInput
from .step_logits import Denoiser, PassOfStep, StepLogits, StepRows, guidance_of


class StepLookingAhead:
    """Draws a step several times, and takes the best after one pass of all; that pass is the next step's, too.

    Args:
        denoiser: maps tokens to logits.
        scheduler: says how many candidates there are, draws them, and says what each is worth.
    """

    def __init__(self, denoiser: Denoiser, scheduler: ChooseThenSampleScheduler) -> None:
        self.denoiser, self.scheduler, self.memory = denoiser, scheduler, scheduler.new_memory()
        self._taken: Tensor | None = None
        self._seen, self._guidance = StepLogits(torch.empty(0), rows=[]), guidance_of(denoiser)

    def ahead(self, step: StepInput) -> None:
        """Nothing is chosen before the logits are there."""

    def passes(self, pass_of_step: PassOfStep) -> PassOfStep:
        """The passes that steps begin with: of tokens that were seen when they were chosen there need be no other.

        Unless a callback has changed the tokens, or how strongly they are guided. Rows may have ended meanwhile.
        """

        def seen_or_new(sample: Tensor, t: Tensor, now: StepRows) -> StepLogits:
            seen, taken, self._seen = self._seen, self._taken, StepLogits(torch.empty(0), rows=[])
            is_as_seen = set(now.rows) <= set(seen.rows or []) and guidance_of(self.denoiser) == self._guidance
            if taken is None or not is_as_seen or not _equal_in(now.rows, taken, sample):
                return pass_of_step(sample, t, now)
            return seen.of_rows(now.rows)

        return seen_or_new

    def __call__(self, logits: StepLogits, step: StepInput, choice: Choice | None = None) -> Tensor:
        """Take the step: returns tokens like `step.sample`."""
        arguments = (logits.values, *step.state, step.most, logits.places, self.memory, step.untouched)
        candidates = self.scheduler.propose(*arguments)
        numbers, rows = candidates.to_score()
        if step.following is None or not len(rows):
            return candidates.samples[0].clone()  # a tensor that may enter a graph
        self._guidance = guidance_of(self.denoiser)
        values = self.denoiser(candidates.samples[numbers, rows], step.following, rows)
        if values.ndim == 4:
            values = values.flatten(2).transpose(1, 2)
        best = self.scheduler.pick(candidates, values, numbers, rows)
        self._taken = candidates.samples[best, torch.arange(len(best), device=best.device)]
        won = (numbers == best[rows]).nonzero()[:, 0]
        length = values.shape[1]
        places = first_rows(len(best), length, values.device)[rows[won]] + torch.arange(length, device=values.device)
        # A copy of one candidate's logits, so that the memory of all the others is free in the next step.
        self._seen = StepLogits(values[won], places, rows[won].tolist())
        return self._taken


def require_no_cache(scheduler: MaskedDiffusionScheduler, cache: object) -> None:
    """Raise `ValueError` if a scheduler looks ahead while there is a cache, whose passes are those of one candidate."""
    if scheduler.num_candidates > 1 and cache is not None:
        raise ValueError(
            f"`num_candidates` of the scheduler must be 1 while a cache is on, got {scheduler.num_candidates} with "
            f"{type(cache).__name__}. Call `disable_cache()`, or set it to 1."
        )


def _equal_in(rows: list[int], first: Tensor, second: Tensor) -> bool:
    """Whether tokens are the same in these rows; where they are one tensor, this does not make the host wait."""
    return first is second or torch.equal(first[rows], second[rows])
