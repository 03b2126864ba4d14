"""Convolutional image tokenizers that diffusers' `VQModel` cannot represent."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, VectorQuantizer
from diffusers.models.autoencoders.vq_model import VQEncoderOutput, VQModel
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from hf_maskdiff.hub import ModelCardMixin


class VQGANModel(ModelCardMixin, VQModel):
    """A `VQModel` whose first level may be wider than its first convolution, as in taming-transformers' VQGAN.

    If `base_channels` equals the first of `block_out_channels`, as in the published models, it is the same as a
    `VQModel`, and `VQModel` can load it. Arguments and methods are those of `VQModel`.
    """

    @register_to_config
    def __init__(
        self,
        base_channels: int,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 3,
        sample_size: int = 32,
        num_vq_embeddings: int = 256,
        norm_num_groups: int = 32,
        vq_embed_dim: int | None = None,
        scaling_factor: float = 0.18215,
        norm_type: str = "group",
        mid_block_add_attention: bool = True,
        lookup_from_codebook: bool = True,
        force_upcast: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            down_block_types,
            up_block_types,
            block_out_channels,
            layers_per_block,
            act_fn,
            latent_channels,
            sample_size,
            num_vq_embeddings,
            norm_num_groups,
            vq_embed_dim,
            scaling_factor,
            norm_type,
            mid_block_add_attention,
            lookup_from_codebook,
            force_upcast,
        )
        self.encoder.conv_in = nn.Conv2d(in_channels, base_channels, 3, padding=1)
        self.encoder.down_blocks[0].resnets[0] = ResnetBlock2D(
            in_channels=base_channels,
            out_channels=block_out_channels[0],
            temb_channels=None,
            groups=norm_num_groups,
            eps=1e-6,
        )


class BranchShortcutBlock(nn.Module):
    """Two convolutions with output h, and a shortcut: `x + h`, or `h + conv_shortcut(h)` if the channels change.

    In the second form the block's input x is dropped: that is how MaskGIT's tokenizer was trained.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_num_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_num_groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(norm_num_groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.conv_shortcut = (
            nn.Conv2d(out_channels, out_channels, 1, bias=False) if in_channels != out_channels else None
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        branch = self.conv1(F.silu(self.norm1(hidden_states)))
        branch = self.conv2(F.silu(self.norm2(branch)))
        return branch + (hidden_states if self.conv_shortcut is None else self.conv_shortcut(branch))


def _level(in_channels: int, out_channels: int, count: int, norm_num_groups: int) -> nn.Sequential:
    first = BranchShortcutBlock(in_channels, out_channels, norm_num_groups)
    return nn.Sequential(
        first, *(BranchShortcutBlock(out_channels, out_channels, norm_num_groups) for _ in range(count - 1))
    )


class MaskGITEncoder(nn.Module):
    """Maps images to vectors; between levels, average pooling halves height and width."""

    def __init__(
        self, in_channels: int, base: int, widths: tuple[int, ...], layers: int, mid_layers: int, out: int, groups: int
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, base, 3, padding=1, bias=False)
        befores = (base, *widths[:-1])
        self.down_blocks = nn.ModuleList(
            _level(before, width, layers, groups) for before, width in zip(befores, widths, strict=True)
        )
        self.mid_block = _level(widths[-1], widths[-1], mid_layers, groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], out, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.conv_in(hidden_states)
        for i, level in enumerate(self.down_blocks):
            hidden_states = level(hidden_states if i == 0 else F.avg_pool2d(hidden_states, 2))
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(hidden_states))))


class MaskGITDecoder(nn.Module):
    """Maps vectors to images; height and width double between levels."""

    def __init__(
        self, in_channels: int, widths: tuple[int, ...], layers: int, mid_layers: int, out: int, groups: int
    ) -> None:
        super().__init__()
        widths = widths[::-1]
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.mid_block = _level(widths[0], widths[0], mid_layers, groups)
        befores = (widths[0], *widths[:-1])
        self.up_blocks = nn.ModuleList(
            _level(before, width, layers, groups) for before, width in zip(befores, widths, strict=True)
        )
        self.upsamplers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for width in widths[:-1])
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], out, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.mid_block(self.conv_in(hidden_states))
        for i, level in enumerate(self.up_blocks):
            if i > 0:
                hidden_states = self.upsamplers[i - 1](F.interpolate(hidden_states, scale_factor=2.0))
            hidden_states = level(hidden_states)
        return self.conv_out(F.silu(self.conv_norm_out(hidden_states)))


