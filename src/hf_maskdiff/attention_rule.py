"""Which positions a language model was trained to see: all of them, or blocks from left to right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FULL, BLOCK_CAUSAL = "full", "block_causal"


@dataclass(frozen=True)
class BlockCausal:
    """Every position sees its own block and all blocks before it, none after it.

    So a block that is finished never changes what its keys and values are, and a model that was trained so can be
    cached exactly. SDAR, BD3-LM, LLaDA2, Fast-dLLM v2 and dLLM's BD3LM models are of this kind.

    Args:
        block_size: positions in a block; blocks are counted from the first position of a sequence.

    Raises:
        ValueError: a block size that is no integer of at least 1.
    """

    block_size: int

    def __post_init__(self) -> None:
        if type(self.block_size) is not int or self.block_size < 1:
            raise ValueError(
                f"`block_size` must be an integer of at least 1, got {self.block_size!r}. Pass the size of the blocks "
                "that the model was trained with."
            )

    def blocks_of(self, places: Tensor, offsets: Tensor | None = None) -> Tensor:
        """The block of each position, int64 like `places`.

        Args:
            places: positions, int64 `(batch_size or 1, n)`.
            offsets: positions that each row's first block lacks at its beginning, int64 `(batch_size,)`; None for 0.
        """
        return (places if offsets is None else places + offsets[:, None]) // self.block_size

    def seen(
        self,
        queries: Tensor,
        num_keys: int,
        real: Tensor | None = None,
        offsets: Tensor | None = None,
        length: int | None = None,
    ) -> Tensor:
        """Which keys each query sees, bool `(batch_size or 1, 1, num_queries, num_keys)`.

        Every query sees itself, also where it is padding, so that no softmax is over nothing.

        Args:
            queries: positions of the queries, int64 `(batch_size or 1, num_queries)`.
            num_keys: the keys are those of the positions 0 .. num_keys - 1.
            real: False for keys that are padding, bool `(batch_size, length)`; None if all are real.
            offsets: see `blocks_of`.
            length: positions from here on are not there, although a store has room for them; None if all are.
        """
        keys = torch.arange(num_keys, device=queries.device)[None]
        mask = self.blocks_of(keys, offsets)[:, None] <= self.blocks_of(queries, offsets)[:, :, None]
        if real is not None:
            mask = mask & F.pad(real, (0, num_keys - real.shape[1]))[:, None]
        elif length is not None and length < num_keys:
            mask = mask & (keys < length)[:, None]
        return (mask | (keys[:, None] == queries[:, :, None]))[:, None]


def block_causal(attention: str | None, block_size: int | None) -> BlockCausal | None:
    """The rule that two settings name; None for full attention.

    Raises:
        ValueError: settings that name no rule, or contradict each other.
    """
    if attention not in (None, FULL, BLOCK_CAUSAL):
        raise ValueError(
            f"`attention` must be {FULL!r} or {BLOCK_CAUSAL!r}, got {attention!r}. Pass {BLOCK_CAUSAL!r} for a model "
            "that sees blocks from left to right, with their size as `block_size`."
        )
    if attention != BLOCK_CAUSAL:
        if block_size is not None:
            raise ValueError(
                f"`block_size` must come with `attention={BLOCK_CAUSAL!r}`, got {block_size!r} with {attention!r}. "
                "Leave it out for a model in which every position sees every other one."
            )
        return None
    if block_size is None:
        raise ValueError(
            f"`block_size` must be given with `attention={BLOCK_CAUSAL!r}`, got None. Pass the size of the blocks that "
            "the model was trained with."
        )
    return BlockCausal(block_size)
