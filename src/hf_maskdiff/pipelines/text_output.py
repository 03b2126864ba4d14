"""From token ids back to text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .text_windows import first

OUTPUT_TYPES = ("text", "ids")


@dataclass
class MaskedDiffusionTextPipelineOutput(BaseOutput):
    """Output of `MaskedDiffusionTextPipeline`.

    Args:
        sequences: token ids of each sequence, prompt included, int64 `(length,)`; lengths differ.
        texts: the sequences as text, of a chat only the answer; None for `output_type="ids"`.
        num_model_passes: full passes of the model for each sequence.
        num_partial_passes: passes over only some of its positions: those of a cache across steps, and those of the
            groups of a step (`PartialCacheConfig`). A guided pass counts once, and only for sequences that take part.
    """

    sequences: list[Tensor]
    texts: list[str] | None
    num_model_passes: list[int]
    num_partial_passes: list[int]


def decode_with_masks(
    tokenizer: PreTrainedTokenizerBase, sequences: Iterable[Tensor], mask_token_id: int, mask_text: str
) -> list[str]:
    """Texts of sequences that may still hold masks, each of which reads as `mask_text`."""

    def text(ids: list[int]) -> str:
        runs = ((masked, list(run)) for masked, run in groupby(ids, lambda token: token == mask_token_id))
        return "".join(
            mask_text * len(run) if masked else str(tokenizer.decode(run, skip_special_tokens=True))
            for masked, run in runs
        )

    return [text(ids.tolist()) for ids in sequences]


def ends_of_text(tokenizer: PreTrainedTokenizerBase, eos_token_ids: Sequence[int] | None) -> list[int]:
    """Tokens that end a text: those named, or the tokenizer's own."""
    if eos_token_ids is not None:
        return list(eos_token_ids)
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def cut_at_end(sequence: Tensor, ends: Sequence[int], prompt_length: int, mask_token_id: int) -> Tensor:
    """A sequence up to and including the first end of text that was written; all of it if there is none yet.

    Args:
        sequence: int64 `(length,)`.
        ends: tokens that end a text.
        prompt_length: ends before this place are the prompt's.
        mask_token_id: an end behind a mask does not count before that is filled in.
    """
    places = torch.isin(sequence, torch.tensor(list(ends), device=sequence.device)).nonzero()[:, 0]
    first_mask = first(sequence == mask_token_id)
    places = places[(places >= prompt_length) & (places < first_mask)]
    return sequence[: int(places[0]) + 1] if len(places) else sequence
