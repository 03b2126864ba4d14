"""The layers of the BERT-shaped image denoisers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.attention import AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn

from hf_maskdiff.caching import KeyValueSlot, LayerCache

# The two forms of the GELU: torch's name for each, and diffusers'.
ACTIVATIONS = {"gelu": ("none", "gelu"), "gelu_tanh": ("tanh", "gelu-approximate")}


class TokenTable(nn.Module):
    """One table for both ends of the model: integers are looked up, vectors get a score for each of the first tokens.

    The first `num_scored` tokens are scored. There is one bias per token, or with `num_places` one per place and token,
    `(num_places, num_tokens)`.
    """

    def __init__(self, num_tokens: int, dim: int, num_scored: int, num_places: int | None = None) -> None:
        super().__init__()
        self.num_scored = num_scored
        self.weight = nn.Parameter(torch.empty(num_tokens, dim))
        self.bias = nn.Parameter(torch.zeros(num_tokens if num_places is None else (num_places, num_tokens)))

    def forward(self, tokens_or_states: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
        if not tokens_or_states.is_floating_point():
            return F.embedding(tokens_or_states, self.weight)
        if places is None or self.bias.ndim == 1:
            return F.linear(tokens_or_states, self.weight[: self.num_scored], self.bias[: self.num_scored])
        scores = F.linear(tokens_or_states, self.weight[: self.num_scored])
        return scores + F.embedding(places, self.bias)[..., : self.num_scored]


class MaskGITAttnProcessor:
    """Plain softmax attention over all tokens, through whichever attention backend is selected."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, attn: MaskGITAttention, hidden_states: torch.Tensor, kept: LayerCache | None) -> torch.Tensor:
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key, value = (states.unflatten(-1, (attn.heads, -1)) for states in (query, key, value))
        key, value = attn.key_value_slot(key, value, kept)
        hidden_states = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        hidden_states = hidden_states.flatten(2, 3).to(query.dtype)
        for module in attn.to_out:
            hidden_states = module(hidden_states)
        return hidden_states


class MaskGITAttention(nn.Module, AttentionModuleMixin):
    """Self-attention with biases."""

    _default_processor_cls = MaskGITAttnProcessor
    _available_processors = [MaskGITAttnProcessor]  # noqa: RUF012 (diffusers' convention)
    to_qkv: nn.Linear  # exists only while the projections are fused

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.use_bias = True
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.key_value_slot = KeyValueSlot()
        self.to_out = nn.ModuleList([nn.Linear(dim, dim), nn.Dropout(dropout)])
        self.processor = self._default_processor_cls()

    def forward(self, hidden_states: torch.Tensor, kept: LayerCache | None = None) -> torch.Tensor:
        return self.processor(self, hidden_states, kept)


class MaskGITTransformerBlock(nn.Module):
    """Attention and feed-forward with LayerNorm before each (`norm_first`) or after each, as in BERT."""

    def __init__(
        self, dim: int, heads: int, inner_dim: int, norm_first: bool, activation: str, dropout: float, eps: float
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attn = MaskGITAttention(dim, heads, dropout)
        self.norm1 = nn.LayerNorm(dim, eps)
        self.ff = FeedForward(dim, activation_fn=ACTIVATIONS[activation][1], inner_dim=inner_dim, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim, eps)

    def forward(self, hidden_states: torch.Tensor, kept: LayerCache | None = None) -> torch.Tensor:
        if self.norm_first:
            hidden_states = hidden_states + self.attn(self.norm1(hidden_states), kept)
            return hidden_states + self.ff(self.norm2(hidden_states))
        hidden_states = self.norm1(hidden_states + self.attn(hidden_states, kept))
        return self.norm2(hidden_states + self.ff(hidden_states))


# diffusers' FirstBlockCache and MagCache support only block classes that are registered like this.
TransformerBlockRegistry.register(MaskGITTransformerBlock, TransformerBlockMetadata(return_hidden_states_index=0))


class TransformerBlocks(nn.ModuleList):
    """A stack of blocks, run one after the other."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., torch.Tensor]  # diffusers sets it

    def run(self, hidden_states: torch.Tensor, layers: Sequence[LayerCache | None] | None = None) -> torch.Tensor:
        """The hidden states after all blocks; `layers` holds each block's cache of other passes, or None."""
        for block, kept in zip(self, layers or [None] * len(self), strict=True):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, kept)
            else:
                hidden_states = block(hidden_states, kept)
        return hidden_states


class MAGEDecoder(nn.Module):
    """MAGE's second half: at masked tokens, the encoder's features are replaced by the features of the class slot.

    Every token still attends to all others, so partial passes work as in the encoder: the queries are the chosen
    positions and the class slot. All other positions keep their keys and values of the last full pass, even those that
    were computed from the features which the class slot had then.
    """

    def __init__(self, encoder_dim: int, dim: int, num_places: int, blocks: TransformerBlocks, eps: float) -> None:
        super().__init__()
        self.proj_in = nn.Linear(encoder_dim, dim)
        self.position_embedding = nn.Embedding(num_places, dim)
        self.transformer_blocks = blocks
        self.norm_out = nn.LayerNorm(dim, eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        masked: torch.Tensor,
        places: torch.Tensor,
        layers: Sequence[LayerCache | None] | None = None,
    ) -> torch.Tensor:
        hidden_states = self.proj_in(hidden_states)
        hidden_states = torch.where(masked[..., None], hidden_states[:, -1:], hidden_states)
        hidden_states = hidden_states + self.position_embedding(places)
        return self.norm_out(self.transformer_blocks.run(hidden_states, layers))
