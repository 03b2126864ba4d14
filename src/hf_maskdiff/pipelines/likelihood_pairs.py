"""From prompts and continuations to token ids, of which those of the continuation are scored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .text_prompts import EncodedPrompt, Prompt, PromptEncoder, is_prompt


def as_pairs(prompts: Any, continuations: Any) -> list[tuple[Prompt | None, str]]:
    """One prompt for each continuation; a single one is that of all.

    Raises:
        ValueError: other numbers, or other types.
    """
    wanted = [continuations] if isinstance(continuations, str) else continuations
    if not isinstance(wanted, list | tuple) or not wanted or not all(isinstance(one, str) and one for one in wanted):
        raise ValueError(
            "`continuations` must be a string or a list of them, none empty, got "
            f"{continuations!r:.60}. Pass what is to be scored."
        )
    if prompts is None or is_prompt(prompts):
        given: list[Any] = [prompts] * len(wanted)
    elif isinstance(prompts, list | tuple) and all(one is None or is_prompt(one) for one in prompts):
        given = list(prompts)
    else:
        raise ValueError(
            "`prompts` must be a string, a chat (a list of messages, each with a `role` and a `content`), a list of "
            f"these, or None, got {prompts!r:.60}. Pass None to score texts by themselves."
        )
    if len(given) != len(wanted):
        raise ValueError(
            f"`prompts` must be one, or one for each of the {len(wanted)} continuations, got {len(given)}. Repeat a "
            "prompt that has several continuations."
        )
    return list(zip(given, wanted, strict=True))


def encode_pair(encoder: PromptEncoder, prompt: Prompt | None, continuation: str) -> tuple[EncodedPrompt, slice]:
    """A prompt with its continuation, as the tokenizer builds them, and which of the ids are the continuation's.

    Both are encoded as one text, so that the continuation's first token is what it would be there. Where that changes
    the prompt's own tokens, spaces at its end become the continuation's, as is usual for tokenizers whose words begin
    with a space. Where it still does, each is encoded by itself. A continuation of a chat stands behind its template.

    Raises:
        ValueError: see `PromptEncoder.encode`; masks in either.
    """
    if prompt is not None and not isinstance(prompt, str):
        return _joined(encoder, encoder.encode(prompt), continuation)
    if not prompt:
        return _continued(encoder, EncodedPrompt(torch.zeros(0, dtype=torch.int64)), encoder.encode(continuation))
    for text in dict.fromkeys([prompt, prompt.rstrip()]):
        if not text:
            break
        before, whole = encoder.encode(text), encoder.encode(prompt + continuation)
        end = len(before.ids) - before.num_after
        ends_unknown = end > 0 and int(before.ids[end - 1]) == encoder.tokenizer.unk_token_id
        if ends_unknown and not (prompt + continuation)[len(text)].isspace():
            continue  # one unknown word, which would take in the continuation's beginning
        if end < len(whole.ids) - whole.num_after and torch.equal(whole.ids[:end], before.ids[:end]):
            return _continued(encoder, before, whole)
    return _joined(encoder, encoder.encode(prompt), continuation)


def _continued(encoder: PromptEncoder, before: EncodedPrompt, whole: EncodedPrompt) -> tuple[EncodedPrompt, slice]:
    start = max(len(before.ids) - before.num_after, whole.num_before)
    return _without_masks(encoder, whole), slice(start, len(whole.ids) - whole.num_after)


def _joined(encoder: PromptEncoder, before: EncodedPrompt, continuation: str) -> tuple[EncodedPrompt, slice]:
    alone = encoder.encode(continuation)
    own = alone.ids[alone.num_before : len(alone.ids) - alone.num_after]
    start = len(before.ids) - before.num_after
    ids = torch.cat([before.ids[:start], own, before.ids[start:]])
    found = EncodedPrompt(ids, before.num_before, before.num_after)
    return _without_masks(encoder, found), slice(start, start + len(own))


def _without_masks(encoder: PromptEncoder, encoded: EncodedPrompt) -> EncodedPrompt:
    if bool((encoded.ids == encoder.mask_token_id).any()):
        raise ValueError(
            "`prompts` and `continuations` must hold no masks, got some. Write \\[MASK] where these letters are meant, "
            "or pass `input_ids` with a `mask` to score places inside a text."
        )
    return encoded


def scored_rows(
    encoder: PromptEncoder, input_ids: Any, mask: Any, attention_mask: Any
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Ids of each row without padding, int64 `(length,)`; which are scored, and which are the prompt's, both bool.

    Raises:
        ValueError: see `PromptEncoder.rows_of_ids`; rows that hold masks, or of which nothing is scored.
    """
    known = encoder.rows_of_ids(input_ids, None, attention_mask)
    masked = encoder.rows_of_ids(input_ids, mask, attention_mask)
    found = []
    for one, hidden in zip(known, masked, strict=True):
        scored = hidden.ids == encoder.mask_token_id
        if bool((one.ids == encoder.mask_token_id).any()) or not bool(scored.any()):
            raise ValueError(
                "`input_ids` must hold no masks, and `mask` at least one True in each row, got "
                f"{int((one.ids == encoder.mask_token_id).sum())} masks and {int(scored.sum())} True. Pass the "
                "tokens that are to be scored, with True at their places."
            )
        found.append((one.ids.cpu(), scored.cpu(), (one.is_text() & ~scored).cpu()))
    return found


__all__ = ["as_pairs", "encode_pair", "scored_rows"]
