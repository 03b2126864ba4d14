"""The base of samplers that draw a token of every masked position, and then choose which of them to keep."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from ..orders import ranking
from ..sampling import Generators, Marginals
from .checks import require_drawn
from .output import MaskedDiffusionSchedulerOutput
from .run_memory import RunMemory
from .scheduling_masked_diffusion import MaskedDiffusionScheduler
from .step_context import StepContext


class DrawThenChooseScheduler(MaskedDiffusionScheduler):
    """Draws everywhere and keeps the best k positions; a subclass says what is drawn and how good it is."""

    @abstractmethod
    def draw_and_score(self, marginals: Marginals, context: StepContext) -> tuple[Tensor, Tensor]:
        """A token of every masked position, int64, and the float64 score of each, both `(batch_size, L)`."""

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        starting_mask_ratio: float | Tensor = 1.0,
        generator: Generators = None,
        return_dict: bool = True,
        max_count: int | None = None,
        logits_at: Tensor | None = None,
        memory: RunMemory | None = None,
        given: Tensor | None = None,
        details: bool = False,
        **of_block: Any,
    ) -> MaskedDiffusionSchedulerOutput | tuple[Tensor, ...]:
        if of_block:
            return self._step_of_block(model_output, timestep, sample, generator, return_dict, of_block)
        with torch.inference_mode():
            arguments = (model_output, timestep, sample, starting_mask_ratio, generator, logits_at, memory, given)
            marginals, context = self.start_step(*arguments)
            drawn, score = self.draw_and_score(marginals, context)
            rank = ranking(score, context.masked.to(score.device)).argsort(-1).to(sample.device)
            kept = rank < context.count[:, None]
            if sample.device.type == "cpu":
                require_drawn(drawn, marginals.num_tokens, context.step_index)
            # On an accelerator, a position at which no token can be drawn (NaN logits) stays masked.
            drawn = drawn.to(sample.device)
            candidates = torch.where(context.masked & (drawn < marginals.num_tokens), drawn, context.tokens)

        # Outside inference mode, so that the results may enter a graph.
        prev_sample = torch.where(kept, candidates, sample.flatten(1)).view_as(sample)
        if not return_dict:
            return prev_sample, candidates.view_as(sample).clone()
        output = MaskedDiffusionSchedulerOutput(prev_sample, candidates.view_as(sample).clone())
        return output.with_details(model_output, sample) if details else output

    step.__doc__ = MaskedDiffusionScheduler.step.__doc__
