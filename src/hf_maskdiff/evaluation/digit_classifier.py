"""A small convolutional classifier of digit images, whose features are used for the Frechet distance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from hf_maskdiff.hub import ModelCardMixin


@dataclass
class DigitClassifierOutput(BaseOutput):
    """
    Args:
        logits (`Tensor` of shape `(batch_size, num_classes)`): unnormalised log-probabilities of the classes.
        features (`Tensor` of shape `(batch_size, feature_size)`): the layer before the logits, for distances.
    """

    logits: Tensor
    features: Tensor


class DigitClassifier(ModelCardMixin, ModelMixin, ConfigMixin):
    """Classifies small grey images well enough to judge generated ones; its weights take half a megabyte.

    Two convolutions, each with batch normalisation and pooling, and one hidden layer. Its features replace those of
    Inception, which was not trained on digits. Use the same weights throughout a comparison: distances in the features
    of different networks cannot be compared.

    Args:
        in_channels (`int`): image channels.
        sample_size (`int`): pixels per side, a multiple of 4.
        num_classes (`int`): number of classes.
        feature_size (`int`): width of the feature layer.
        block_out_channels (`tuple[int, int]`): widths of the two convolutions.
        dropout (`float`): dropout of the features while training.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        sample_size: int = 28,
        num_classes: int = 10,
        feature_size: int = 64,
        block_out_channels: tuple[int, int] = (16, 32),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if sample_size % 4:
            raise ValueError(f"`sample_size` must be a multiple of 4, got {sample_size}. Resize or pad the images.")
        first, second = block_out_channels
        self.convolutions = nn.Sequential(
            nn.Conv2d(in_channels, first, 5, padding=2, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5, padding=2, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.features = nn.Sequential(nn.Linear(second * (sample_size // 4) ** 2, feature_size), nn.ReLU())
        self.feature_dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(feature_size, num_classes)

    def forward(self, images: Tensor, return_dict: bool = True) -> DigitClassifierOutput | tuple[Tensor, Tensor]:
        """
        Args:
            images (`Tensor` of shape `(batch_size, in_channels, sample_size, sample_size)`): floats in [0, 1].
            return_dict (`bool`): whether to return a [`DigitClassifierOutput`] instead of a plain tuple.
        """
        size = (self.config.in_channels, self.config.sample_size, self.config.sample_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != size:
            raise ValueError(
                f"`images` must have the shape (batch_size, {size[0]}, {size[1]}, {size[2]}), got "
                f"{tuple(images.shape)}. Resize them, or convert their channels."
            )
        # Centre the inputs here, so that callers can keep the [0, 1] convention.
        features = self.features(self.convolutions(images * 2 - 1).flatten(1))
        logits = self.classifier(self.feature_dropout(features))
        if not return_dict:
            return logits, features
        return DigitClassifierOutput(logits=logits, features=features)

    @torch.no_grad()
    def read(self, images: Tensor, batch_size: int = 500) -> tuple[Tensor, Tensor]:
        """Predicted classes and features of many images, on the CPU.

        Args:
            images (`Tensor` of shape `(num_images, in_channels, sample_size, sample_size)`): floats in [0, 1], or
                uint8 in 0..255, on any device.
            batch_size (`int`): images per pass.

        Returns:
            `tuple[Tensor, Tensor]`: int64 classes `(num_images,)` and float32 features `(num_images, feature_size)`.
        """
        was_training = self.training
        self.eval()
        outputs = []
        for batch in images.split(batch_size):
            scaled = batch.to(self.device).to(self.dtype) / (255 if batch.dtype == torch.uint8 else 1)
            logits, features = self(scaled, return_dict=False)
            outputs.append((logits.argmax(-1).cpu(), features.float().cpu()))
        self.train(was_training)
        classes, features = zip(*outputs, strict=True)
        return torch.cat(classes), torch.cat(features)
