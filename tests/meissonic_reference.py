"""Meissonic's forward pass put together from the blocks that diffusers ships, under the published names.

The original is written with the same blocks: Flux's for the transformer, aMUSEd's at both ends, and diffusers'
resampling layers. So this is what the published code computes, as far as diffusers' own layers go.
"""

from __future__ import annotations

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings, TimestepEmbedding, get_timestep_embedding
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_flux import (
    FluxPosEmbed,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from diffusers.models.unets.uvit_2d import ConvMlmLayer, UVit2DConvEmbed
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

EPS = 1e-6
NORMED = {"norm_type": "rms_norm", "eps": EPS, "elementwise_affine": True, "bias": False}


class Resampled(nn.Module):
    """The published `down_block` and `up_block`, which hold one layer or none."""

    def __init__(self, name: str, layer: nn.Module | None) -> None:
        super().__init__()
        self.name = name
        if layer is not None:
            self.add_module(name, layer)

    def forward(self, states: Tensor) -> Tensor:
        layer = getattr(self, self.name, None)
        return states if layer is None else layer(states)


class MeissonicReference(nn.Module):
    """Takes the published configuration; weights have the published names and shapes."""

    def __init__(
        self,
        num_layers: int,
        num_single_layers: int,
        attention_head_dim: int,
        num_attention_heads: int,
        joint_attention_dim: int,
        pooled_projection_dim: int,
        axes_dims_rope: tuple[int, ...],
        vocab_size: int,
        codebook_size: int,
        downsample: bool,
        upsample: bool,
        micro_encode: int = 256,
    ) -> None:
        super().__init__()
        dim = num_attention_heads * attention_head_dim
        heads = {"num_attention_heads": num_attention_heads, "attention_head_dim": attention_head_dim}
        self.micro_encode = micro_encode
        self.pos_embed = FluxPosEmbed(theta=10000, axes_dim=axes_dims_rope)
        self.time_text_embed = CombinedTimestepTextProjEmbeddings(dim, pooled_projection_dim)
        self.context_embedder = nn.Linear(joint_attention_dim, dim)
        self.transformer_blocks = nn.ModuleList(FluxTransformerBlock(dim, **heads) for _ in range(num_layers))
        self.single_transformer_blocks = nn.ModuleList(
            FluxSingleTransformerBlock(dim, **heads) for _ in range(num_single_layers)
        )
        self.embed = UVit2DConvEmbed(dim, dim, vocab_size, True, EPS, False)
        self.mlm_layer = ConvMlmLayer(dim, dim, False, True, EPS, codebook_size)
        self.cond_embed = TimestepEmbedding(5 * micro_encode + pooled_projection_dim, dim, sample_proj_bias=False)
        self.encoder_proj_layer_norm = RMSNorm(dim, EPS)
        self.project_to_hidden_norm = RMSNorm(dim, EPS)
        self.project_to_hidden = nn.Linear(dim, dim, bias=False)
        self.project_from_hidden_norm = RMSNorm(dim, EPS)
        self.project_from_hidden = nn.Linear(dim, dim, bias=False)
        down = Downsample2D(dim, use_conv=True, padding=0, name="Conv2d_0", kernel_size=2, **NORMED)
        up = Upsample2D(
            dim, use_conv_transpose=True, kernel_size=2, padding=0, name="conv", interpolate=False, **NORMED
        )
        self.down_block = Resampled("downsample", down if downsample else None)
        self.up_block = Resampled("upsample", up if upsample else None)

    def forward(self, codes: Tensor, text: Tensor, pooled: Tensor, micro_conds: Tensor, timestep: Tensor) -> Tensor:
        """Logits `(batch_size, codebook_size, height, width)` of codes `(batch_size, height, width)`."""
        numbers = get_timestep_embedding(
            micro_conds.flatten(), self.micro_encode, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        condition = self.cond_embed(torch.cat([pooled, numbers.reshape(len(codes), -1).to(pooled)], dim=1))
        temb = self.time_text_embed(timestep * 1000, condition)
        text = self.encoder_proj_layer_norm(self.context_embedder(text))

        states = self.down_block(self.embed(codes))
        height, width = states.shape[2:]
        states = states.permute(0, 2, 3, 1).flatten(1, 2)
        states = self.project_to_hidden(self.project_to_hidden_norm(states))
        ids = torch.zeros(height, width, 3)
        ids[..., 1] = torch.arange(height)[:, None]
        ids[..., 2] = torch.arange(width)
        rotary = self.pos_embed(torch.cat([torch.zeros(text.shape[1], 3), ids.reshape(-1, 3)]))
        for block in (*self.transformer_blocks, *self.single_transformer_blocks):
            text, states = block(states, text, temb, image_rotary_emb=rotary)
        states = self.project_from_hidden(self.project_from_hidden_norm(states))
        states = states.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return self.mlm_layer(self.up_block(states))
