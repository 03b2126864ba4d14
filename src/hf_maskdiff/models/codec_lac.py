"""LAC, the neural audio codec of VampNet (hugofloresgarcia/lac): a waveform as frames of codes, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from hf_maskdiff.models.sized_model import SizedModelMixin

_KERNELS, _DILATIONS = (3, 7, 11), (1, 3, 5)  # of the decoder's parallel branches, and of the layers in each
_ENCODER_DILATIONS = (1, 3, 9)


@dataclass
class LACEncoderOutput(BaseOutput):
    """Codes of waveforms.

    Args:
        audio_codes: int64 `(batch_size, n_codebooks, num_frames)`.
    """

    audio_codes: Tensor


@dataclass
class LACDecoderOutput(BaseOutput):
    """Waveforms of codes.

    Args:
        audio_values: in [-1, 1], `(batch_size, 1, num_frames * hop_length)`.
    """

    audio_values: Tensor


class Snake(nn.Module):
    """`x + sin(alpha x)^2 / alpha`, with an alpha for each channel (arXiv 2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, states: Tensor) -> Tensor:
        return states + torch.sin(self.alpha * states).square() / (self.alpha + 1e-9)


class SnakeUnit(nn.Sequential):
    """Two convolutions, each behind a Snake, added to what they were given."""

    def __init__(self, channels: int, kernel: int, dilation: int, second_kernel: int) -> None:
        first, second = dilation * (kernel - 1) // 2, (second_kernel - 1) // 2
        super().__init__(
            Snake(channels),
            nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=first),
            Snake(channels),
            nn.Conv1d(channels, channels, second_kernel, padding=second),
        )

    def forward(self, states: Tensor) -> Tensor:
        return states + super().forward(states)


