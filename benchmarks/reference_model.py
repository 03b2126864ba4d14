"""A Llama or Qwen3 in 30 lines, with every way of keeping keys and values that the published loops need.

It uses the layers of transformers' own model, so that a loop is compared with ours on the same arithmetic, but none of
the work around them: the published loops bring models of their own that do as little.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

# (layer, new keys, new values) -> the keys and values to attend to, all (batch_size, heads, length, head_dim)
Keep = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


def keep_nothing(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return keys, values


class ReferenceModel:
    """Logits of all given positions, `(batch_size, n, vocab_size)`; counts its calls and the positions computed."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.calls = self.positions = 0

    def __call__(
        self, ids: Tensor, places: Tensor | None = None, keep: Keep = keep_nothing, mask: Tensor | None = None
    ) -> Tensor:
        """One pass over `ids`, which stand at `places` (both `(batch_size, n)`); `mask` is True where to attend."""
        self.calls, self.positions = self.calls + 1, self.positions + ids.shape[1]
        inner = self.model.model
        hidden = inner.embed_tokens(ids)
        places = torch.arange(ids.shape[1], device=ids.device)[None] if places is None else places
        cos, sin = inner.rotary_emb(hidden, places)
        for number, layer in enumerate(inner.layers):
            attention, normed = layer.self_attn, layer.input_layernorm(hidden)
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            query, key, value = (p(normed).unflatten(-1, (-1, attention.head_dim)) for p in projections)
            if hasattr(attention, "q_norm"):
                query, key = attention.q_norm(query), attention.k_norm(key)
            query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
            query, key = apply_rotary_pos_emb(query, key, cos, sin)
            key, value = keep(number, key, value)
            groups = query.shape[1] // key.shape[1]
            if groups > 1:
                key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            hidden = hidden + attention.o_proj(attended.transpose(1, 2).flatten(2))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return self.model.lm_head(inner.norm(hidden))


class Stored:
    """Keys and values of all layers, kept in the ways of the published caches."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.places: Tensor | None = None

    def all(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores those of a whole pass."""
        self.layers[layer] = keys, values
        return keys, values

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores those of a finished block behind the earlier ones."""
        if layer in self.layers:
            keys, values = self.after(layer, keys, values)
        return self.all(layer, keys, values)

    def after(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Attends to the stored ones and then the new ones, which are not stored."""
        if layer not in self.layers:
            return keys, values
        kept_keys, kept_values = self.layers[layer]
        return torch.cat([kept_keys, keys], 2), torch.cat([kept_values, values], 2)

    def cut(self, length: int) -> None:
        """Keeps those of the first `length` positions."""
        self.layers = {n: (keys[:, :, :length], values[:, :, :length]) for n, (keys, values) in self.layers.items()}

    def replace(self, start: int, end: int) -> Keep:
        """Writes the new ones over those of a block."""

        def keep(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            for stored, new in zip(self.layers[layer], (keys, values), strict=True):
                stored[:, :, start:end] = new
            return self.layers[layer]

        return keep
