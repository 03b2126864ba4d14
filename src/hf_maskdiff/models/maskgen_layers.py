"""The layers of MaskGen: codes and text have weights of their own, and attend to all of both."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.attention import AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero
from torch import Tensor, nn

from hf_maskdiff.caching import KeyValueSlot, LayerCache
from hf_maskdiff.models.meissonic_layers import bounded

_EPS = 1e-6


class MaskGenAttnProcessor:
    """Softmax attention of queries to the keys of codes and text, through whichever attention backend is selected."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: MaskGenAttention, hidden_states: Tensor, encoder_hidden_states: Tensor, kept: LayerCache | None
    ) -> tuple[Tensor, Tensor]:
        of_codes, of_text = attn.of_codes(hidden_states), attn.of_text(encoder_hidden_states)
        key, value = (torch.cat(pair, 1) for pair in zip(of_codes[-2:], of_text[-2:], strict=True))
        key, value = attn.key_value_slot(key, value, kept)
        query = torch.cat([*of_codes[:-2], *of_text[:-2]], 1)
        attended = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        attended = attended.flatten(2, 3).to(query.dtype)
        count = hidden_states.shape[1]
        codes = attended[:, :count]
        for module in attn.to_out:
            codes = module(codes)
        return codes, attended[:, count:]


class MaskGenAttention(nn.Module, AttentionModuleMixin):
    """The codes attend to codes and text; nothing asks what the text would attend to."""

    _default_processor_cls: Any = MaskGenAttnProcessor
    _available_processors: Any = [MaskGenAttnProcessor]  # noqa: RUF012 (diffusers' convention)
    to_qkv: nn.Linear  # exists only while the projections are fused

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.use_bias = True
        self.added_proj_bias = True
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.add_k_proj = nn.Linear(dim, dim)
        self.add_v_proj = nn.Linear(dim, dim)
        self.key_value_slot = KeyValueSlot()
        self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Dropout(0.0)])
        self.processor = self._default_processor_cls()

    def of_codes(self, states: Tensor) -> list[Tensor]:
        """Queries, keys and values of the codes, `(batch_size, num_codes, heads, head_dim)`."""
        if self.fused_projections:
            return self._by_head(*self.to_qkv(states).chunk(3, dim=-1))
        return self._by_head(self.to_q(states), self.to_k(states), self.to_v(states))

    def of_text(self, states: Tensor) -> list[Tensor]:
        """Keys and values of the text, before them queries where there are any."""
        return self._by_head(self.add_k_proj(states), self.add_v_proj(states))

    def _by_head(self, *parts: Tensor) -> list[Tensor]:
        return [part.unflatten(-1, (self.heads, -1)) for part in parts]

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, kept: LayerCache | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.processor(self, hidden_states, encoder_hidden_states, kept)


class MaskGenJointAttention(MaskGenAttention):
    """Codes and text attend to all of both."""

    to_added_qkv: nn.Linear  # exists only while the projections are fused

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.add_q_proj = nn.Linear(dim, dim)
        self.to_add_out = nn.Linear(dim, dim)

    def of_text(self, states: Tensor) -> list[Tensor]:
        if self.fused_projections:
            return self._by_head(*self.to_added_qkv(states).chunk(3, dim=-1))
        return self._by_head(self.add_q_proj(states), self.add_k_proj(states), self.add_v_proj(states))

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, kept: LayerCache | None = None
    ) -> tuple[Tensor, Tensor]:
        codes, text = super().forward(hidden_states, encoder_hidden_states, kept)
        return codes, self.to_add_out(text)


def _finished(states: Tensor, attended: Tensor, modulation: list[Tensor], norm: nn.Module, ff: nn.Module) -> Tensor:
    """The states after attention and feed-forward; both are gated."""
    gate_attn, shift, scale, gate_ff = (part[:, None] for part in modulation)
    states = states + gate_attn * attended
    return states + gate_ff * ff(norm(states) * (1 + scale) + shift)


class MaskGenJointBlock(nn.Module):
    """A block of which both codes and text come out anew."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = AdaLayerNormZero(dim)
        self.norm1_context = AdaLayerNormZero(dim)
        self.attn = MaskGenJointAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, _EPS, elementwise_affine=False)
        self.ff = FeedForward(dim, activation_fn="gelu-approximate")
        self.norm2_context = nn.LayerNorm(dim, _EPS, elementwise_affine=False)
        self.ff_context = FeedForward(dim, activation_fn="gelu-approximate")

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, kept: LayerCache | None = None
    ) -> tuple[Tensor, Tensor]:
        codes, *of_codes = self.norm1(hidden_states, emb=temb)
        text, *of_text = self.norm1_context(encoder_hidden_states, emb=temb)
        codes, text = self.attn(codes, text, kept)
        text = _finished(encoder_hidden_states, text, of_text, self.norm2_context, self.ff_context)
        return bounded(text), _finished(hidden_states, codes, of_codes, self.norm2, self.ff)


class MaskGenLastBlock(nn.Module):
    """A block that reads the text and leaves it as it is, since no block follows that would read it."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = AdaLayerNormZero(dim)
        self.norm1_context = AdaLayerNormContinuous(dim, dim, elementwise_affine=False, eps=_EPS)
        self.attn = MaskGenAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, _EPS, elementwise_affine=False)
        self.ff = FeedForward(dim, activation_fn="gelu-approximate")

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, kept: LayerCache | None = None
    ) -> tuple[Tensor, Tensor]:
        codes, *of_codes = self.norm1(hidden_states, emb=temb)
        codes, _ = self.attn(codes, self.norm1_context(encoder_hidden_states, temb), kept)
        return encoder_hidden_states, _finished(hidden_states, codes, of_codes, self.norm2, self.ff)


# diffusers' FirstBlockCache and MagCache support only block classes that are registered like this.
for _block in (MaskGenJointBlock, MaskGenLastBlock):
    TransformerBlockRegistry.register(
        _block, TransformerBlockMetadata(return_hidden_states_index=1, return_encoder_hidden_states_index=0)
    )
