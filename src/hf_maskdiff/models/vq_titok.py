"""TiTok's tokenizer (arXiv 2406.07550, bytedance/1d-tokenizer): an image as a short row of codes, and back."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, VectorQuantizer
from diffusers.models.autoencoders.vq_model import VQEncoderOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn.functional import normalize

from hf_maskdiff.models.maskgit_layers import MaskGITTransformerBlock, TransformerBlocks
from hf_maskdiff.models.sized_model import SizedModelMixin
from hf_maskdiff.models.vq_maskgit import MaskGITDecoder


class TiTokViT(nn.Module):
    """A vision transformer over the image's patches and the row of codes, with norms first, before and after all."""

    def __init__(self, dim: int, num_layers: int, heads: int) -> None:
        super().__init__()
        shape = (dim, heads, 4 * dim, True, "gelu", 0.0, 1e-5)
        self.norm_in = nn.LayerNorm(dim)
        self.transformer_blocks = TransformerBlocks(MaskGITTransformerBlock(*shape) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(dim)


class TiTokEncoder(TiTokViT):
    """Images `(batch_size, channels, side, side)` to one vector per code, `(batch_size, out, num_latent_tokens)`."""

    def __init__(
        self, channels: int, patch: int, num_patches: int, num_latent: int, out: int, shape: tuple[int, int, int]
    ) -> None:
        super().__init__(*shape)
        dim = shape[0]
        self.patch_embedding = nn.Conv2d(channels, dim, patch, stride=patch)
        self.class_embedding = nn.Parameter(0.02 * torch.randn(1, dim))
        self.position_embedding = nn.Parameter(0.02 * torch.randn(num_patches, dim))
        self.latent_embedding = nn.Parameter(0.02 * torch.randn(num_latent, dim))
        self.proj_out = nn.Linear(dim, out)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patch_embedding(image).flatten(2).transpose(1, 2) + self.position_embedding
        first, latent = (part.expand(len(image), -1, -1) for part in (self.class_embedding, self.latent_embedding))
        states = self.transformer_blocks.run(self.norm_in(torch.cat([first, patches, latent], 1)))
        return self.proj_out(self._read(self.norm_out(states[:, -latent.shape[1] :]))).transpose(1, 2)

    def _read(self, latent: Tensor) -> Tensor:
        """The vectors `(batch_size, num_latent_tokens, dim)` as the projection takes them."""
        # The numbers of all vectors are read in another order than they were written in: so the models were trained.
        return latent.reshape(len(latent), latent.shape[2], latent.shape[1]).transpose(1, 2)


class TiTokDecoder(TiTokViT):
    """Vectors of codes, `(batch_size, num_latent_tokens, dim_in)`, to scores of the code of each patch."""

    def __init__(self, dim_in: int, num_patches: int, num_latent: int, out: int, shape: tuple[int, int, int]) -> None:
        super().__init__(*shape)
        dim = shape[0]
        self.proj_in = nn.Linear(dim_in, dim)
        self.class_embedding = nn.Parameter(0.02 * torch.randn(1, dim))
        self.position_embedding = nn.Parameter(0.02 * torch.randn(num_patches, dim))
        self.latent_embedding = nn.Parameter(0.02 * torch.randn(num_latent, dim))
        self.head = nn.Sequential(nn.Linear(dim, 2 * dim), nn.Tanh(), nn.Linear(2 * dim, out))

    def forward(self, vectors: Tensor) -> Tensor:
        own = torch.cat([self.class_embedding, self.position_embedding]).expand(len(vectors), -1, -1)
        states = torch.cat([own, self.proj_in(vectors) + self.latent_embedding], 1)
        states = self.transformer_blocks.run(self.norm_in(states))
        return self.head(self.norm_out(states[:, 1 : own.shape[1]]))


class TiTokVQModel(SizedModelMixin, ModelMixin, ConfigMixin):
    """TiTok's tokenizer, used like diffusers' `VQModel`: images in [0, 1] to a row of 32 to 128 codes, and back.

    A transformer reads the image's patches and writes a row of vectors; the code of a vector is the row of the codebook
    that points most nearly where it does. Back, another transformer gives each patch a mixture of the codes of
    MaskGIT's tokenizer, whose decoder makes the image. So every code tells something of the whole image, and none is a
    place in it.

    Source: Yu et al., "An Image is Worth 32 Tokens for Reconstruction and Generation", arXiv 2406.07550; repository
    bytedance/1d-tokenizer (Apache-2.0). An independent implementation.

    Example:

    ```python
    vqvae = TiTokVQModel(
        sample_size=16, patch_size=4, num_latent_tokens=6, num_vq_embeddings=32, vq_embed_dim=5, hidden_size=16,
        num_layers=1, num_attention_heads=2, decoder_hidden_size=16, num_decoder_layers=1,
        num_decoder_attention_heads=2, num_pixel_embeddings=24, latent_channels=8, block_out_channels=(8, 8, 16),
        norm_num_groups=4,
    )
    vectors = vqvae.encode(torch.rand(2, 3, 16, 16)).latents   # (2, 5, 6)
    images = vqvae.decode(torch.randint(0, 32, (2, 6))).sample # (2, 3, 16, 16)
    ```

    Args:
        sample_size (`int`): Pixels per side of an image.
        patch_size (`int`): Pixels per side of a patch, which the pixel decoder makes of one vector.
        num_latent_tokens (`int`): Codes of an image.
        num_vq_embeddings (`int`): Rows of the codebook.
        vq_embed_dim (`int`): Width of its rows, whose length is 1.
        hidden_size, num_layers, num_attention_heads (`int`): The transformer that reads images.
        decoder_hidden_size, num_decoder_layers, num_decoder_attention_heads (`int`): The one that writes them.
        num_pixel_embeddings (`int`, defaults to 1024): Rows of the pixel decoder's codebook.
        latent_channels (`int`, defaults to 256): Width of its rows.
        block_out_channels (`tuple[int]`): Widths of the pixel decoder's levels, from full resolution down.
        layers_per_block, mid_layers (`int`, default to 2): Its residual blocks per level, and before them.
        in_channels (`int`, defaults to 3): Channels of images.
        norm_num_groups (`int`, defaults to 32): Groups of the pixel decoder's norms.
        force_upcast (`bool`, defaults to False): Whether pipelines must run it in float32 if its weights are float16.

    Raises:
        ValueError: If patches do not fill an image, or are not what the pixel decoder makes of a vector.
    """

    _supports_group_offloading = False
    _skip_layerwise_casting_patterns = ["quantize", "embedding", "norm"]  # noqa: RUF012 (diffusers' convention)
    _no_split_modules = ["MaskGITTransformerBlock"]  # noqa: RUF012 (diffusers' convention)

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        patch_size: int,
        num_latent_tokens: int,
        num_vq_embeddings: int,
        vq_embed_dim: int,
        hidden_size: int,
        num_layers: int,
        num_attention_heads: int,
        decoder_hidden_size: int,
        num_decoder_layers: int,
        num_decoder_attention_heads: int,
        num_pixel_embeddings: int = 1024,
        latent_channels: int = 256,
        block_out_channels: tuple[int, ...] = (128, 128, 256, 256, 512),
        layers_per_block: int = 2,
        mid_layers: int = 2,
        in_channels: int = 3,
        norm_num_groups: int = 32,
        force_upcast: bool = False,
    ) -> None:
        super().__init__()
        if sample_size % patch_size or patch_size != 2 ** (len(block_out_channels) - 1):
            raise ValueError(
                f"`patch_size` must divide `sample_size` = {sample_size} and be {2 ** (len(block_out_channels) - 1)}, "
                f"what {len(block_out_channels)} levels make of a vector, got {patch_size}. Change one of them."
            )
        num_patches = (sample_size // patch_size) ** 2
        reading = (hidden_size, num_layers, num_attention_heads)
        writing = (decoder_hidden_size, num_decoder_layers, num_decoder_attention_heads)
        places = (num_patches, num_latent_tokens)
        self.encoder = TiTokEncoder(in_channels, patch_size, *places, vq_embed_dim, reading)
        self.quantize = VectorQuantizer(num_vq_embeddings, vq_embed_dim, beta=0.25)
        self.decoder = TiTokDecoder(vq_embed_dim, *places, num_pixel_embeddings, writing)
        self.pixel_embedding = nn.Embedding(num_pixel_embeddings, latent_channels)
        widths = tuple(block_out_channels)
        shape = (layers_per_block, mid_layers)
        self.pixel_decoder = MaskGITDecoder(latent_channels, widths, *shape, in_channels, norm_num_groups)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of its images, in pixels; they follow from no number of codes."""
        return (self.config.sample_size,) * 2

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple[Tensor]:
        """Encode images to vectors of length 1, `latents` `(batch_size, vq_embed_dim, num_latent_tokens)`."""
        latents = normalize(self.encoder(x).float(), dim=1).to(x.dtype)
        return VQEncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(
        self,
        h: Tensor,
        force_not_quantize: bool = True,
        return_dict: bool = True,
        shape: tuple[int, ...] | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Decode codes, or vectors, which are quantized first, to images, whose values are not clamped.

        Args:
            h: codes, int64 `(batch_size, num_latent_tokens)`, or vectors as `encode` returns them.
            force_not_quantize, shape: accepted but ignored, for pipelines that call a `VQModel`.
        """
        if h.is_floating_point():
            h = torch.cdist(h.float().transpose(1, 2), self.quantize.embedding.weight.float()).argmin(-1)
        scores = self.decoder(self.quantize.embedding(h))
        vectors = scores.softmax(-1) @ self.pixel_embedding.weight
        side = self.config.sample_size // self.config.patch_size
        image = self.pixel_decoder(vectors.transpose(1, 2).unflatten(2, (side, side)))
        return DecoderOutput(sample=image) if return_dict else (image,)

    def forward(self, sample: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Encode images to codes and decode these again."""
        return self.decode(self.encode(sample).latents, return_dict=return_dict)
