"""Which positions a published model was trained to see: said by its configuration, its name, or the caller."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_maskdiff.attention_rule import BLOCK_CAUSAL, FULL, BlockCausal, block_causal

_UNDECIDED = ("a2d-",)  # types that dLLM gives to its MDLM models and to its BD3LM models
_FULL_TYPES = ("llada", "Dream", "mdlm")
# Types that are block-causal, and where each one's configuration states the size; "" where it does not.
SIZE_NAMES = {"sdar": "block_size", "Fast_dLLM_Qwen": "bd_size", "bd3lm": "block_size", "llada2_moe": ""}
# What a configuration of transformers says of a model that was opened here before.
OWN_SIZE_NAME = "block_causal_size"


def attention_unknown(
    model_type: str,
    name_or_path: str | os.PathLike[str],
    attention: str | None,
    published: Mapping[str, Any] | None = None,
) -> str | None:
    """Why a model cannot be opened unless somebody says what it was trained with; None where that is known.

    dLLM publishes MDLM models, in which every position sees every other one, and BD3LM models, which see blocks from
    left to right, under the same types, architectures and settings. Only the names of their repositories differ.

    Args:
        name_or_path: of the repository; one with the word "mdlm" in its name holds an MDLM.
        attention: what the caller says: "full", "block_causal", or None.
        published: the model's configuration.

    Raises:
        ValueError: another word than these.
    """
    block_causal(attention, 1 if attention == BLOCK_CAUSAL else None)
    if attention is not None or not model_type.startswith(_UNDECIDED) or (published or {}).get(OWN_SIZE_NAME):
        return None
    words = _words_of(name_or_path)
    if "mdlm" in words and "bd3lm" not in words:
        return None
    return (
        f"{str(name_or_path)!r} is of type {model_type!r}, which dLLM's MDLM models (every position sees every other "
        "one) share with its BD3LM models (blocks from left to right); nothing in config.json tells them apart. Pass "
        f"{BLOCK_CAUSAL!r} and a `block_size` for a BD3LM, {FULL!r} for an MDLM"
    )


def attention_of(
    model_type: str,
    name_or_path: str | os.PathLike[str],
    published: Mapping[str, Any],
    attention: str | None,
    block_size: int | None,
) -> BlockCausal | None:
    """The rule of a published model; None where every position sees every other one.

    Args:
        published: its configuration.
        attention, block_size: what the caller says; None to take what the model says itself.

    Raises:
        ValueError: nobody says it, or the caller says something else than the model.
    """
    unknown = attention_unknown(model_type, name_or_path, attention, published)
    if unknown is not None:
        raise ValueError(f"`attention` must be given: {unknown}, as `attention={FULL!r}`, or convert it once with it.")
    known, size = _stated(model_type, published)
    if attention is not None and known is not None and attention != known:
        raise ValueError(
            f"`attention` must be {known!r} for {str(name_or_path)!r}, a model of type {model_type!r}, got "
            f"{attention!r}. Leave it out."
        )
    if size is not None and block_size not in (None, size):
        raise ValueError(
            f"`block_size` must be the {size} that config.json in {str(name_or_path)!r} states, got {block_size!r}. "
            "Leave it out."
        )
    chosen = known if attention is None else attention
    if chosen == BLOCK_CAUSAL and size is None and block_size is None:
        raise ValueError(
            f"`block_size` must be given: {str(name_or_path)!r} is a model of type {model_type!r} that sees blocks "
            "from left to right, and config.json does not say how large they were in training. Look at its card, and "
            "pass `block_size=...`."
        )
    return block_causal(chosen, size if block_size is None else block_size)


def _stated(model_type: str, published: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """What type and configuration say of the attention and of the size of blocks; None where they do not."""
    if published.get(OWN_SIZE_NAME) is not None:
        return BLOCK_CAUSAL, published[OWN_SIZE_NAME]
    if model_type in SIZE_NAMES:
        return BLOCK_CAUSAL, published.get(SIZE_NAMES[model_type])
    return (FULL if model_type in _FULL_TYPES else None), None


def _words_of(name_or_path: str | os.PathLike[str]) -> set[str]:
    """Words in the name of a repository, of a folder, or of the repository that a folder of the cache is of."""
    path = Path(name_or_path).absolute()
    cached = [part.split("--")[-1] for part in path.parts if part.startswith("models--")]
    return set(re.split(r"[^a-z0-9]+", (cached or [path.name])[-1].lower()))
