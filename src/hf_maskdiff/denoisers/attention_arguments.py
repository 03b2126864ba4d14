"""Arguments that let every position of a transformers model attend to every real one, and limits such as windows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def native(model: PreTrainedModel, attention_mask: Tensor | None) -> dict[str, Any]:
    """The usual arguments, which suffice for an encoder."""
    return {} if attention_mask is None else {"attention_mask": attention_mask.long()}


def not_causal(model: PreTrainedModel, attention_mask: Tensor | None) -> dict[str, Any]:
    """Asks a decoder not to be causal; some decoders ignore this argument."""
    return {**native(model, attention_mask), "is_causal": False}


def explicit(model: PreTrainedModel, attention_mask: Tensor | None) -> dict[str, Any]:
    """A mask that every decoder uses as given; not for models with attention windows, which it would remove."""
    if smallest_window(model.config.get_text_config()) is not None:
        return native(model, attention_mask)
    seen = torch.ones(1, 1, device=model.device, dtype=torch.bool) if attention_mask is None else attention_mask
    return by_query(model, seen[:, None, None])


def by_query(model: PreTrainedModel, seen: Tensor | None) -> dict[str, Any]:
    """A mask for every query, bool `(batch_size or 1, 1, num_queries or 1, num_keys)`: True for a key that it sees."""
    if seen is None:
        return {}
    if model.config._attn_implementation == "sdpa":
        return {"attention_mask": seen}
    hidden = torch.finfo(model.dtype).min
    return {"attention_mask": torch.zeros(seen.shape, dtype=model.dtype, device=seen.device).masked_fill(~seen, hidden)}


def reserved_positions(model: PreTrainedModel) -> int:
    """Number of rows before position 0 in the position table; RoBERTa's family reserves those up to the padding row."""
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    return next((table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None), 0)


def smallest_window(config: Any) -> int | None:
    """The width of the attention window; None if all layers attend to all positions."""
    window = getattr(config, "sliding_window", None) or getattr(config, "local_attention", None)
    layers = getattr(config, "layer_types", None)
    slides = getattr(config, "use_sliding_window", True) if layers is None else "sliding_attention" in layers
    return window if slides else None
