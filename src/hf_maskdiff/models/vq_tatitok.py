"""TA-TiTok's tokenizer (arXiv 2501.07730, bytedance/1d-tokenizer): an image as a row of codes, and back with a text."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, VectorQuantizer
from diffusers.models.autoencoders.vq_model import VQEncoderOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from hf_maskdiff.models.sized_model import SizedModelMixin
from hf_maskdiff.models.vq_titok import TiTokEncoder, TiTokViT


class TATiTokEncoder(TiTokEncoder):
    """Images `(batch_size, channels, side, side)` to one vector per code, `(batch_size, out, num_latent_tokens)`."""

    def _read(self, latent: Tensor) -> Tensor:
        return latent  # the order in which TiTok's first models read these numbers was mended here


class TATiTokDecoder(TiTokViT):
    """Vectors of codes, `(batch_size, num_latent_tokens, dim_in)`, and a text to images."""

    def __init__(
        self,
        channels: int,
        patch: int,
        side: int,
        num_latent: int,
        dim_in: int,
        text: tuple[int, int],
        shape: tuple[int, int, int],
    ) -> None:
        super().__init__(*shape)
        dim, (num_text, text_dim) = shape[0], text
        self.pixels = (patch, patch, channels)
        self.side = side
        self.proj_in = nn.Linear(dim_in, dim)
        self.text_proj = nn.Linear(text_dim, dim)
        self.class_embedding = nn.Parameter(0.02 * torch.randn(1, dim))
        self.position_embedding = nn.Parameter(0.02 * torch.randn(side**2, dim))
        self.latent_embedding = nn.Parameter(0.02 * torch.randn(num_latent, dim))
        self.text_embedding = nn.Parameter(0.02 * torch.randn(num_text, dim))
        self.head = nn.Linear(dim, patch * patch * channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, vectors: Tensor, text: Tensor) -> Tensor:
        own = torch.cat([self.class_embedding, self.position_embedding]).expand(len(vectors), -1, -1)
        read = [self.proj_in(vectors) + self.latent_embedding, self.text_proj(text) + self.text_embedding]
        states = self.transformer_blocks.run(self.norm_in(torch.cat([own, *read], 1)))
        patches = self.head(self.norm_out(states[:, 1 : own.shape[1]]))
        patches = patches.unflatten(2, self.pixels).unflatten(1, (self.side, self.side))
        return self.conv_out(patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3))


class TATiTokVQModel(SizedModelMixin, ModelMixin, ConfigMixin):
    """TA-TiTok's tokenizer, used like diffusers' `VQModel`: images in [0, 1] to a row of codes; back with a text.

    A transformer reads the image's patches and writes a row of vectors; the code of a vector is the row of the codebook
    next to it. Back, another transformer sees the codes and what a text encoder made of the image's text, and writes
    pixels. So every code tells something of the whole image and none is a place in it, and what the text says the codes
    need not hold.

    Source: Kim et al., "Democratizing Text-to-Image Masked Generative Models with Compact Text-Aware One-Dimensional
    Tokens", arXiv 2501.07730; repository bytedance/1d-tokenizer (Apache-2.0). An independent implementation.

    Example:

    ```python
    vqvae = TATiTokVQModel(
        sample_size=16, patch_size=4, num_latent_tokens=6, num_vq_embeddings=32, vq_embed_dim=5, hidden_size=16,
        num_layers=1, num_attention_heads=2, decoder_hidden_size=16, num_decoder_layers=1,
        num_decoder_attention_heads=2, num_text_tokens=7, text_embed_dim=12,
    )
    vectors = vqvae.encode(torch.rand(2, 3, 16, 16)).latents   # (2, 5, 6)
    codes, text = torch.randint(0, 32, (2, 6)), torch.randn(2, 7, 12)
    images = vqvae.decode(codes, encoder_hidden_states=text).sample  # (2, 3, 16, 16)
    ```

    Args:
        sample_size (`int`): Pixels per side of an image.
        patch_size (`int`): Pixels per side of a patch.
        num_latent_tokens (`int`): Codes of an image.
        num_vq_embeddings (`int`): Rows of the codebook.
        vq_embed_dim (`int`): Width of its rows.
        hidden_size, num_layers, num_attention_heads (`int`): The transformer that reads images.
        decoder_hidden_size, num_decoder_layers, num_decoder_attention_heads (`int`): The one that writes them.
        num_text_tokens (`int`, defaults to 77): Tokens of a text, those that fill it up among them.
        text_embed_dim (`int`, defaults to 768): Width of what the text encoder makes of each.
        in_channels (`int`, defaults to 3): Channels of images.
        force_upcast (`bool`, defaults to False): Whether pipelines must run it in float32 if its weights are float16.

    Raises:
        ValueError: If patches do not fill an image.
    """

    reads_text = True  # pipelines decode with what the text encoder's last layer, normalised, makes of the prompt
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
        num_text_tokens: int = 77,
        text_embed_dim: int = 768,
        in_channels: int = 3,
        force_upcast: bool = False,
    ) -> None:
        super().__init__()
        if patch_size < 1 or sample_size % patch_size:
            raise ValueError(f"`patch_size` must divide `sample_size` = {sample_size}, got {patch_size}. Change one.")
        side = sample_size // patch_size
        reading = (hidden_size, num_layers, num_attention_heads)
        writing = (decoder_hidden_size, num_decoder_layers, num_decoder_attention_heads)
        self.encoder = TATiTokEncoder(in_channels, patch_size, side**2, num_latent_tokens, vq_embed_dim, reading)
        self.quantize = VectorQuantizer(num_vq_embeddings, vq_embed_dim, beta=0.25)
        text = (num_text_tokens, text_embed_dim)
        self.decoder = TATiTokDecoder(in_channels, patch_size, side, num_latent_tokens, vq_embed_dim, text, writing)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of its images, in pixels; they follow from no number of codes."""
        return (self.config.sample_size,) * 2

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple[Tensor]:
        """Encode images to vectors, `latents` `(batch_size, vq_embed_dim, num_latent_tokens)`."""
        latents = self.encoder(x)
        return VQEncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(
        self,
        h: Tensor,
        force_not_quantize: bool = True,
        return_dict: bool = True,
        shape: tuple[int, ...] | None = None,
        encoder_hidden_states: Tensor | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Decode codes, or vectors, which are quantized first, to images, whose values are not clamped.

        Args:
            h: codes, int64 `(batch_size, num_latent_tokens)`, or vectors as `encode` returns them.
            force_not_quantize, shape: accepted but ignored, for pipelines that call a `VQModel`.
            encoder_hidden_states: what the text encoder makes of each image's text: the output of its last layer,
                normalised, `(batch_size, num_text_tokens, text_embed_dim)`.

        Raises:
            ValueError: no text, or of another shape.
        """
        of_text = (len(h), self.config.num_text_tokens, self.config.text_embed_dim)
        if encoder_hidden_states is None or encoder_hidden_states.shape != of_text:
            got = None if encoder_hidden_states is None else tuple(encoder_hidden_states.shape)
            raise ValueError(
                f"`encoder_hidden_states` must have shape {of_text}, a text for each image, got {got}. Pass the text "
                "encoder's `last_hidden_state`, of the empty text where there is none."
            )
        if h.is_floating_point():
            h = torch.cdist(h.float().transpose(1, 2), self.quantize.embedding.weight.float()).argmin(-1)
        image = self.decoder(self.quantize.embedding(h), encoder_hidden_states)
        return DecoderOutput(sample=image) if return_dict else (image,)

    def forward(
        self, sample: Tensor, encoder_hidden_states: Tensor, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode images to codes and decode these again, with a text for each."""
        latents = self.encode(sample).latents
        return self.decode(latents, return_dict=return_dict, encoder_hidden_states=encoder_hidden_states)
