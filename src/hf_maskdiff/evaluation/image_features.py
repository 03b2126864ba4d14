"""Networks whose features are used to compare images: Inception, as in published results, or your own classifier."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from hf_maskdiff.devices import is_out_of_memory
from hf_maskdiff.hub_access import require_hub
from hf_maskdiff_cli.errors import one_line
from hf_maskdiff_cli.evaluate import INCEPTION_LAYERS, require_inception_weights

from .digit_classifier import DigitClassifier
from .samples import ImageSamples


class FeatureNetwork(Protocol):
    """The interface that image measures need of a network.

    Args:
        name: its name in reports; numbers from different networks cannot be compared.
        mode: the PIL mode of the images it reads: "L" or "RGB".
        num_features: width of its feature layer.
    """

    name: str
    mode: str
    num_features: int

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(batch_size, num_features)` and class logits `(batch_size, num_classes)` of uint8 images."""


class InceptionNetwork:
    """The Inception network of published FIDs and Inception scores, in torch-fidelity's port.

    Args:
        weights: file with torch-fidelity's weights (`weights-inception-2015-12-05-6726825d.pth`); with None,
            torch-fidelity downloads it.
        layer: width of the feature layer. FID uses 2048; the earlier layers 64, 192 and 768 need fewer samples.
        device: the device it runs on.

    Raises:
        ImportError: torch-fidelity is not installed.
        ValueError: there is no such layer, or the file holds other weights.
    """

    mode = "RGB"

    def __init__(
        self, weights: str | Path | None = None, layer: int = 2048, device: str | torch.device = "cpu"
    ) -> None:
        if layer not in INCEPTION_LAYERS:
            raise ValueError(f"the Inception layer must be one of {INCEPTION_LAYERS}, got {layer}.")
        try:
            from torch_fidelity import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision's build does not fit torch
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
        except RuntimeError as error:  # torch's error, which lists the keys
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
    """A [`DigitClassifier`] as the network for image measures: small, without a download. It resizes the images.

    Args:
        folder: the classifier's folder or Hub id. Its weights must be safetensors: no pickle is looked for.
        device: the device it runs on.

    Raises:
        ValueError: there is no such classifier.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        try:
            require_hub(folder)
            self.classifier = DigitClassifier.from_pretrained(folder, use_safetensors=True).to(device).eval()
            config = self.classifier.config
            self.mode = {1: "L", 3: "RGB"}[config.in_channels]
        except Exception as error:  # of several libraries, by what is wrong with the files
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f'--network must be "inception", or the folder or repository of a classifier of images, grey or RGB, '
                f"got {str(folder)!r}: {one_line(error)}"
            ) from error
        self.name, self.num_features = f"classifier {folder}", config.feature_size

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
    """Refuse a file that holds more than tensors: torch-fidelity would unpickle it without restrictions."""
    require_inception_weights(path)
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # its type depends on what is wrong with the file
        raise ValueError(
            f"the file of Inception weights must hold tensors only, got {str(path)!r}: {str(error).splitlines()[0]} "
            "Fetch it again from torch-fidelity's releases."
        ) from error
