"""The layers of VampNet's denoiser: T5's relative positions, gated feed-forward, norms without biases."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from hf_maskdiff.caching import KeyValueSlot, LayerCache
from hf_maskdiff.kept_tensors import kept


@kept
def distance_buckets(length: int, num_buckets: int, max_distance: int, device: torch.device) -> Tensor:
    """The bucket of each distance `key - query` from `1 - length` to `length - 1`, int64 `(2 length - 1,)`.

    Half of the buckets are for keys behind the query. Of each half, the first half of the buckets are single distances,
    and the others grow with the logarithm up to `max_distance`; all that is farther is in the last one (T5, arXiv
    1910.10683). The arithmetic is the original's, in float32 on the CPU, so that no device rounds an edge otherwise.
    """
    distance = torch.arange(1 - length, length)
    half = num_buckets // 2
    single = half // 2
    far = torch.log(distance.abs().clamp(min=1).float() / single) / math.log(max_distance / single) * (half - single)
    bucket = torch.where(distance.abs() < single, distance.abs(), (single + far.long()).clamp(max=half - 1))
    return (bucket + half * (distance > 0)).to(device)


class RelativeBias(nn.Module):
    """What is added to attention scores for the distance of key and query: a number for each bucket and head."""

    def __init__(self, num_buckets: int, max_distance: int, heads: int) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.embedding = nn.Embedding(num_buckets, heads)

    def forward(self, queries: Tensor, length: int) -> Tensor:
        """The bias of queries at these places, to keys at all places.

        Args:
            queries: int64 `(num_queries,)` for all rows alike, or `(batch_size, num_queries)`.
            length: number of places.

        Returns:
            `(1 or batch_size, heads, num_queries, length)`.
        """
        num_buckets = self.embedding.num_embeddings
        of_distance = distance_buckets(length, num_buckets, self.max_distance, queries.device)
        by_distance = self.embedding(of_distance).T  # (heads, 2 length - 1)
        distance = torch.arange(length, device=queries.device) - queries[..., None] + (length - 1)
        bias = by_distance[:, distance]
        return bias[None] if queries.ndim == 1 else bias.transpose(0, 1)


class VampNetAttnProcessor:
    """Softmax attention with a bias for distances, through whichever attention backend is selected."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, attn: VampNetAttention, hidden_states: Tensor, bias: Tensor, layer: LayerCache | None) -> Tensor:
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key, value = (states.unflatten(-1, (attn.heads, -1)) for states in (query, key, value))
        key, value = attn.key_value_slot(key, value, layer)
        attended = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=bias.to(query.dtype),
            dropout_p=attn.dropout if attn.training else 0.0,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attn.to_out(attended.flatten(2, 3).to(query.dtype))


class VampNetAttention(nn.Module, AttentionModuleMixin):
    """Self-attention without biases in its projections."""

    _default_processor_cls = VampNetAttnProcessor
    _available_processors = [VampNetAttnProcessor]  # noqa: RUF012 (diffusers' convention)
    to_qkv: nn.Linear  # exists only while the projections are fused

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.use_bias = False
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.key_value_slot = KeyValueSlot()
        self.to_out = nn.Linear(dim, dim, bias=False)
        self.processor = self._default_processor_cls()

    def forward(self, hidden_states: Tensor, bias: Tensor, layer: LayerCache | None = None) -> Tensor:
        return self.processor(self, hidden_states, bias, layer)


class GatedFeedForward(nn.Module):
    """A feed-forward whose first half is multiplied by the GELU, in its form with tanh, of the second."""

    def __init__(self, dim: int, inner_dim: int, dropout: float) -> None:
        super().__init__()
        self.proj_in = nn.Linear(dim, 2 * inner_dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.proj_out = nn.Linear(inner_dim, dim, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        value, gate = self.proj_in(hidden_states).chunk(2, dim=-1)
        return self.proj_out(self.dropout(value * F.gelu(gate, approximate="tanh")))


class VampNetBlock(nn.Module):
    """Attention and feed-forward, each behind a norm and added to what it was given."""

    def __init__(self, dim: int, heads: int, inner_dim: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(dim, eps)
        self.attn = VampNetAttention(dim, heads, dropout)
        self.norm2 = nn.RMSNorm(dim, eps)
        self.ff = GatedFeedForward(dim, inner_dim, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: Tensor, bias: Tensor, layer: LayerCache | None = None) -> Tensor:
        hidden_states = hidden_states + self.dropout(self.attn(self.norm1(hidden_states), bias, layer))
        return hidden_states + self.dropout(self.ff(self.norm2(hidden_states)))


# diffusers' FirstBlockCache and MagCache support only block classes that are registered like this.
TransformerBlockRegistry.register(VampNetBlock, TransformerBlockMetadata(return_hidden_states_index=0))
