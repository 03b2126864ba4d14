"""Train the digit classifier whose features and predictions judge generated digits (benchmarks/images.py).

    python examples/train_digit_classifier.py --dataset ylecun/mnist --output_dir runs/digit-classifier

Takes minutes on a CPU, and prints the accuracy on the test split. `--data_dir FOLDER` reads local files instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from classifier_training import add_classifier_arguments, train_classifier
from torch import Tensor
from training_utils import errors_in_one_line

from hf_maskdiff.evaluation.digit_classifier import DigitClassifier
from hf_maskdiff.evaluation.image_data import load_labelled_images


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="data set on the Hub, such as ylecun/mnist")
    parser.add_argument("--data_dir", help="instead: folder with IDX files, or with one sub-folder of images per class")
    add_classifier_arguments(parser, batch_size=128, max_train_steps=2400)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> float:
    """Trains, saves, and returns the accuracy on the test split."""
    args = parse_args(argv)
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = {"dataset": args.dataset, "data_dir": args.data_dir}
    with errors_in_one_line():
        images, labels, class_names = load_labelled_images("train", **source)
        test_images, test_labels, _ = load_labelled_images("test", **source, num_channels=images.shape[1])
    images, labels = images.to(device), labels.to(device)
    model = DigitClassifier(
        in_channels=images.shape[1],
        sample_size=images.shape[2],
        num_classes=len(class_names),
        feature_size=args.feature_size,
    ).to(device)

    def shifted(chosen: Tensor) -> Tensor:
        """Shifted by up to two pixels, since generated digits are not centred as carefully as MNIST's."""
        shift = torch.randint(-2, 3, (2,)).tolist()
        return torch.roll(images[chosen].float() / 255, shift, dims=(2, 3))

    return train_classifier("digit classifier", model, labels, shifted, (test_images, test_labels), args)


if __name__ == "__main__":
    main()
