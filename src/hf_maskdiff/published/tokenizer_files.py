"""Tokenizers from files of unknown origin: no code of theirs is run, and every id is a row of the model."""

from __future__ import annotations

import os
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .malformed import refusing


def open_tokenizer(
    name_or_path: str | os.PathLike[str], tokenizer_class: Any = AutoTokenizer, **location: Any
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a repository of the Hub, without running any code that comes with it.

    Args:
        tokenizer_class: of transformers.
        location: those of `from_pretrained`'s arguments that say where the files are.

    Raises:
        ValueError: files that are malformed, or a tokenizer that only code of the repository opens.
        OSError: no tokenizer there.
    """
    with refusing(f"the tokenizer in {str(name_or_path)!r}", "Fetch its files again."):
        # Said at once, since transformers asks at the terminal whether to run a repository's code.
        return tokenizer_class.from_pretrained(name_or_path, trust_remote_code=False, **location)


def check_ids(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> None:
    """Every token must have an id of its own, and the model a row for it.

    Args:
        num_rows: of the model's table of tokens.

    Raises:
        ValueError: an id that is no row, or that two tokens share.
    """
    token_of: dict[int, str] = {}
    for token, index in tokenizer.get_vocab().items():
        if type(index) is not int or not 0 <= index < num_rows:
            raise ValueError(
                f"the tokenizer's ids must be rows of the model, 0 .. {num_rows - 1}, got {index!r} for {token!r} "
                f"among {len(tokenizer)} tokens. Pass the tokenizer that the model was trained with."
            )
        if index in token_of:
            raise ValueError(
                f"the tokenizer's ids must be different ones, got {index} for {token_of[index]!r} and for {token!r}. "
                "Fetch its files again."
            )
        token_of[index] = token


def check_special_id(name: str, index: Any, num_rows: int) -> None:
    """`ValueError` where the id of a mask or of an end of text is no row of the model."""
    if type(index) is not int or not 0 <= index < num_rows:
        raise ValueError(
            f"`{name}` must be a row of the model, 0 .. {num_rows - 1}, got {index!r}. Correct it in `config.json`, "
            "or pass the tokenizer that the model was trained with."
        )
