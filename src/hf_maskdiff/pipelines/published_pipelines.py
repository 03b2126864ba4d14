"""Repositories of models, opened as what a text pipeline needs."""

from __future__ import annotations

import os
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..attention_rule import FULL
from ..models import MDLMTransformer
from ..published import PublishedText, check_ids, load_published_text, open_tokenizer
from ..published.malformed import settings_of
from ..published.mdlm_weights import LOCATION
from ..schedulers import ConfidenceScheduler, FirstHittingScheduler, MaskedDiffusionScheduler

# Of the repositories of MDLM's and BD3-LM's authors, which hold none.
PUBLISHED_TOKENIZER = "openai-community/gpt2"


def open_published(name_or_path: str | os.PathLike, **kwargs: Any) -> PublishedText:
    """As `load_published_text`; BD3-LM (kuleshov-group/bd3lm-owt-block_size4) as `MDLMTransformer`."""
    location = {name: kwargs[name] for name in LOCATION if kwargs.get(name) is not None}
    what = f"config.json in {str(name_or_path)!r}"
    try:
        config = settings_of(what, lambda: MDLMTransformer.load_config(name_or_path, **location))
    except OSError:
        config = {}  # an adapter's, or nothing: it says which
    if config.get("model_type") != "bd3lm":
        return load_published_text(name_or_path, **kwargs)

    attention, block_size = kwargs.pop("attention", None), kwargs.pop("block_size", None)
    if attention == FULL or block_size not in (None, config.get("block_size")):
        raise ValueError(
            f"`attention` and `block_size` must be those of {what}, 'block_causal' and {config.get('block_size')}, got "
            f"{attention!r} and {block_size!r}. Leave them out."
        )
    tokenizer = kwargs.pop("tokenizer", None) or PUBLISHED_TOKENIZER
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer = open_tokenizer(tokenizer)
    model = MDLMTransformer.from_pretrained(name_or_path, **kwargs)
    check_ids(tokenizer, model.config.vocab_size)
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return PublishedText(model, tokenizer, model.config.vocab_size - 1, False, ends)


def scheduler_of(found: PublishedText) -> MaskedDiffusionScheduler:
    """How a published model is sampled unless somebody says otherwise: LLaDA's way, BD3-LM's its own."""
    mask_token_id, rows = found.mask_token_id, found.model.config.vocab_size
    if isinstance(found.model, MDLMTransformer):
        return FirstHittingScheduler(mask_token_id=mask_token_id, codebook_size=mask_token_id)
    return ConfidenceScheduler(
        mask_token_id=mask_token_id,
        codebook_size=min(len(found.tokenizer), rows),
        masking_schedule="linear",
        rounding="even",
        token_temperature=0,
    )
