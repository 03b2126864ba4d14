"""Which positions a published model was trained to see, where its configuration does not tell."""

from __future__ import annotations

import os
import re
from pathlib import Path

FULL = "full"
_UNDECIDED = ("a2d-",)  # types that dLLM gives to its MDLM models and to its BD3LM models


def attention_unknown(model_type: str, name_or_path: str | os.PathLike[str], attention: str | None) -> str | None:
    """Why a model cannot be opened unless somebody says what it was trained with; None where that is known.

    dLLM publishes MDLM models, in which every position sees every other one, and BD3LM models, which see blocks from
    left to right, under the same types, architectures and settings. Only the names of their repositories differ.

    Args:
        name_or_path: of the repository; one with the word "mdlm" in its name holds an MDLM.
        attention: what the caller says: "full", or None.

    Raises:
        ValueError: another word than "full".
    """
    if attention not in (None, FULL):
        raise ValueError(
            f"`attention` must be {FULL!r}, got {attention!r}: models that see blocks from left to right cannot be run "
            "yet. Use one in which every position sees every other one."
        )
    if attention == FULL or not model_type.startswith(_UNDECIDED):
        return None
    words = _words_of(name_or_path)
    if "mdlm" in words and "bd3lm" not in words:
        return None
    return (
        f"{str(name_or_path)!r} is of type {model_type!r}, which dLLM's MDLM models (every position sees every other "
        "one) share with its BD3LM models (blocks from left to right, which cannot be run yet); nothing in config.json "
        f"tells them apart. Pass {FULL!r} for an MDLM"
    )


def require_attention(model_type: str, name_or_path: str | os.PathLike[str], attention: str | None) -> None:
    """`ValueError` where somebody must say what a model was trained with."""
    unknown = attention_unknown(model_type, name_or_path, attention)
    if unknown is not None:
        raise ValueError(f"`attention` must be given: {unknown}, as `attention={FULL!r}`, or convert it once with it.")


def _words_of(name_or_path: str | os.PathLike[str]) -> set[str]:
    """Words in the name of a repository, of a folder, or of the repository that a folder of the cache is of."""
    path = Path(name_or_path).absolute()
    cached = [part.split("--")[-1] for part in path.parts if part.startswith("models--")]
    return set(re.split(r"[^a-z0-9]+", (cached or [path.name])[-1].lower()))
