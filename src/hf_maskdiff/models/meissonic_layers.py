"""The layers of Meissonic: blocks in which image and text have weights of their own, and blocks that they share."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.attention import AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.normalization import AdaLayerNormZero, AdaLayerNormZeroSingle
from torch import Tensor, nn

from hf_maskdiff.caching import KeyValueSlot, LayerCache

Rotary = tuple[Tensor, Tensor]  # cosine and sine, (batch_size or 1, num_tokens, 1, head_dim / 2), float32
_THETA = 10000.0
_EPS = 1e-6


def rotary_of(row: Tensor, column: Tensor, num_text: int, axes: tuple[int, int, int]) -> Rotary:
    """The rotation of each position's queries and keys by its place; text stands at place 0.

    Pair i of an axis that has `dim` of a head's numbers turns by `place / 10000 ** (2 i / dim)`.

    Args:
        row, column: of the image's positions, int64 `(batch_size, K)`, or `(K,)` for all rows alike.
        num_text: number of tokens of text, which follow the image's positions.
        axes: how many of a head's numbers turn with an index that is 0 here, with the row, and with the column.
    """
    wide = torch.float32 if row.device.type == "mps" else torch.float64  # the former has no float64
    angles = []
    for place, dim in zip((torch.zeros_like(row), row, column), axes, strict=True):
        frequency = _THETA ** (-torch.arange(0, dim, 2, dtype=wide, device=row.device) / dim)
        angles.append(place[..., None] * frequency)
    angle = nn.functional.pad(torch.cat(angles, -1), (0, 0, 0, num_text))
    angle = angle.view(-1, *angle.shape[-2:])[:, :, None]
    return angle.cos().float(), angle.sin().float()


def rotated(states: Tensor, rotary: Rotary) -> Tensor:
    """Queries or keys `(batch_size, num_tokens, heads, head_dim)`, turned pair by pair."""
    cos, sin = rotary
    wide = states.to(torch.promote_types(states.dtype, torch.float32))
    first, second = wide.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], -1)
    return turned.flatten(-2).to(states.dtype)


def bounded(states: Tensor) -> Tensor:
    """The states without infinities that float16 would give where sums exceed its range."""
    if states.dtype != torch.float16:
        return states
    return states.clip(torch.finfo(torch.float16).min, torch.finfo(torch.float16).max)


def _attend(processor: Any, attn: Any, query: Tensor, key: Tensor, value: Tensor, kept: LayerCache | None) -> Tensor:
    key, value = attn.key_value_slot(key, value, kept)
    attended = dispatch_attention_fn(
        query, key, value, backend=processor._attention_backend, parallel_config=processor._parallel_config
    )
    return attended.flatten(2, 3).to(query.dtype)


class MeissonicAttnProcessor:
    """Plain softmax attention, through whichever attention backend is selected."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self, attn: MeissonicAttention, hidden_states: Tensor, rotary: Rotary, kept: LayerCache | None
    ) -> Tensor:
        query, key, value = attn.projected(hidden_states)
        return _attend(self, attn, rotated(query, rotary), rotated(key, rotary), value, kept)


class MeissonicJointAttnProcessor:
    """Softmax attention over image and text together, each projected by weights of its own."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: MeissonicJointAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        rotary: Rotary,
        kept: LayerCache | None,
    ) -> tuple[Tensor, Tensor]:
        both = zip(attn.projected(hidden_states), attn.text_projected(encoder_hidden_states), strict=True)
        query, key, value = (torch.cat(pair, 1) for pair in both)
        attended = _attend(self, attn, rotated(query, rotary), rotated(key, rotary), value, kept)
        image, text = attended.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], 1)
        for module in attn.to_out:
            image = module(image)
        return image, attn.to_add_out(text)


class MeissonicAttention(nn.Module, AttentionModuleMixin):
    """Self-attention with biases; queries and keys are normalised head by head, then turned by their place."""

    _default_processor_cls: Any = MeissonicAttnProcessor
    _available_processors: Any = [MeissonicAttnProcessor]  # noqa: RUF012 (diffusers' convention)
    to_qkv: nn.Linear  # exists only while the projections are fused

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.use_bias = True
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.norm_q = nn.RMSNorm(dim // heads, eps=_EPS)
        self.norm_k = nn.RMSNorm(dim // heads, eps=_EPS)
        self.key_value_slot = KeyValueSlot()
        self.processor = self._default_processor_cls()

    def projected(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, `(batch_size, num_tokens, heads, head_dim)`, before they are turned."""
        if self.fused_projections:
            parts = self.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            parts = (self.to_q(hidden_states), self.to_k(hidden_states), self.to_v(hidden_states))
        query, key, value = (states.unflatten(-1, (self.heads, -1)) for states in parts)
        return self.norm_q(query), self.norm_k(key), value

    def forward(self, hidden_states: Tensor, rotary: Rotary, kept: LayerCache | None = None) -> Tensor:
        return self.processor(self, hidden_states, rotary, kept)


