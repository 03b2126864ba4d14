"""Train the digit classifier whose features and verdicts judge generated digits (benchmarks/images.py).

    python examples/train_digit_classifier.py --dataset ylecun/mnist --output_dir runs/digit-classifier

Minutes on a CPU; prints the accuracy on the test split. `--data_dir FOLDER` reads local files instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from training_utils import errors_in_one_line

from hf_maskdiff.evaluation.digit_classifier import DigitClassifier
from hf_maskdiff.evaluation.image_data import load_labelled_images


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="data set on the Hub, such as ylecun/mnist")
    parser.add_argument("--data_dir", help="instead: folder with IDX files, or with one sub-folder of images a class")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--max_train_steps", type=int, default=2400)
    parser.add_argument("--learning_rate", type=float, default=4e-3)
    parser.add_argument("--feature_size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
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
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.max_train_steps)

    model.train()
    progress = tqdm(range(args.max_train_steps), desc="digit classifier")
    for step in progress:
        chosen = torch.randint(len(images), (args.batch_size,), device=device)
        # Shifts of up to two pixels: generated digits are not centred as carefully as MNIST's.
        shift = torch.randint(-2, 3, (2,)).tolist()
        batch = torch.roll(images[chosen].float() / 255, shift, dims=(2, 3))
        logits = model(batch).logits
        loss = F.cross_entropy(logits, labels[chosen])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")

    model.eval()
    accuracy = (model.read(test_images)[0] == test_labels).double().mean().item()
    model.save_pretrained(args.output_dir)
    print(f"test accuracy {accuracy:.4f}, saved in {args.output_dir}")
    return accuracy


if __name__ == "__main__":
    main()
