"""What the text pipelines know of models that see blocks from left to right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..attention_rule import BLOCK_CAUSAL, BlockCausal, block_causal
from ..published.attention import OWN_SIZE_NAME
from .text_windows import BlockGrid

START, PROMPT = "start", "prompt"


def block_settings(
    transformer: Any, attention: str | None, block_size: int | None, blocks_from: str
) -> dict[str, str | int | None]:
    """The settings of a pipeline, for its config: as given, or as the model's configuration states them.

    Raises:
        ValueError: settings that name no rule, or another one than the model's configuration.
    """
    stated = getattr(getattr(transformer, "config", None), OWN_SIZE_NAME, None)
    if stated is not None:
        if attention not in (None, BLOCK_CAUSAL) or block_size not in (None, stated):
            raise ValueError(
                f"`attention` and `block_size` must be the model's, {BLOCK_CAUSAL!r} and {stated}, got {attention!r} "
                f"and {block_size!r}. Leave them out."
            )
        attention, block_size = BLOCK_CAUSAL, stated
    block_causal(attention, block_size)
    if blocks_from not in (START, PROMPT):
        raise ValueError(
            f"`blocks_from` must be {START!r} or {PROMPT!r}, got {blocks_from!r}. {START!r} counts blocks from the "
            f"first token, {PROMPT!r} so that one begins right behind the prompt."
        )
    return {"attention": attention, "block_size": block_size, "blocks_from": blocks_from}


def grid_of(rule: BlockCausal | None, blocks_from: str) -> Callable[[int], BlockGrid] | None:
    """Makes the blocks of a sequence of the length of its prompt; None for a model that sees everything."""
    if rule is None:
        return None
    size = rule.block_size
    return lambda prompt_length: BlockGrid(size, -prompt_length % size if blocks_from == PROMPT else 0)


def check_block_length(rule: BlockCausal | None, block_length: int | None, stride: int | None) -> None:
    """`ValueError` where a call's lengths do not fit the blocks that the model sees."""
    if rule is None:
        return
    size = rule.block_size
    if block_length is not None and size % block_length:
        raise ValueError(
            f"`block_length` must divide the blocks of {size} that the model was trained with, got {block_length}. "
            "Leave it out to fill in one block at a time."
        )
    if stride is not None and stride < size:
        raise ValueError(
            f"`stride` must be at least the block size of the model, {size}, got {stride}. Pass a multiple of it."
        )