class MeissonicJointAttention(MeissonicAttention):
    """Attention over image and text together, with projections of its own for each."""

    _default_processor_cls = MeissonicJointAttnProcessor
    _available_processors = [MeissonicJointAttnProcessor]  # noqa: RUF012 (diffusers' convention)
    to_added_qkv: nn.Linear  # exists only while the projections are fused

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.added_proj_bias = True
        self.add_q_proj = nn.Linear(dim, dim)
        self.add_k_proj = nn.Linear(dim, dim)
        self.add_v_proj = nn.Linear(dim, dim)
        self.norm_added_q = nn.RMSNorm(dim // heads, eps=_EPS)
        self.norm_added_k = nn.RMSNorm(dim // heads, eps=_EPS)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Dropout(0.0)])
        self.to_add_out = nn.Linear(dim, dim)

    def text_projected(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `projected`, of the text."""
        if self.fused_projections:
            parts = self.to_added_qkv(states).chunk(3, dim=-1)
        else:
            parts = (self.add_q_proj(states), self.add_k_proj(states), self.add_v_proj(states))
        query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        return self.norm_added_q(query), self.norm_added_k(key), value

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, rotary: Rotary, kept: LayerCache | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.processor(self, hidden_states, encoder_hidden_states, rotary, kept)


class MeissonicJointBlock(nn.Module):
    """Image and text attend to all of both; each has its own norms, projections and feed-forward."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = AdaLayerNormZero(dim)
        self.norm1_context = AdaLayerNormZero(dim)
        self.attn = MeissonicJointAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, _EPS, elementwise_affine=False)
        self.ff = FeedForward(dim, activation_fn="gelu-approximate")
        self.norm2_context = nn.LayerNorm(dim, _EPS, elementwise_affine=False)
        self.ff_context = FeedForward(dim, activation_fn="gelu-approximate")

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        rotary: Rotary,
        kept: LayerCache | None = None,
    ) -> tuple[Tensor, Tensor]:
        image, *of_image = self.norm1(hidden_states, emb=temb)
        text, *of_text = self.norm1_context(encoder_hidden_states, emb=temb)
        image, text = self.attn(image, text, rotary, kept)
        hidden_states = self._rest(hidden_states, image, of_image, self.norm2, self.ff)
        encoder_hidden_states = self._rest(encoder_hidden_states, text, of_text, self.norm2_context, self.ff_context)
        return bounded(encoder_hidden_states), hidden_states

    @staticmethod
    def _rest(states: Tensor, attended: Tensor, modulation: list[Tensor], norm: nn.Module, ff: nn.Module) -> Tensor:
        gate_attn, shift, scale, gate_ff = (part[:, None] for part in modulation)
        states = states + gate_attn * attended
        return states + gate_ff * ff(norm(states) * (1 + scale) + shift)


class MeissonicSingleBlock(nn.Module):
    """Image and text as one row of tokens with the same weights; attention and feed-forward run side by side."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm = AdaLayerNormZeroSingle(dim)
        self.attn = MeissonicAttention(dim, heads)
        self.proj_mlp = nn.Linear(dim, 4 * dim)
        self.act_mlp = nn.GELU(approximate="tanh")
        self.proj_out = nn.Linear(5 * dim, dim)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        rotary: Rotary,
        kept: LayerCache | None = None,
    ) -> tuple[Tensor, Tensor]:
        states = torch.cat([hidden_states, encoder_hidden_states], 1)
        normed, gate = self.norm(states, emb=temb)
        halves = torch.cat([self.attn(normed, rotary, kept), self.act_mlp(self.proj_mlp(normed))], -1)
        states = bounded(states + gate[:, None] * self.proj_out(halves))
        image, text = states.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], 1)
        return text, image


# diffusers' FirstBlockCache and MagCache support only block classes that are registered like this.
for _block in (MeissonicJointBlock, MeissonicSingleBlock):
    TransformerBlockRegistry.register(
        _block, TransformerBlockMetadata(return_hidden_states_index=1, return_encoder_hidden_states_index=0)
    )
