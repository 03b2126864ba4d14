"""From what a user writes to token ids with masks: prompts, mask spans, chats, ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from unicodedata import category

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..denoisers import TextDenoiser

# A chat is a list of messages, each with a role and a content.
Prompt = str | Sequence[Mapping[str, str]]

# Where tokens are missing. Behind a backslash it is text like any other.
MASK_SPAN = re.compile(r"(?<!\\)\[MASK(?::([1-9][0-9]{0,5}))?\]")
_ESCAPED_SPAN = re.compile(r"\\(?=\[MASK)")
# What looks like a span and is none; `[MASKED]` is a word.
_FAULTY_SPAN = re.compile(r"(?<!\\)\[MASK(?![A-Za-z_])")
_NO_LETTER = "\N{REPLACEMENT CHARACTER}"  # what bytes decode to that are no letter


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model sees it.

    Args:
        ids: int64 `(length,)`, the mask's where a token is missing.
        num_before: special tokens that the tokenizer has put before the text.
        num_after: those behind it. What is written goes before them.
    """

    ids: Tensor
    num_before: int = 0
    num_after: int = 0

    def with_new_tokens(self, count: int, mask_token_id: int) -> EncodedPrompt:
        """The prompt with so many masks behind its text."""
        end = len(self.ids) - self.num_after
        ids = torch.cat([self.ids[:end], self.ids.new_full((count,), mask_token_id), self.ids[end:]])
        return EncodedPrompt(ids, self.num_before, self.num_after)

    def is_text(self) -> Tensor:
        """Where the ids are not special tokens that the tokenizer has put around the text, bool `(length,)`."""
        places = torch.arange(len(self.ids), device=self.ids.device)
        return (places >= self.num_before) & (places < len(self.ids) - self.num_after)


