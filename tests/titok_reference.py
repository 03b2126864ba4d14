"""TiTok's models from the layers that its authors use: BERT of transformers, and attention of torch.

Names and shapes of the weights are the published ones.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel


class BertGenerator(nn.Module):
    """The generators of 32 and of 64 codes."""

    def __init__(self, num_tokens: int, codes: int, classes: int, width: int, layers: int, heads: int, inner: int):
        super().__init__()
        config = BertConfig(
            vocab_size=codes + classes + 2,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=inner,
            hidden_act="gelu",
            max_position_embeddings=num_tokens + 1,
            layer_norm_eps=1e-12,
            pad_token_id=None,
        )
        self.codes = codes
        self.model = BertModel(config, add_pooling_layer=False)
        self.model.lm_head = nn.Linear(width, codes)

    def forward(self, sample: Tensor, labels: Tensor) -> Tensor:
        tokens = torch.cat([labels[:, None] + self.codes + 1, sample], 1)
        return self.model.lm_head(self.model(input_ids=tokens)[0][:, 1:])


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, states: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(states).chunk(3, -1)
        )
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        return self.proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class UViTBlock(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, skip: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(width, inner), act=nn.GELU(), fc2=nn.Linear(inner, width)))
        if skip:
            self.skip_linear = nn.Linear(2 * width, width)

    def forward(self, states: Tensor, skipped: Tensor | None = None) -> Tensor:
        if skipped is not None:
            states = self.skip_linear(torch.cat([states, skipped], -1))
        states = states + self.attn(self.norm1(states))
        return states + self.mlp(self.norm2(states))


class UViTGenerator(nn.Module):
    """The generator of 128 codes."""

    def __init__(self, num_tokens: int, codes: int, classes: int, width: int, layers: int, heads: int, inner: int):
        super().__init__()
        self.codes = codes
        self.embeddings = nn.Embedding(codes + classes + 2, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens + 1, width))
        shape = (width, heads, inner)
        self.in_blocks = nn.ModuleList(UViTBlock(*shape, skip=False) for _ in range(layers // 2))
        self.mid_block = UViTBlock(*shape, skip=False)
        self.out_blocks = nn.ModuleList(UViTBlock(*shape, skip=True) for _ in range(layers // 2))
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, codes)

    def forward(self, sample: Tensor, labels: Tensor) -> Tensor:
        tokens = torch.cat([labels[:, None] + self.codes + 1, sample], 1)
        states, kept = self.embeddings(tokens) + self.pos_embed, []
        for block in self.in_blocks:
            states = block(states)
            kept.append(states)
        states = self.mid_block(states)
        for block in self.out_blocks:
            states = block(states, kept.pop())
        return self.lm_head(self.norm(states)[:, 1:])


class ViTBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // 64)
        layers = (("c_fc", nn.Linear(width, 4 * width)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(4 * width, width)))
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, states: Tensor) -> Tensor:  # (length, batch, width)
        normed = self.ln_1(states)
        states = states + self.attn(normed, normed, normed, need_weights=False)[0]
        return states + self.mlp(self.ln_2(states))


class ViT(nn.Module):
    def __init__(self, width: int, layers: int, places: int, latent: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(1, width))
        self.positional_embedding = nn.Parameter(torch.zeros(places + 1, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.zeros(latent, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleList(ViTBlock(width) for _ in range(layers))

    def run(self, states: Tensor) -> Tensor:
        states = self.ln_pre(states).permute(1, 0, 2)
        for block in self.transformer:
            states = block(states)
        return states.permute(1, 0, 2)


class Encoder(ViT):
    def __init__(self, width: int, layers: int, side: int, latent: int, token: int) -> None:
        super().__init__(width, layers, side**2, latent)
        self.patch_embed = nn.Conv2d(3, width, 4, stride=4)
        self.conv_out = nn.Conv2d(width, token, 1)

    def forward(self, image: Tensor, latent_tokens: Tensor) -> Tensor:
        patches = self.patch_embed(image).flatten(2).permute(0, 2, 1)
        first = self.class_embedding.expand(len(image), 1, -1)
        states = torch.cat([first, patches], 1) + self.positional_embedding
        latent = (latent_tokens + self.latent_token_positional_embedding).expand(len(image), -1, -1)
        states = self.run(torch.cat([states, latent], 1))
        latent = self.ln_post(states[:, 1 + patches.shape[1] :])
        latent = self.conv_out(latent.reshape(len(image), latent.shape[2], latent.shape[1], 1))
        return latent[..., 0]  # (batch, token, latent)


class Decoder(ViT):
    def __init__(self, width: int, layers: int, side: int, latent: int, token: int, pixels: int) -> None:
        super().__init__(width, layers, side**2, latent)
        self.side = side
        self.decoder_embed = nn.Linear(token, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.ffn = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, pixels, 1))

    def forward(self, vectors: Tensor) -> Tensor:  # (batch, latent, token)
        latent = self.decoder_embed(vectors) + self.latent_token_positional_embedding
        masks = self.mask_token.repeat(len(vectors), self.side**2, 1)
        masks = torch.cat([self.class_embedding.expand(len(vectors), 1, -1), masks], 1) + self.positional_embedding
        states = self.run(torch.cat([masks, latent], 1))
        states = self.ln_post(states[:, 1 : 1 + self.side**2])
        return self.ffn(states.permute(0, 2, 1).unflatten(2, (self.side, self.side)))


class ResnetBlock(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, before, eps=1e-6), nn.GroupNorm(32, after, eps=1e-6)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        if before != after:
            self.nin_shortcut = nn.Conv2d(after, after, 1, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        branch = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(states))))))
        return branch + (self.nin_shortcut(branch) if hasattr(self, "nin_shortcut") else states)


class PixelLevel(nn.Module):
    def __init__(self, before: int, after: int, upsample: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList([ResnetBlock(before, after), ResnetBlock(after, after)])
        if upsample:
            self.upsample_conv = nn.Conv2d(after, after, 3, padding=1)

    def forward(self, states: Tensor) -> Tensor:
        for block in self.block:
            states = block(states)
        if hasattr(self, "upsample_conv"):
            states = self.upsample_conv(F.interpolate(states, scale_factor=2.0, mode="nearest"))
        return states


class PixelDecoder(nn.Module):
    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        last = widths[-1]
        self.conv_in = nn.Conv2d(channels, last, 3, padding=1)
        self.mid = nn.ModuleList([ResnetBlock(last, last), ResnetBlock(last, last)])
        befores = (*widths[1:], last)
        pairs = enumerate(zip(befores, widths, strict=True))
        self.up = nn.ModuleList(PixelLevel(before, after, upsample=i > 0) for i, (before, after) in pairs)
        self.norm_out = nn.GroupNorm(32, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, states: Tensor) -> Tensor:
        states = self.conv_in(states)
        for block in (*self.mid, *reversed(self.up)):
            states = block(states)
        return self.conv_out(F.silu(self.norm_out(states)))


class Table(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, width)


class Tokenizer(nn.Module):
    """TiTok's tokenizer, for images of `4 * side` pixels; heads are 64 wide, as in all that were published."""

    def __init__(self, side: int, latent: int, codes: int, token: int, reading: int, writing: int, pixels: int) -> None:
        super().__init__()
        self.latent_tokens = nn.Parameter(torch.zeros(latent, reading))
        self.encoder = Encoder(reading, 2, side, latent, token)
        self.decoder = Decoder(writing, 1, side, latent, token, pixels)
        self.quantize, self.pixel_quantize = Table(codes, token), Table(pixels, 16)
        self.pixel_decoder = PixelDecoder(16, (32, 32, 64))

    def encode(self, image: Tensor) -> Tensor:
        """Codes `(batch, latent)`."""
        vectors = F.normalize(self.encoder(image, self.latent_tokens).transpose(1, 2), dim=-1)
        rows = F.normalize(self.quantize.embedding.weight, dim=-1)
        return (vectors @ rows.T).argmax(-1)

    def decode(self, codes: Tensor) -> Tensor:
        scores = self.decoder(F.normalize(self.quantize.embedding(codes), dim=-1))
        mixed = torch.einsum("nchw,cd->ndhw", scores.softmax(1), self.pixel_quantize.embedding.weight)
        return self.pixel_decoder(mixed)
