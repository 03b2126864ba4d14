"""From what a user writes to token ids with masks: prompts, mask spans, chats, ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..denoisers import TextDenoiser

# A chat is a list of messages, each with a role and a content.
Prompt = str | Sequence[Mapping[str, str]]

MASK_SPAN = re.compile(r"\[MASK(?::([1-9][0-9]{0,5}))?\]")


class PromptEncoder:
    """Token ids of prompts.

    Args:
        tokenizer: of the model.
        mask_token_id: what stands where a token is to be filled in.
        vocab_size: rows of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mask_token_id: int, vocab_size: int) -> None:
        self.tokenizer, self.mask_token_id, self.vocab_size = tokenizer, mask_token_id, vocab_size

    def encode(self, prompt: Prompt) -> Tensor:
        """Ids of one prompt, int64 `(length,)`.

        Raises:
            ValueError: an empty prompt, a mask span that does not parse, ids that the model does not have, or a chat
                for a tokenizer without a template.
        """
        return self.checked(self._of_text(prompt) if isinstance(prompt, str) else self._of_chat(prompt), "prompt")

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def _of_chat(self, chat: Sequence[Mapping[str, str]]) -> Tensor:
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise ValueError(
                "a chat needs a tokenizer with a `chat_template`, got one without. Pass a text, or set it."
            )
        text = self.tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True)
        return torch.tensor(self._ids(str(text)))

    def _of_text(self, prompt: str) -> Tensor:
        ids, end = [], 0
        for span in [*MASK_SPAN.finditer(prompt), None]:
            text = prompt[end : len(prompt) if span is None else span.start()]
            if "[MASK" in text:
                raise ValueError(
                    "a mask span must read [MASK] or [MASK:n], n from 1 to 999999, got "
                    f"{text[text.index('[MASK') :][:20]!r}. Write for example [MASK:5] where five tokens are missing."
                )
            if text:
                ids += self._ids(text)
            if span is not None:
                ids += [self.mask_token_id] * int(span[1] or 1)
                end = span.end()
        if not ids:
            raise ValueError("`prompt` must hold at least one token, got ''. Pass None to write freely.")
        return torch.tensor(ids)

    def checked(self, ids: Tensor, name: str) -> Tensor:
        """The ids, if they are rows of the model; else `ValueError`."""
        if bool(((ids < 0) | (ids >= self.vocab_size)).any()):
            raise ValueError(
                f"`{name}` must hold ids in 0 .. {self.vocab_size - 1}, the mask being {self.mask_token_id}, got "
                f"{int(ids.min())} to {int(ids.max())}. Load the tokenizer that the model was trained with."
            )
        return ids

    def rows_of_ids(self, input_ids: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Rows of ids, the mask's where `mask` is True.

        Args:
            input_ids: int64 `(batch_size, length)`.
            mask: bool of the same shape, or None.

        Raises:
            ValueError: another dtype or shape, or ids that the model does not have.
        """
        if input_ids.ndim != 2 or input_ids.dtype != torch.int64 or not input_ids.numel():
            raise ValueError(
                f"`input_ids` must be int64 of shape (batch_size, length), got {input_ids.dtype} "
                f"{tuple(input_ids.shape)}. Pass `tokenizer(texts, return_tensors='pt').input_ids`."
            )
        if mask is not None and (mask.shape != input_ids.shape or mask.dtype != torch.bool):
            raise ValueError(
                f"`mask` must be bool of the shape of `input_ids`, {tuple(input_ids.shape)}, got {mask.dtype} "
                f"{tuple(mask.shape)}. True is where a token is to be filled in."
            )
        ids = self.checked(input_ids, "input_ids")
        return list(ids if mask is None else ids.masked_fill(mask.to(ids.device), self.mask_token_id))


@dataclass(frozen=True)
class NewTokens:
    """How many tokens are written after a prompt.

    Args:
        model_length: the most that the model sees; None where there is no limit.
        default: new tokens where nobody says how many; None fills the model's length.
        wanted: by the caller, or None.
        may_be_longer: than the model, block by block.
    """

    model_length: int | None
    default: int | None
    wanted: int | None
    may_be_longer: bool

    def after(self, ids: Tensor, mask_token_id: int, fills_in: bool) -> Tensor:
        """The ids of a prompt, int64 `(length,)`, and masks for the new tokens behind them.

        Args:
            ids: of the prompt. Where it holds masks, no others are added unless they are asked for.
            mask_token_id: what stands where a token is to be filled in.
            fills_in: the prompt is to be filled in, whether it holds masks or not.

        Raises:
            ValueError: there is no room for what is wanted.
        """
        fills_in = fills_in or bool((ids == mask_token_id).any())
        length = self.model_length
        room = [n for n in (self.default, length and max(length - len(ids), 0)) if n is not None]
        free = 0 if fills_in else min(room)
        new = free if self.wanted is None else self.wanted
        if length is not None and len(ids) + new > length and not self.may_be_longer:
            raise ValueError(
                f"prompt and new tokens must fit the model's length {length}, got {len(ids)} + {new}. Pass "
                f"`stride`, for example {max(length // 2, 1)}, to write block by block, or fewer tokens."
            )
        if not new and not fills_in:
            raise ValueError(
                f"a prompt must leave room for new tokens, got one of {len(ids)} for a model of {length}. Pass "
                "`max_new_tokens` and `stride` to write on."
            )
        return torch.nn.functional.pad(ids, (0, new), value=mask_token_id)


def check_tokens(tokenizer: PreTrainedTokenizerBase, denoiser: TextDenoiser, mask_token_id: int) -> None:
    """Tokenizer, model and scheduler must speak of the same tokens; `mask_token_id` is the scheduler's."""
    vocab_size, named = denoiser.vocab_size, denoiser.mask_token_id
    if not 0 <= mask_token_id < vocab_size or named not in (None, mask_token_id):
        wanted = f"a row of the model, 0 .. {vocab_size - 1}" if named is None else f"the model's, {named}"
        raise ValueError(
            f"the scheduler's `mask_token_id` must be {wanted}, got {mask_token_id}. Pass the right one to "
            "`from_config` as mask_token_id."
        )
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"the tokenizer must have at most {vocab_size} tokens, the rows of the model, got {len(tokenizer)}. Load "
            "the tokenizer that the model was trained with."
        )


def is_prompt(value: Any) -> bool:
    """Whether it is one text or one chat."""
    if isinstance(value, str):
        return True
    return (
        isinstance(value, Sequence)
        and len(value) > 0
        and all(isinstance(message, Mapping) and {"role", "content"} <= message.keys() for message in value)
    )


def are_prompts(value: Any) -> bool:
    """Whether it is a prompt or a list of them."""
    return is_prompt(value) or (isinstance(value, list | tuple) and len(value) > 0 and all(map(is_prompt, value)))


def as_list(prompt: Prompt | Sequence[Prompt]) -> list[Any]:
    """A list of prompts, of one too."""
    return [prompt] if is_prompt(prompt) else list(prompt)
