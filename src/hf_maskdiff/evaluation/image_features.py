"""Networks in whose features images are compared: Inception, as the field does, or a classifier of one's own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from hf_maskdiff_cli.evaluate import INCEPTION_LAYERS, require_inception_weights

from .digit_classifier import DigitClassifier
from .samples import ImageSamples


class FeatureNetwork(Protocol):
    """What image measures need of a network.

    Args:
        name: how a report calls it; numbers of two networks mean nothing beside each other.
        mode: of PIL, in which it reads images: "L" or "RGB".
        num_features: width of its feature layer.
    """

    name: str
    mode: str
    num_features: int

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(batch_size, num_features)` and class logits `(batch_size, num_classes)` of uint8 images."""


class InceptionNetwork:
    """The Inception network of published FID and Inception scores, as torch-fidelity ports it.

    Args:
        weights: file of torch-fidelity's weights (`weights-inception-2015-12-05-6726825d.pth`); None lets
            torch-fidelity download it.
        layer: width of the feature layer: 2048 is what FID means; the earlier ones 64, 192 and 768 need fewer samples.
        device: where it runs.

    Raises:
        ImportError: torch-fidelity is not installed.
        ValueError: another layer, or a file that holds other weights.
    """

    mode = "RGB"

    def __init__(
        self, weights: str | Path | None = None, layer: int = 2048, device: str | torch.device = "cpu"
    ) -> None:
        if layer not in INCEPTION_LAYERS:
            raise ValueError(f"the Inception layer must be one of {INCEPTION_LAYERS}, got {layer}.")
        try:
            from torch_fidelity import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:  # the latter from a torchvision of another build than torch
            raise ImportError(
                f"the Inception network needs torch-fidelity, and a torchvision that fits torch, got: {error}. Run "
                '`pip install "hf-maskdiff[fid]"`, or pass a classifier with --network.'
            ) from error
        if weights is not None:
            _require_weights_only(Path(weights))
        self.name = "Inception" if layer == 2048 else f"Inception, layer {layer}"
        self.num_features, self.device = layer, torch.device(device)
        try:
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat",
                [str(layer), "logits_unbiased"],
                feature_extractor_weights_path=None if weights is None else str(weights),
            )
        except RuntimeError as error:  # of torch, which lists the keys
            raise ValueError(
                f"the Inception weights must be torch-fidelity's, got others in {str(weights)!r}: {str(error)[:200]}"
            ) from error
        except OSError as error:
            raise ValueError(
                f"the Inception weights could not be downloaded: {error}. Pass the file with --inception_weights."
            ) from error
        self.network.to(self.device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(images.to(self.device))


class ClassifierNetwork:
    """A [`DigitClassifier`] as a network for the measures: small, and no download. Images are resized to its size.

    Args:
        folder: of the classifier, or its Hub id.
        device: where it runs.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        self.classifier = DigitClassifier.from_pretrained(folder).to(device).eval()
        config = self.classifier.config
        self.name, self.num_features = f"classifier {folder}", config.feature_size
        self.mode = {1: "L", 3: "RGB"}[config.in_channels]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        scaled = images.to(self.classifier.device, self.classifier.dtype) / 255
        side = self.classifier.config.sample_size
        if scaled.shape[-2:] != (side, side):
            scaled = F.interpolate(scaled, (side, side), mode="bilinear", antialias=True)
        logits, features = self.classifier(scaled, return_dict=False)
        return features, logits


def read_features(
    network: FeatureNetwork, samples: ImageSamples, batch_size: int, image_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Features `(count, num_features)` and logits `(count, num_classes)` of a set, float32 on the CPU."""
    batches: Iterable[Tensor] = samples.batches(network.mode, batch_size, image_size)
    read = []
    with tqdm(total=samples.count, desc=samples.name, unit="image", leave=False) as bar:
        for batch in batches:
            features, logits = network(batch)
            read.append((features.float().cpu(), logits.float().cpu()))
            bar.update(len(batch))
    return torch.cat([features for features, _ in read]), torch.cat([logits for _, logits in read])


def _require_weights_only(path: Path) -> None:
    """torch-fidelity unpickles the file freely: what is more than tensors is refused here, before that."""
    require_inception_weights(path)
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # of several types, by what is wrong with the file
        raise ValueError(
            f"the file of Inception weights must hold tensors only, got {str(path)!r}: {str(error).splitlines()[0]} "
            "Fetch it again from torch-fidelity's releases."
        ) from error
