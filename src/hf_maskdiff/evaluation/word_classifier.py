"""A small convolutional classifier of spoken words, whose features are used for the Frechet distance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from hf_maskdiff.evaluation.mel import log_mel
from hf_maskdiff.models.sized_model import SizedModelMixin


@dataclass
class WordClassifierOutput(BaseOutput):
    """
    Args:
        logits (`Tensor` of shape `(batch_size, num_classes)`): unnormalised log-probabilities of the classes.
        features (`Tensor` of shape `(batch_size, feature_size)`): the layer before the logits, for distances.
    """

    logits: Tensor
    features: Tensor


class WordClassifier(SizedModelMixin, ModelMixin, ConfigMixin):
    """Classifies short clips of one word well enough to judge generated ones; its weights take half a megabyte.

    Three convolutions over the log-mel spectrogram, each with batch normalisation and pooling, then the mean and the
    greatest value over time, so that it does not matter where in the clip the word lies, and one hidden layer. Use the
    same weights throughout a comparison: distances in the features of different networks cannot be compared.

    Args:
        sampling_rate (`int`): samples in a second of the clips.
        num_classes (`int`): number of classes.
        feature_size (`int`): width of the feature layer.
        block_out_channels (`tuple[int, int, int]`): widths of the convolutions.
        window (`int`): samples that the spectrogram sees at a time.
        num_bands (`int`): bands of the spectrogram, a multiple of 8.
        dropout (`float`): dropout of the features while training.
    """

    @register_to_config
    def __init__(
        self,
        sampling_rate: int,
        num_classes: int = 10,
        feature_size: int = 64,
        block_out_channels: tuple[int, int, int] = (16, 32, 64),
        window: int = 256,
        num_bands: int = 40,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if num_bands % 8:
            raise ValueError(f"`num_bands` must be a multiple of 8, got {num_bands}. Pass 40, say.")
        layers: list[nn.Module] = []
        width = 1
        for channels in block_out_channels:
            layers += [nn.Conv2d(width, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
            width = channels
        self.convolutions = nn.Sequential(*layers)
        self.features = nn.Sequential(nn.Linear(2 * width * (num_bands // 8), feature_size), nn.ReLU())
        self.feature_dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(feature_size, num_classes)

    def forward(self, waveforms: Tensor, return_dict: bool = True) -> WordClassifierOutput | tuple[Tensor, Tensor]:
        """
        Args:
            waveforms (`Tensor` of shape `(batch_size, num_samples)`): floats in [-1, 1], two windows long or more.
            return_dict (`bool`): whether to return a [`WordClassifierOutput`] instead of a plain tuple.
        """
        shortest = 2 * self.config.window
        if waveforms.ndim != 2 or waveforms.shape[1] < shortest:
            raise ValueError(
                f"`waveforms` must have the shape (batch_size, num_samples) with at least {shortest} samples, got "
                f"{tuple(waveforms.shape)}. Pass one channel of each clip."
            )
        spectrum = log_mel(waveforms, self.config.sampling_rate, self.config.window, self.config.num_bands)
        # From [-3, 0] to about [-1, 1].
        hidden = self.convolutions((spectrum[:, None] / 1.5 + 1).to(self.dtype))
        pooled = torch.cat([hidden.mean(3), hidden.amax(3)], 1).flatten(1)
        features = self.features(pooled)
        logits = self.classifier(self.feature_dropout(features))
        if not return_dict:
            return logits, features
        return WordClassifierOutput(logits=logits, features=features)

    @torch.no_grad()
    def read(self, waveforms: Tensor, batch_size: int = 200) -> tuple[Tensor, Tensor]:
        """Predicted classes and features of many clips, on the CPU.

        Args:
            waveforms (`Tensor` of shape `(num_clips, num_samples)`): floats in [-1, 1], or int16, on any device.
            batch_size (`int`): clips per pass.

        Returns:
            `tuple[Tensor, Tensor]`: int64 classes `(num_clips,)` and float32 features `(num_clips, feature_size)`.
        """
        was_training = self.training
        self.eval()
        outputs = []
        for batch in waveforms.split(batch_size):
            scaled = batch.to(self.device).float() / (32768 if batch.dtype == torch.int16 else 1)
            logits, features = self(scaled, return_dict=False)
            outputs.append((logits.argmax(-1).cpu(), features.float().cpu()))
        self.train(was_training)
        classes, features = zip(*outputs, strict=True)
        return torch.cat(classes), torch.cat(features)
