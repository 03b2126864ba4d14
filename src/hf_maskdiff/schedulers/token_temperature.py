"""A temperature of the draws that does not affect the order of positions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .checks import is_number, require
from .step_context import StepContext

# The temperature used for greedy draws: so small that any difference of two float32 logits decides.
_GREEDY = 1e-30


def check_token_temperature(value: Any) -> None:
    """Raise `ValueError` unless it is a number of at least 0."""
    remedy = "Pass 0 for the most probable tokens, 1 for the model's own distribution."
    valid = is_number(value) and 0 <= value < math.inf
    require(valid, "token_temperature", "a number of at least 0", value, remedy)


def beta_of(token_temperature: float, context: StepContext, num_ranks: int) -> Tensor:
    """The same inverse temperature at each rank, `(batch_size, num_ranks)`."""
    # The logits are shifted so that the largest is 0 before they are multiplied by beta, so that even a huge beta
    # cannot overflow.
    beta = 1 / max(token_temperature, _GREEDY)
    return torch.full((len(context.keys), num_ranks), beta, device=context.keys.device)
