"""Texts with tokens to be scored, and their parts where the model sees blocks from left to right."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_maskdiff.attention_rule import BlockCausal


@dataclass(frozen=True)
class ScoredTokens:
    """A text, and which of its tokens are scored given the others.

    Args:
        ids: int64 `(length,)` on the CPU, without masks.
        places: of the tokens to be scored, int64 `(n,)`.
        prompt: what a pass without the prompt does not see, bool `(length,)`.
        offset: positions that the first block lacks at its beginning, for a model that sees blocks.
    """

    ids: Tensor
    places: Tensor
    prompt: Tensor
    offset: int = 0


def parts_of(text: ScoredTokens, rule: BlockCausal | None) -> list[tuple[ScoredTokens, Tensor]]:
    """What is scored apart: all of a text, or block after block where the model sees blocks from left to right.

    Such a model predicts a block from its finished predecessors and sees nothing behind it. So the likelihood is the
    product over blocks, and a part ends with its block.

    Args:
        text: the text.
        rule: what the model sees; None for everything.

    Returns:
        Each part, and which of the text's scored tokens are its own, int64 `(n_part,)`.
    """
    if rule is None:
        return [(text, torch.arange(len(text.places)))]
    blocks = rule.blocks_of(text.places + text.offset)
    parts = []
    for block in blocks.unique().tolist():
        own = (blocks == block).nonzero()[:, 0]
        end = (block + 1) * rule.block_size - text.offset
        parts.append((replace(text, ids=text.ids[:end], places=text.places[own], prompt=text.prompt[:end]), own))
    return parts
