"""Texts of the harness as token ids, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_maskdiff.pipelines import MaskedDiffusionTextPipeline
from hf_maskdiff.pipelines.likelihood_pairs import encode_pair
from hf_maskdiff.pipelines.text_output import ends_of_text
from hf_maskdiff.pipelines.text_prompts import EncodedPrompt, PromptEncoder


@dataclass(frozen=True)
class Row:
    """A text, and which of its tokens are asked for.

    Args:
        ids: int64 `(length,)`.
        own: those of the continuation; of a text to be continued empty, where it goes on.
        num_after: special tokens behind it.
    """

    ids: Tensor
    own: slice
    num_after: int = 0

    @property
    def mask(self) -> Tensor:
        """The continuation's places, bool `(length,)`."""
        places = torch.arange(len(self.ids))
        return (places >= self.own.start) & (places < self.own.stop)


class HarnessTexts:
    """Encodes contexts and continuations as the harness means them, and decodes what was written.

    Every letter is text: no places to fill in are read from it. Contexts that are too long lose their beginning, as
    everywhere in the harness.

    Args:
        pipe: its tokenizer.
        max_length: tokens of the longest text; None for no limit.
        add_bos_token: whether every text begins with the beginning of text.

    Raises:
        ValueError: there is no beginning of text.

    Attributes:
        is_chat: set once the harness has put contexts through the chat template, which writes the special tokens.
    """

    def __init__(self, pipe: MaskedDiffusionTextPipeline, max_length: int | None, add_bos_token: bool = False) -> None:
        self.tokenizer, self.max_length, self.is_chat = pipe.tokenizer, max_length, False
        self._encoder: PromptEncoder = pipe._encoder()
        self._ends = ends_of_text(pipe.tokenizer, pipe.config.eos_token_ids)
        start = pipe.tokenizer.bos_token_id
        if add_bos_token and start is None:
            raise ValueError("`add_bos_token` needs a tokenizer with a `bos_token`, got one without. Leave it out.")
        self._start = torch.tensor([start] if add_bos_token else [], dtype=torch.int64)

    @property
    def ends(self) -> bool:
        """Whether any token ends a text."""
        return bool(self._ends)

    def pair(self, context: str, continuation: str) -> Row:
        """A context with its continuation; spaces at the context's end are the continuation's."""
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        found, own = encode_pair(self._encoder, _as_text(stripped), _as_text(continuation))
        return self._cut(self._bare(found, own, stripped), 0)

    def context(self, text: str, num_new: int) -> Row:
        """A context that so many tokens are to follow."""
        found = self._encoder.encode(_as_text(text) or None)
        end = len(found.ids) - found.num_after
        return self._cut(self._bare(found, slice(end, end), text), num_new)

    def pieces(self, text: str) -> list[Row]:
        """A text as pieces of the model's length, each scored given the token before it."""
        found = self._encoder.encode(_as_text(text))
        before, ids = self._begun(found.ids[: found.num_before]), found.ids[found.is_text()]
        after = found.ids[len(found.ids) - found.num_after :]
        size = len(ids) if self.max_length is None else self.max_length - len(before) - len(after) - 1
        rows = []
        for start in range(0, len(ids), max(size, 1)):
            known = torch.cat([before, ids[max(start - 1, 0) : start]])
            own = ids[start : start + size]
            rows.append(Row(torch.cat([known, own, after]), slice(len(known), len(known) + len(own)), len(after)))
        return rows

    def written(self, sequence: Tensor, row: Row, until: Sequence[str]) -> str:
        """What stands behind a context, up to the first stop sequence, without special tokens."""
        ids = sequence[row.own.start : len(sequence) - row.num_after].cpu()
        ended = torch.isin(ids, torch.tensor(self._ends, dtype=ids.dtype)).nonzero()[:, 0]
        text = str(self.tokenizer.decode(ids[: int(ended[0])] if len(ended) else ids))
        for stop in filter(None, until):
            text = text.split(stop)[0]
        for token in self.tokenizer.all_special_tokens:
            text = text.replace(token, "")
        return text

    def _bare(self, found: EncodedPrompt, own: slice, text: str) -> Row:
        """Without the tokenizer's special tokens where the text brings its own."""
        start, ids, shift = str(self.tokenizer.bos_token or ""), found.ids, 0
        bare = self.is_chat or bool(start and text.startswith(start))
        if bare:
            ids, shift = ids[found.is_text()], -found.num_before
        begun = self._begun(ids)
        shift += len(begun) - len(ids)
        return Row(begun, slice(own.start + shift, own.stop + shift), 0 if bare else found.num_after)

    def _begun(self, ids: Tensor) -> Tensor:
        """With the beginning of text, if it is asked for and not there."""
        has = len(ids) > 0 and len(self._start) > 0 and int(ids[0]) == int(self._start[0])
        return ids if has else torch.cat([self._start, ids])

    def _cut(self, row: Row, num_new: int) -> Row:
        if self.max_length is None or len(row.ids) + num_new <= self.max_length:
            return row
        over = len(row.ids) + num_new - self.max_length
        keeps = max(len(self._start), 0 if self.is_chat else len(self._encoder.special_tokens[0]))
        if over > row.own.start - keeps:
            raise ValueError(
                f"what is asked for must fit the model's length {self.max_length}, got {num_new} new tokens, or a "
                f"continuation of {row.own.stop - row.own.start}. Pass a smaller max_gen_toks."
            )
        ids = torch.cat([row.ids[:keeps], row.ids[keeps + over :]])
        return Row(ids, slice(row.own.start - over, row.own.stop - over), row.num_after)


def _as_text(text: str) -> str:
    """A text in which no place to fill in is read."""
    return text.replace("[MASK", "\\[MASK")


def settings_of_task(given: dict[str, Any], default_tokens: int) -> tuple[list[str], int, float, dict[str, Any]]:
    """What a task asks of a text: its stop sequences, its length, the temperature, and what is left.

    Args:
        given: the task's `generation_kwargs`.
        default_tokens: its length, where the task does not say.
    """
    rest = dict(given)
    until = rest.pop("until", None) or []
    lengths = [rest.pop(name, None) for name in ("max_gen_toks", "max_new_tokens", "max_tokens")]
    length = next((int(one) for one in lengths if one is not None), default_tokens)
    asked = rest.pop("temperature", None)
    samples = bool(rest.pop("do_sample", (asked or 0) > 0))
    temperature = float(samples if asked is None else asked)  # as in transformers, 1 where it is only said to sample
    return [until] if isinstance(until, str) else list(until), length, temperature if samples else 0.0, rest
