"""Partial caching: recompute only the chosen positions of a step and take the rest from the last full pass."""

from __future__ import annotations

import torch
from torch import nn


class KeyValueSlot(nn.Module):
    """The one place in an attention layer where its keys and values can be seen and replaced; alone it does nothing.

    In a partial pass only the chosen positions of a step are queries, while every layer still attends to all
    positions: the keys and values of the others are those of the last full pass. Whoever keeps them needs each layer's
    keys and values in their final form, so a denoiser calls its slot after projection, normalisation and position
    encoding, and right before attention. Being a module, the slot can be hooked and unhooked without touching the
    attention processor, and a model whose slots are not hooked computes exactly what it would without them. It has no
    weights and no state: it adds no key to a checkpoint.
    """

    def forward(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values that attention shall use: here, those it was given.

        Args:
            key: `(batch_size, sequence_length, num_heads, head_dim)`, floating point.
            value: same shape and dtype as `key`.
        """
        return key, value
