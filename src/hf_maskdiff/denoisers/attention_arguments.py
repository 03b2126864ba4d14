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


def require_steady_rotations(config: Any, length: int, attention_mask: Tensor | None, stores: bool) -> None:
    """Raise `ValueError` where the rotary frequencies of a text depend on more than the text itself.

    With `rope_type` "longrope" a pass that reaches beyond a length takes other frequencies, for all of its rows and
    queries; with "dynamic" also later passes do. So a short text would change with what it shares a batch with, and
    stored keys would be turned otherwise than a partial pass's queries.

    Args:
        config: of the model.
        length: of the longest text, with padding.
        attention_mask: bool `(batch_size, L)`, False for padding; None for none.
        stores: whether keys are stored for later passes, or are those of earlier ones.
    """
    given = getattr(config, "rope_parameters", None) or {}
    # Some models have such of each kind of layer.
    kinds = {found.get("rope_type"): found for found in (given, *given.values()) if isinstance(found, dict)}
    kind = next((name for name in ("dynamic", "longrope") if name in kinds), None)
    if kind is None:
        return
    limit = config.max_position_embeddings
    if kind == "longrope":
        limit = kinds[kind].get("original_max_position_embeddings") or limit
    if length <= limit:
        return
    if stores or kind == "dynamic":
        raise ValueError(
            f"with `rope_type` {kind!r} frequencies change beyond {limit} tokens, so that texts must be shorter"
            f"{' where keys are stored' if kind == 'longrope' else ''}, got {length}. "
            + ("Call `disable_cache()`, or pass shorter texts." if kind == "longrope" else "Pass shorter texts.")
        )
    shortest = length if attention_mask is None else int(attention_mask.sum(-1).min())
    if shortest <= limit:
        raise ValueError(
            f"with `rope_type` {kind!r} frequencies change beyond {limit} tokens, so that all texts of a pass must be "
            f"longer, or none, got one of {shortest} beside {length}. Pass them in calls of their own, or for "
            "likelihoods a `batch_size` of 1."
        )
