"""Arguments that let every position of a transformers model see every real one, and what limits that."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def native(model: PreTrainedModel, attention_mask: Tensor | None) -> dict[str, Any]:
    """The model's own: of an encoder."""
    return {} if attention_mask is None else {"attention_mask": attention_mask.long()}


def not_causal(model: PreTrainedModel, attention_mask: Tensor | None) -> dict[str, Any]:
    """Asks a decoder not to be causal, which some do not hear."""
    return {**native(model, attention_mask), "is_causal": False}


def explicit(model: PreTrainedModel, attention_mask: Tensor | None) -> dict[str, Any]:
    """A mask that every decoder takes as it is; it would leave no window in place."""
    if smallest_window(model.config.get_text_config()) is not None:
        return native(model, attention_mask)
    seen = torch.ones(1, 1, device=model.device, dtype=torch.bool) if attention_mask is None else attention_mask
    seen = seen[:, None, None]
    if model.config._attn_implementation == "sdpa":
        return {"attention_mask": seen}
    hidden = torch.finfo(model.dtype).min
    return {"attention_mask": torch.zeros(seen.shape, dtype=model.dtype, device=seen.device).masked_fill(~seen, hidden)}


def reserved_positions(model: PreTrainedModel) -> int:
    """Rows of a position table that stand before that of place 0: in the family of RoBERTa up to the padding's."""
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    return next((table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None), 0)


def smallest_window(config: Any) -> int | None:
    """How far the positions see in layers that do not see all; None where all layers do."""
    window = getattr(config, "sliding_window", None) or getattr(config, "local_attention", None)
    layers = getattr(config, "layer_types", None)
    slides = getattr(config, "use_sliding_window", True) if layers is None else "sliding_attention" in layers
    return window if slides else None
