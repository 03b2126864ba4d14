"""In which step each position was revealed."""

from __future__ import annotations

import torch
from torch import Tensor

GIVEN, MASKED = 0, -1  # beside the steps, which count from 1


def start_of(tokens: Tensor, mask_token_id: int) -> Tensor:
    """The history before the first step: what is known is `GIVEN`, the rest `MASKED`.

    Args:
        tokens: int64, any shape.
        mask_token_id: stands where a token is to be filled in.

    Returns:
        int64, the shape of `tokens`.
    """
    return torch.where(tokens == mask_token_id, MASKED, GIVEN)


def after_step(history: Tensor, before: Tensor, after: Tensor, step: int, mask_token_id: int) -> Tensor:
    """The history after a step, which stands where it wrote or changed a token; where it took one back stands `MASKED`.

    Args:
        history: before the step, int64, the shape of the tokens.
        before, after: tokens before and after it.
        step: its number, from 1.
        mask_token_id: stands where a token is to be filled in.
    """
    return torch.where(after == mask_token_id, MASKED, torch.where(after != before, step, history))


class Record:
    """What has become of each position, step by step.

    Args:
        tokens: before the first step, int64, any shape.
        mask_token_id: stands where a token is to be filled in.

    Attributes:
        tokens: the latest.
        history: see `after_step`.
        step: the latest, 0 before the first.
    """

    def __init__(self, tokens: Tensor, mask_token_id: int) -> None:
        self.tokens, self.step, self._mask_token_id = tokens, 0, mask_token_id
        self.history = start_of(tokens, mask_token_id)

    def add(self, tokens: Tensor, step: int) -> None:
        """The tokens after a step; adding a step twice changes nothing."""
        if step > self.step:
            self.history = after_step(self.history, self.tokens, tokens, step, self._mask_token_id)
            self.tokens, self.step = tokens, step
