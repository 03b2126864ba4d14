"""The layers of MDLM's denoiser."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn

from hf_maskdiff.caching import KeyValueSlot, LayerCache

_NUM_FREQUENCIES = 128
_NOISE_EPS = 1e-3


def log_linear_noise(t: torch.Tensor) -> torch.Tensor:
    """The noise level sigma at which MDLM masks a share 0.999 t of the tokens: `-log(1 - 0.999 t)`, shaped like `t`."""
    return -torch.log1p((_NOISE_EPS - 1) * t)


class MDLMTokenEmbedding(nn.Module):
    """A table of token vectors."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(num_embeddings, embedding_dim))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return F.embedding(input_ids, self.embedding)


class MDLMNoiseEmbedding(nn.Module):
    """Embeds the noise level, as cosines and sines through two layers; all adaptive norms are conditioned on it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * _NUM_FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, sigma: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        exponents = torch.arange(_NUM_FREQUENCIES, device=sigma.device, dtype=torch.float32) / _NUM_FREQUENCIES
        angles = sigma.float()[:, None] * torch.exp(-math.log(10_000) * exponents)
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return F.silu(self.mlp(features.to(dtype)))


class MDLMRotaryEmbedding(nn.Module):
    """Cosines and sines that rotate queries and keys by their positions, each `(..., 1, head_dim / 2)`."""

    inv_freq: torch.Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", self._frequencies(head_dim // 2, None))

    @staticmethod
    def _frequencies(num: int, device: torch.device | None) -> torch.Tensor:
        return 10_000.0 ** (-torch.arange(num, device=device, dtype=torch.float32) / num)

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # The buffer exists because published files hold it; it is too coarse in half precision, so compute it anew.
        frequencies = self._frequencies(len(self.inv_freq), self.inv_freq.device)
        angles = (positions.to(frequencies.device, torch.float32)[..., None] * frequencies)[..., None, :]
        return angles.cos(), angles.sin()


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates the pairs (i, i + head_dim / 2) of `(batch_size, sequence_length, num_heads, head_dim)`."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(states.dtype)


class AdaLayerNorm(nn.Module):
    """Layer norm whose gain and offset depend on the condition, computed in float32 for half-precision input.

    `normalise(x) * weight * (1 + scale) + shift`; `shift` and `scale` are `(1 or batch_size, 1, dim)`.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, hidden_states: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        normalised = F.layer_norm(hidden_states.to(dtype), self.weight.shape)
        gain = self.weight.to(dtype) * (1 + scale.to(dtype))
        return torch.addcmul(shift.to(dtype), normalised, gain).to(hidden_states.dtype)


class MDLMAttnProcessor:
    """Softmax attention with rotary positions over all real tokens, through whichever attention backend is selected."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: MDLMAttention,
        projected: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        kept: LayerCache | None,
    ) -> torch.Tensor:
        query, key, value = projected.unflatten(-1, (3, attn.heads, -1)).unbind(2)
        query, key = rotate(query, *rotary), rotate(key, *rotary)
        key, value = attn.key_value_slot(key, value, kept)
        hidden_states = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return hidden_states.flatten(2, 3).to(query.dtype)


class MDLMAttention(nn.Module, AttentionModuleMixin):
    """The attention between a block's two projections; it has no weights."""

    _default_processor_cls = MDLMAttnProcessor
    _available_processors = [MDLMAttnProcessor]  # noqa: RUF012 (diffusers' convention)
    _supports_qkv_fusion = False  # published weights are fused
    fused_projections = True

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.key_value_slot = KeyValueSlot()
        self.processor = self._default_processor_cls()

    def forward(
        self,
        projected: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        kept: LayerCache | None = None,
    ) -> torch.Tensor:
        return self.processor(self, projected, rotary, attention_mask, kept)


class MDLMTransformerBlock(nn.Module):
    """Attention and feed-forward, each shifted, scaled and gated by the condition."""

    def __init__(self, dim: int, cond_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = AdaLayerNorm(dim)
        self.attn_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.attn = MDLMAttention(heads)
        self.attn_out = nn.Linear(dim, dim, bias=False)
        self.norm2 = AdaLayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate="tanh"), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)
        self.adaLN_modulation = nn.Linear(cond_dim, 6 * dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        condition: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        kept: LayerCache | None = None,
    ) -> torch.Tensor:
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = (
            self.adaLN_modulation(condition).unsqueeze(1).chunk(6, dim=-1)
        )
        projected = self.attn_qkv(self.norm1(hidden_states, shift_attn, scale_attn))
        attended = self.attn(projected, rotary, attention_mask, kept)
        hidden_states = hidden_states + gate_attn * self.dropout(self.attn_out(attended))
        fed = self.mlp(self.norm2(hidden_states, shift_mlp, scale_mlp))
        return hidden_states + gate_mlp * self.dropout(fed)


# diffusers' FirstBlockCache and MagCache support only block classes that are registered like this.
TransformerBlockRegistry.register(MDLMTransformerBlock, TransformerBlockMetadata(return_hidden_states_index=0))


class MDLMOutputLayer(nn.Module):
    """The final adaptive norm and the projection to one logit per token."""

    def __init__(self, dim: int, cond_dim: int, vocab_size: int) -> None:
        super().__init__()
        self.norm_final = AdaLayerNorm(dim)
        self.linear = nn.Linear(dim, vocab_size)
        self.adaLN_modulation = nn.Linear(cond_dim, 2 * dim)

    def forward(self, hidden_states: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift, scale = self.adaLN_modulation(condition).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(self.norm_final(hidden_states, shift, scale))