class PromptEncoder:
    """Token ids of prompts, as the tokenizer itself builds them.

    Places to fill in come from spans that somebody wrote as such, `[MASK]` or `[MASK:n]`. The tokenizer's own mask in a
    text is text.

    Args:
        tokenizer: of the model.
        mask_token_id: what stands where a token is to be filled in.
        vocab_size: rows of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mask_token_id: int, vocab_size: int) -> None:
        self.tokenizer, self.mask_token_id, self.vocab_size = tokenizer, mask_token_id, vocab_size

    def encode(self, prompt: Prompt | None) -> EncodedPrompt:
        """One prompt; None is an empty text.

        Raises:
            ValueError: an empty prompt, a mask span that does not parse, letters that the tokenizer leaves out, ids
                that the model does not have, or a chat for a tokenizer without a template.
        """
        if prompt is None:
            return self._with_special_tokens([])
        encoded = self._of_text(prompt) if isinstance(prompt, str) else self._of_chat(prompt)
        self.checked(encoded.ids, "prompt")
        return encoded

    # --- text and chats -----------------------------------------------------------------------------------------------

    def _of_chat(self, chat: Sequence[Mapping[str, str]]) -> EncodedPrompt:
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise ValueError(
                "a chat needs a tokenizer with a `chat_template`, got one without. Pass a text, or set it."
            )
        text = str(self.tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True))
        self._require_letters(text)
        return EncodedPrompt(torch.tensor(self._ids_of_text(text)))

    def _of_text(self, prompt: str) -> EncodedPrompt:
        texts, counts, end = [], [], 0
        for span in MASK_SPAN.finditer(prompt):
            texts.append(prompt[end : span.start()])
            counts.append(int(span[1] or 1))
            end = span.end()
        texts.append(prompt[end:])
        for text in texts:
            if faulty := _FAULTY_SPAN.search(text):
                raise ValueError(
                    "a mask span must read [MASK] or [MASK:n], n from 1 to 999999, got "
                    f"{text[faulty.start() :][:20]!r}. Write for example [MASK:5] where five tokens are missing, and "
                    r"\[MASK where these letters are meant."
                )
        texts = [_ESCAPED_SPAN.sub("", text) for text in texts]
        for text in texts:
            self._require_letters(text)
        ids = self._ids_in_one_piece(texts, counts)
        if ids is None:
            ids = self._ids_of_text(texts[0])
            for count, text in zip(counts, texts[1:], strict=True):
                ids += [self.mask_token_id] * count + self._ids_of_text(text)
        if not ids:
            raise ValueError("`prompt` must hold at least one token, got ''. Pass None to write freely.")
        return self._with_special_tokens(ids)

    def _with_special_tokens(self, ids: list[int]) -> EncodedPrompt:
        before, after = self.special_tokens
        return EncodedPrompt(torch.tensor([*before, *ids, *after], dtype=torch.int64), len(before), len(after))

    def _ids_in_one_piece(self, texts: list[str], counts: list[int]) -> list[int] | None:
        """Ids of the whole prompt with the tokenizer's own mask in its spans: so it takes the spaces around them.

        None where the tokenizer writes no mask, or where the mask stands in the text too.
        """
        mask = self._mask_literal
        if not counts or mask is None or any(mask in text for text in texts):
            return None
        whole = texts[0] + "".join(mask * count + text for count, text in zip(counts, texts[1:], strict=True))
        ids = self._tokenized(whole)
        return ids if ids.count(self.mask_token_id) == sum(counts) else None

    def _ids_of_text(self, text: str) -> list[int]:
        """Ids of a text in which the tokenizer's mask is a word like any other: it is cut in two."""
        mask = self._mask_literal
        pieces = [text] if mask is None else text.split(mask)
        head, tail = ("", "") if mask is None else (mask[:1], mask[1:])
        last = len(pieces) - 1
        parts = [tail * (i > 0) + piece + head * (i < last) for i, piece in enumerate(pieces)]
        ids = [token for part in parts if part for token in self._tokenized(part)]
        if self.mask_token_id in ids:
            raise ValueError(
                f"`prompt` must not hold the tokenizer's mask as text, got {text[:40]!r}. Write [MASK] where a token "
                "is missing."
            )
        return ids

    def _require_letters(self, text: str) -> None:
        """Refuse a text with letters of which nothing, or not every byte, becomes a token.

        A tokenizer without an unknown token leaves such letters out, and the model reads another text. Spaces, control
        characters and combining marks are for the tokenizer to leave out.
        """
        lost = self._lost_letters(text)
        if lost:
            for token in getattr(self.tokenizer, "added_tokens_decoder", {}).values():
                text = text.replace(str(token), "")  # a token of its own, whatever its letters are
        if names := sorted(lost & set(text), key=text.index):
            raise ValueError(
                "`prompt` must be written in letters that the tokenizer knows, got "
                f"{', '.join(map(repr, names[:10]))}, which it leaves out. Write without them, or load the tokenizer "
                "that the model was trained with."
            )

    def _lost_letters(self, text: str) -> set[str]:
        letters = [letter for letter in dict.fromkeys(text) if category(letter)[0] not in "CMZ"]
        if not letters:
            return set()
        tokens = self.tokenizer(letters, add_special_tokens=False, verbose=False).input_ids
        return {letter for letter, ids in zip(letters, tokens, strict=True) if not ids or self._is_cut(letter, ids)}

    def _is_cut(self, letter: str, ids: list[int]) -> bool:
        """Whether some bytes of a letter have no token, so that its tokens are no letter any more."""
        return not letter.isascii() and letter != _NO_LETTER and _NO_LETTER in str(self.tokenizer.decode(ids))

    def _tokenized(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    @cached_property
    def _mask_literal(self) -> str | None:
        """How the tokenizer writes the mask, if it does."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return str(added[self.mask_token_id]) if self.mask_token_id in added else None

    @cached_property
    def special_tokens(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind a text."""
        for text in ("a", "A", "0", "."):
            plain, whole = self._tokenized(text), list(self.tokenizer(text, verbose=False).input_ids)
            for start in range(len(whole) - len(plain) + 1 if plain else 0):
                if whole[start : start + len(plain)] == plain:
                    return whole[:start], whole[start + len(plain) :]
        return [], []

    # --- ids ----------------------------------------------------------------------------------------------------------

    def checked(self, ids: Tensor, name: str) -> Tensor:
        """The ids, if they are rows of the model; else `ValueError`."""
        if bool(((ids < 0) | (ids >= self.vocab_size)).any()):
            raise ValueError(
                f"`{name}` must hold ids in 0 .. {self.vocab_size - 1}, the mask being {self.mask_token_id}, got "
                f"{int(ids.min())} to {int(ids.max())}. Load the tokenizer that the model was trained with."
            )
        return ids

    def rows_of_ids(self, input_ids: Any, mask: Any, attention_mask: Any) -> list[EncodedPrompt]:
        """Rows of ids without their padding, the mask's where `mask` is True.

        Args:
            input_ids: int64 `(batch_size, length)`, as tensor, array or lists; lists may differ in length.
            mask: bool of the same shape, or None.
            attention_mask: 0 or False where padded, of the same shape, or None where nothing is.

        Raises:
            ValueError: another dtype or shape, a row of padding alone, or ids that the model does not have.
        """
        rows = _as_rows("input_ids", input_ids)
        if any(row.ndim != 1 or row.dtype != torch.int64 or not row.numel() for row in rows) or not rows:
            got = [(str(row.dtype), *row.shape) for row in rows[:3]]
            raise ValueError(
                f"`input_ids` must be int64 of shape (batch_size, length), got rows {got}. Pass "
                "`tokenizer(texts, return_tensors='pt').input_ids`."
            )
        real = _like("attention_mask", "0 or 1", attention_mask, rows, "Pass 1 for a real token, 0 for padding.")
        missing = _like("mask", "bool", mask, rows, "True is where a token is to be filled in.")
        encoded = []
        for ids, is_real, is_missing in zip(rows, real, missing, strict=True):
            self.checked(ids, "input_ids")
            if is_missing is not None:
                if is_missing.dtype != torch.bool:
                    raise ValueError(
                        f"`mask` must be bool, got {is_missing.dtype}. True is where a token is to be filled in."
                    )
                ids = ids.masked_fill(is_missing.to(ids.device), self.mask_token_id)
            if is_real is not None:
                ids = ids[is_real.to(ids.device, torch.bool)]
            if not len(ids):
                raise ValueError("`attention_mask` must leave a token in each row, got a row of padding. Leave it out.")
            encoded.append(self._found_special_tokens(ids))
        return encoded

    def _found_special_tokens(self, ids: Tensor) -> EncodedPrompt:
        """The row, with the special tokens around it known as such where they are those of the tokenizer."""
        before, after = self.special_tokens
        listed = ids.tolist()
        num_before = len(before) if before and listed[: len(before)] == before else 0
        num_after = len(after) if after and listed[len(listed) - len(after) :] == after else 0
        fits = num_before + num_after <= len(listed)
        return EncodedPrompt(ids, num_before, num_after) if fits else EncodedPrompt(ids)


def _as_rows(name: str, values: Any) -> list[Tensor]:
    """One tensor for each row, of a tensor, an array, or lists that may differ in length."""
    try:
        if isinstance(values, Tensor):
            return list(values)
        return [torch.as_tensor(row) for row in values]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"`{name}` must hold rows of numbers, got {values!r:.60}. Pass a tensor, or a list of lists."
        ) from error