class MaskGITVQModel(ModelCardMixin, ModelMixin, ConfigMixin):
    """The tokenizer of MaskGIT and of MAGE, used like diffusers' `VQModel`: images in [0, 1] to codes, and back.

    It differs from `VQModel` in its residual blocks (see `BranchShortcutBlock`), in downsampling by averages, in
    convolutions without bias, and in having no attention and no convolutions around the codebook. A vector's code is
    the index of the nearest row of the codebook.

    Source: Chang, Zhang, Jiang, Liu, Freeman, "MaskGIT: Masked Generative Image Transformer", arXiv 2202.04200;
    repository google-research/maskgit (Apache-2.0). An independent implementation; it agrees with the original to
    float32 rounding.

    Example:

    ```python
    vqvae = MaskGITVQModel(block_out_channels=(32, 64), latent_channels=16, num_vq_embeddings=64)
    vectors = vqvae.encode(torch.rand(2, 3, 12, 12)).latents   # (2, 16, 6, 6)
    codes = torch.randint(0, 64, (2, 6, 6))
    images = vqvae.decode(codes).sample                        # (2, 3, 12, 12)
    ```

    Args:
        in_channels (`int`, defaults to 3): Channels of the images to encode.
        out_channels (`int`, defaults to 3): Channels of the decoded images.
        block_out_channels (`tuple[int]`): Widths of the levels, from full resolution down.
        base_channels (`int`, *optional*): Width of the first convolution; by default that of the first level.
        layers_per_block (`int`, defaults to 2): Residual blocks per level.
        mid_layers (`int`, defaults to 2): Residual blocks at the lowest resolution, between encoder and decoder.
        latent_channels (`int`, defaults to 256): Width of the codebook's rows.
        num_vq_embeddings (`int`, defaults to 1024): Rows of the codebook.
        norm_num_groups (`int`, defaults to 32): Groups of the norms.
        force_upcast (`bool`, defaults to False): Whether pipelines must run it in float32 if its weights are float16.
    """

    _supports_group_offloading = False
    _skip_layerwise_casting_patterns = ["quantize"]  # noqa: RUF012 (diffusers' convention)

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        block_out_channels: tuple[int, ...] = (128, 128, 256, 256, 512),
        base_channels: int | None = None,
        layers_per_block: int = 2,
        mid_layers: int = 2,
        latent_channels: int = 256,
        num_vq_embeddings: int = 1024,
        norm_num_groups: int = 32,
        force_upcast: bool = False,
    ) -> None:
        super().__init__()
        widths, base = tuple(block_out_channels), base_channels or block_out_channels[0]
        shape = (layers_per_block, mid_layers)
        self.encoder = MaskGITEncoder(in_channels, base, widths, *shape, latent_channels, norm_num_groups)
        self.quantize = VectorQuantizer(num_vq_embeddings, latent_channels, beta=0.25)
        self.decoder = MaskGITDecoder(latent_channels, widths, *shape, out_channels, norm_num_groups)

    @apply_forward_hook
    def encode(self, x: torch.Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple[torch.Tensor]:
        """Encode images to vectors, before the codebook: `latents` `(batch_size, latent_channels, height, width)`."""
        latents = self.encoder(x)
        return VQEncoderOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(
        self,
        h: torch.Tensor,
        force_not_quantize: bool = True,
        return_dict: bool = True,
        shape: tuple[int, ...] | None = None,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Decode codes, or vectors, which are quantized first, to images, whose values are not clamped.

        Args:
            h: codes, int64 `(batch_size, height, width)`, or vectors `(batch_size, latent_channels, height, width)`.
            force_not_quantize, shape: accepted but ignored, for pipelines that call a `VQModel`.
        """
        if h.is_floating_point():
            h = self.quantize(h)[0]
        else:
            h = self.quantize.get_codebook_entry(h, (*h.shape, self.config.latent_channels))
        image = self.decoder(h)
        return DecoderOutput(sample=image) if return_dict else (image,)

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Encode images to codes and decode these again."""
        return self.decode(self.encode(sample).latents, return_dict=return_dict)
