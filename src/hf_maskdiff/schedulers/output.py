"""What a step returns."""

from __future__ import annotations

from dataclasses import dataclass, replace

from diffusers.utils import BaseOutput
from torch import Tensor


@dataclass
class MaskedDiffusionSchedulerOutput(BaseOutput):
    """Output of a scheduler's `step`.

    Args:
        prev_sample: tokens after the step, int64, the shape of `sample`.
        pred_original_sample: the candidate drawn for every masked position, the shape of `sample`; None if the
            scheduler chooses positions before it samples, since it then draws only the tokens that it reveals.
        pred_logits: the logits that the step was given; None unless `details` were asked for.
        transfer_index: which positions the step has revealed, bool, the shape of `sample`; None unless `details` were
            asked for.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None
    pred_logits: Tensor | None = None
    transfer_index: Tensor | None = None

    def with_details(self, model_output: Tensor, sample: Tensor) -> MaskedDiffusionSchedulerOutput:
        """The output of a step with `pred_logits` and `transfer_index` of what it was given."""
        return replace(self, pred_logits=model_output, transfer_index=self.prev_sample != sample)