class Branches(nn.ModuleList):
    """The mean of branches that see reaches of different lengths (HiFi-GAN, arXiv 2010.05646)."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Sequential(*(SnakeUnit(channels, kernel, dilation, kernel) for dilation in _DILATIONS))
            for kernel in _KERNELS
        )

    def forward(self, states: Tensor) -> Tensor:
        total = self[0](states)
        for branch in list(self)[1:]:
            total = total + branch(states)
        return total / len(self)


class Codebook(nn.Module):
    """One codebook of short vectors, compared by direction, between projections from and to the frames' width."""

    def __init__(self, dim: int, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.in_proj = nn.Conv1d(dim, codebook_dim, 1)
        self.out_proj = nn.Conv1d(codebook_dim, dim, 1)
        self.codebook = nn.Embedding(codebook_size, codebook_dim)

    def codes_of(self, states: Tensor) -> Tensor:
        """The nearest codes of frames `(batch_size, dim, num_frames)`, int64 `(batch_size, num_frames)`."""
        vectors = F.normalize(self.in_proj(states).transpose(1, 2), dim=-1)
        return (vectors @ F.normalize(self.codebook.weight, dim=-1).T).argmax(-1)

    def forward(self, codes: Tensor) -> Tensor:
        """What codes stand for, `(batch_size, dim, num_frames)`."""
        return self.out_proj(self.codebook(codes).transpose(1, 2))


class LACModel(SizedModelMixin, ModelMixin, ConfigMixin):
    """Neural audio codec of one channel: takes the weights of the codec that VampNet's models speak in.

    Convolutions shorten the time stage by stage, until a frame of `hop_length` samples is one vector; each codebook
    then has the code nearest to what the ones before it have left. It decodes the first codebooks alone, too, more
    coarsely.

    A new model has torch's own initialisation.

    Source: repository hugofloresgarcia/lac (MIT), of which VampNet (arXiv 2307.04686) loads its codec. An independent
    implementation; weight norms are multiplied out.

    Example:

    ```python
    codec = LACModel(encoder_dim=4, encoder_rates=[2, 4], decoder_dim=16, decoder_rates=[4, 2], n_codebooks=3)
    codes = codec.encode(torch.randn(2, 1, 800)).audio_codes        # (2, 3, 100)
    audio = codec.decode(audio_codes=codes).audio_values            # (2, 1, 800)
    ```

    Args:
        encoder_dim (`int`): Channels of the encoder's first layer; each rate doubles them.
        encoder_rates (list of `int`): How many times shorter the time gets, stage by stage; even numbers.
        decoder_dim (`int`): Channels of the decoder's first layer; each rate halves them.
        decoder_rates (list of `int`): How many times longer it gets; even numbers with the same product.
        n_codebooks (`int`): Number of codebooks.
        codebook_size (`int`, defaults to 1024): Codes in a codebook.
        codebook_dim (`int`, defaults to 8): Width of a codebook's vectors.
        sampling_rate (`int`, defaults to 44100): Samples in a second.
        hop_length (`int`, *optional*): Samples in a frame: the product of the rates.

    Raises:
        ValueError: If a size is too small, a rate is odd, or the products differ.
    """

    @register_to_config
    def __init__(
        self,
        encoder_dim: int,
        encoder_rates: Sequence[int],
        decoder_dim: int,
        decoder_rates: Sequence[int],
        n_codebooks: int,
        codebook_size: int = 1024,
        codebook_dim: int = 8,
        sampling_rate: int = 44100,
        hop_length: int | None = None,
    ) -> None:
        super().__init__()
        hop = math.prod(decoder_rates)
        self._check_sizes(hop)
        self.register_to_config(hop_length=hop)
        dim = encoder_dim
        layers: list[nn.Module] = [nn.Conv1d(1, dim, 7, padding=3)]
        for rate in encoder_rates:
            units = [SnakeUnit(dim, 7, dilation, 1) for dilation in _ENCODER_DILATIONS]
            down = nn.Conv1d(dim, 2 * dim, 2 * rate, stride=rate, padding=rate // 2)
            layers.append(nn.Sequential(*units, Snake(dim), down))
            dim *= 2
        self.encoder = nn.Sequential(*layers, Snake(dim), nn.Conv1d(dim, dim, 3, padding=1))
        self.codebooks = nn.ModuleList(Codebook(dim, codebook_size, codebook_dim) for _ in range(n_codebooks))
        layers = [nn.Conv1d(dim, decoder_dim, 7, padding=3)]
        for i, rate in enumerate(decoder_rates):
            wide, narrow = decoder_dim // 2**i, decoder_dim // 2 ** (i + 1)
            up = nn.ConvTranspose1d(wide, narrow, 2 * rate, stride=rate, padding=rate // 2)
            layers.append(nn.Sequential(Snake(wide), up, Branches(narrow)))
        last = decoder_dim // 2 ** len(decoder_rates)
        self.decoder = nn.Sequential(*layers, Snake(last), nn.Conv1d(last, 1, 7, padding=3), nn.Tanh())

    def _check_sizes(self, hop: int) -> None:
        config = self.config
        for name in ("encoder_dim", "decoder_dim", "n_codebooks", "codebook_size", "codebook_dim", "sampling_rate"):
            if config[name] < 1:
                raise ValueError(f"`{name}` must be at least 1, got {config[name]}. Pass a larger one.")
        rates = [*config.encoder_rates, *config.decoder_rates]
        if any(rate < 2 or rate % 2 for rate in rates) or math.prod(config.encoder_rates) != hop:
            raise ValueError(
                "`encoder_rates` and `decoder_rates` must be even numbers with one product, got "
                f"{list(config.encoder_rates)} and {list(config.decoder_rates)}. Pass those of the encoder backwards."
            )
        if config.hop_length not in (None, hop):
            raise ValueError(f"`hop_length` must be the product of the rates, {hop}, got {config.hop_length}. Omit it.")
        if config.decoder_dim % 2 ** len(config.decoder_rates):
            raise ValueError(
                f"`decoder_dim` must be a multiple of {2 ** len(config.decoder_rates)}, as each rate halves it, got "
                f"{config.decoder_dim}. Pass a multiple."
            )

    @apply_forward_hook
    def encode(self, waveform: Tensor, return_dict: bool = True) -> LACEncoderOutput | tuple[Tensor]:
        """Codes of waveforms; the last frame is filled up with silence.

        Args:
            waveform: in [-1, 1], `(batch_size, 1, num_samples)`.
            return_dict: Whether to return a `LACEncoderOutput` rather than a tuple.

        Raises:
            ValueError: another shape.
        """
        if waveform.ndim != 3 or waveform.shape[1] != 1 or waveform.shape[2] < 1:
            raise ValueError(
                f"`waveform` must have shape (batch_size, 1, num_samples), got {tuple(waveform.shape)}. Pass one "
                "channel, for example `audio.mean(1, keepdim=True)`."
            )
        states = self.encoder(F.pad(waveform, (0, -waveform.shape[-1] % self.config.hop_length)))
        codes: list[Tensor] = []
        codebook: Any
        for codebook in self.codebooks:
            codes.append(codebook.codes_of(states))
            states = states - codebook(codes[-1])
        audio_codes = torch.stack(codes, 1)
        return LACEncoderOutput(audio_codes=audio_codes) if return_dict else (audio_codes,)

    @apply_forward_hook
    def decode(self, audio_codes: Tensor, return_dict: bool = True) -> LACDecoderOutput | tuple[Tensor]:
        """Waveforms of codes.

        Args:
            audio_codes: int64 `(batch_size, k, num_frames)` of the first k codebooks.
            return_dict: Whether to return a `LACDecoderOutput` rather than a tuple.

        Raises:
            ValueError: another shape or dtype, or more codebooks than there are.
        """
        count = self.config.n_codebooks
        if audio_codes.ndim != 3 or not 1 <= audio_codes.shape[1] <= count or audio_codes.dtype != torch.int64:
            raise ValueError(
                f"`audio_codes` must be int64 (batch_size, 1 to {count} codebooks, num_frames), got "
                f"{audio_codes.dtype} {tuple(audio_codes.shape)}. Pass what `encode` returns, or its first codebooks."
            )
        named = zip(self.codebooks, audio_codes.unbind(1), strict=False)  # the first of them, where there are fewer
        audio = self.decoder(sum(codebook(codes) for codebook, codes in named))
        return LACDecoderOutput(audio_values=audio) if return_dict else (audio,)

    def forward(self, waveform: Tensor, return_dict: bool = True) -> LACDecoderOutput | tuple[Tensor]:
        """What is left of waveforms as codes: `decode` of `encode`, in whole frames."""
        return self.decode(self.encode(waveform, return_dict=False)[0], return_dict)
