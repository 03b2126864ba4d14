"""MaskGen from the block that its authors use, Stable Diffusion 3's of diffusers, and TA-TiTok from torch's layers.

Names and shapes of the weights are the published ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.normalization import AdaLayerNormContinuous
from titok_reference import Table, ViT
from torch import Tensor, nn

Draw = Callable[[int, Tensor, Tensor, float, int], Tensor]


class Scores(nn.Module):
    """The table of codes once more, under a name of its own."""

    def __init__(self, weight: nn.Parameter, codes: int) -> None:
        super().__init__()
        self.weight, self.codes = weight, codes

    def forward(self, states: Tensor) -> Tensor:
        return states @ self.weight[: self.codes].T


class MaskGenReference(nn.Module):
    """The generator; rows of its table are left over from classes, and never looked up."""

    def __init__(
        self, num_tokens: int, codes: int, width: int, layers: int, heads: int, text: int, pooled: int, score: int
    ) -> None:
        super().__init__()
        classes = 3
        self.score_width = score
        self.text_embed_proj = nn.Linear(text, width)
        self.cond_pooled_proj = nn.Linear(pooled + score, width)
        self.blocks = nn.ModuleList(
            JointTransformerBlock(width, heads, width // heads, context_pre_only=depth == layers - 1)
            for depth in range(layers)
        )
        self.norm = AdaLayerNormContinuous(width, width, elementwise_affine=False, eps=1e-6)
        self.embeddings = nn.Embedding(codes + classes + 2, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, num_tokens, width))
        self.lm_head = Scores(self.embeddings.weight, codes)

    def forward(self, sample: Tensor, hidden: Tensor, pooled: Tensor, score: Tensor) -> Tensor:
        half = self.score_width // 2
        angles = 100 * score[:, None] * torch.tensor([1000 ** (-i / half) for i in range(half)])
        condition = self.cond_pooled_proj(torch.cat([pooled, angles.sin(), angles.cos()], -1))
        states, text = self.embeddings(sample) + self.pos_embed, self.text_embed_proj(hidden)
        for block in self.blocks:
            text, states = block(states, text, condition)
        return self.lm_head(self.norm(states, condition))

    @torch.no_grad()
    def generate(
        self, texts: tuple[Tensor, Tensor], steps: int, scale: float, hot: float, score: float, draw: Draw
    ) -> Tensor:
        """The authors' loop over one image.

        Args:
            texts: penultimate states and pooled output of the prompt and of the empty text, two rows.
            draw: maps step, codes, logits, temperature and how many masks to keep to codes.
        """
        num_tokens, mask = self.pos_embed.shape[1], self.lm_head.codes
        sample = torch.full((1, num_tokens), mask)
        for step in range(steps):
            ratio = (step + 1) / steps
            weight = (scale - 1) * (1 - math.cos(ratio * math.pi)) / 2 + 1
            positive, negative = self(sample.repeat(2, 1), *texts, torch.full((2,), score)).chunk(2)
            logits = (positive + (positive - negative) * weight) / (0.5 + 0.8 * (1 - ratio))
            left = math.floor(num_tokens * math.acos(ratio) / (math.pi / 2))
            left = max(1, min(int((sample == mask).sum()) - 1, left)) if step < steps - 1 else 0
            sample = draw(step, sample, logits, hot * (1 - ratio), left)
        return sample


class Encoder(ViT):
    def __init__(self, width: int, layers: int, side: int, latent: int, token: int, patch: int) -> None:
        super().__init__(width, layers, side**2, latent)
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.conv_out = nn.Conv2d(width, token, 1)

    def forward(self, image: Tensor, latent_tokens: Tensor) -> Tensor:
        patches = self.patch_embed(image).flatten(2).permute(0, 2, 1)
        states = torch.cat([self.class_embedding.expand(len(image), 1, -1), patches], 1) + self.positional_embedding
        latent = (latent_tokens + self.latent_token_positional_embedding).expand(len(image), -1, -1)
        latent = self.ln_post(self.run(torch.cat([states, latent], 1))[:, 1 + patches.shape[1] :])
        return self.conv_out(latent.permute(0, 2, 1)[..., None])[..., 0].permute(0, 2, 1)  # (batch, latent, token)


class Decoder(ViT):
    def __init__(
        self, width: int, layers: int, side: int, latent: int, token: int, patch: int, words: int, text: int
    ) -> None:
        super().__init__(width, layers, side**2, latent)
        self.side, self.patch = side, patch
        self.decoder_embed = nn.Linear(token, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.ffn = nn.Sequential(nn.Conv2d(width, patch * patch * 3, 1))
        self.conv_out = nn.Conv2d(3, 3, 3, padding=1)
        self.text_guidance_proj = nn.Linear(text, width)
        self.text_guidance_positional_embedding = nn.Parameter(torch.zeros(words, width))

    def forward(self, vectors: Tensor, text: Tensor) -> Tensor:
        latent = self.decoder_embed(vectors) + self.latent_token_positional_embedding
        masks = self.mask_token.repeat(len(vectors), self.side**2, 1)
        masks = torch.cat([self.class_embedding.expand(len(vectors), 1, -1), masks], 1) + self.positional_embedding
        words = self.text_guidance_proj(text) + self.text_guidance_positional_embedding
        states = self.run(torch.cat([masks, latent, words], 1))[:, 1 : 1 + self.side**2]
        grid = self.ffn(self.ln_post(states).permute(0, 2, 1).unflatten(2, (self.side, self.side)))
        image = torch.empty(len(vectors), 3, self.side * self.patch, self.side * self.patch)
        for row in range(self.patch):  # each pixel of a patch has channels of its own
            for column in range(self.patch):
                first = 3 * (row * self.patch + column)
                image[:, :, row :: self.patch, column :: self.patch] = grid[:, first : first + 3]
        return self.conv_out(image)


class TATiTokReference(nn.Module):
    """The tokenizer, for images of `patch * side` pixels; heads are 64 wide, as in all that were published."""

    def __init__(
        self, side: int, latent: int, codes: int, token: int, reading: int, writing: int, words: int, text: int
    ) -> None:
        super().__init__()
        patch = 3
        self.latent_tokens = nn.Parameter(torch.zeros(latent, reading))
        self.encoder = Encoder(reading, 2, side, latent, token, patch)
        self.decoder = Decoder(writing, 1, side, latent, token, patch, words, text)
        self.quantize = Table(codes, token)
        self.quantize.register_buffer("embed_prob", torch.zeros(codes))

    def encode(self, image: Tensor) -> Tensor:
        """Codes `(batch, latent)`."""
        vectors, rows = self.encoder(image, self.latent_tokens), self.quantize.embedding.weight
        return ((vectors[:, :, None] - rows) ** 2).sum(-1).argmin(-1)

    def decode(self, codes: Tensor, text: Tensor) -> Tensor:
        return self.decoder(self.quantize.embedding(codes), text)