def _like(name: str, kind: str, values: Any, rows: list[Tensor], meaning: str) -> list[Tensor] | list[None]:
    """Rows of the same lengths as `rows`, or Nones."""
    if values is None:
        return [None] * len(rows)
    found = _as_rows(name, values)
    if [row.shape for row in found] != [row.shape for row in rows]:
        raise ValueError(
            f"`{name}` must be {kind} of the shape of `input_ids`, got {len(found)} rows of "
            f"{sorted({tuple(row.shape) for row in found})} for {len(rows)} of "
            f"{sorted({tuple(row.shape) for row in rows})}. {meaning}"
        )
    return found


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

    def after(self, prompt: EncodedPrompt, mask_token_id: int, fills_in: bool) -> EncodedPrompt:
        """The prompt with masks for the new tokens behind its text.

        Args:
            prompt: where it holds masks, no others are added unless they are asked for.
            mask_token_id: what stands where a token is to be filled in.
            fills_in: the prompt is to be filled in, whether it holds masks or not.

        Raises:
            ValueError: there is no room for what is wanted.
        """
        fills_in = fills_in or bool((prompt.ids == mask_token_id).any())
        length, known = self.model_length, len(prompt.ids)
        room = [n for n in (self.default, length and max(length - known, 0)) if n is not None]
        free = 0 if fills_in else min(room)
        new = free if self.wanted is None else self.wanted
        if length is not None and known + new > length and not self.may_be_longer:
            raise ValueError(
                f"prompt and new tokens must fit the model's length {length}, got {known} + {new}. Pass "
                f"`stride`, for example {max(length // 2, 1)}, to write block by block, or fewer tokens."
            )
        if not new and not fills_in:
            raise ValueError(
                f"a prompt must leave room for new tokens, got one of {known} for a model of {length}. Pass "
                "`max_new_tokens` and `stride` to write on."
            )
        return prompt.with_new_tokens(new, mask_token_id)


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


def check_given(prompt: Any, input_ids: Any, mask: Any, attention_mask: Any, token_type_ids: Any) -> None:
    """There must be one source of tokens, a prompt or ids or none, and only with ids what is said of them."""
    if prompt is not None and input_ids is not None:
        raise ValueError("`prompt` and `input_ids` must not both be given, got both. Pass one of them.")
    if prompt is not None and not are_prompts(prompt):
        raise ValueError(
            "`prompt` must be a string or a list of them, or a chat (a list of messages, each with a `role` and a "
            f"`content`) or a list of them, got {prompt!r}. Pass None to write freely."
        )
    if mask is not None and input_ids is None:
        raise ValueError("`mask` must come with `input_ids`, got it alone. In a prompt write [MASK:5].")
    if attention_mask is not None and input_ids is None:
        raise ValueError("`attention_mask` must come with `input_ids`, got it alone. Leave it out.")
    if token_type_ids is not None and not _are_zeros(token_type_ids):
        raise ValueError(
            "`token_type_ids` must be 0 everywhere, got others. Pass texts one by one rather than as pairs."
        )


def _are_zeros(values: Any) -> bool:
    try:
        return not bool(torch.as_tensor(values).any())
    except (TypeError, ValueError, RuntimeError):  # no numbers
        return False


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
