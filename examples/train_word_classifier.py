"""Train the classifier of spoken words whose features and predictions judge generated ones (examples/judge_words.py).

    python examples/train_word_classifier.py --data_dir data/speech --output_dir runs/word-classifier

`--data_dir` is a folder that examples/render_speech.py wrote. Takes minutes on a CPU, and prints the accuracy on the
test split.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from classifier_training import add_classifier_arguments, train_classifier
from torch import Tensor
from training_utils import errors_in_one_line

from hf_maskdiff.evaluation.audio_data import load_labelled_clips
from hf_maskdiff.evaluation.word_classifier import WordClassifier


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder with train.npz and test.npz")
    add_classifier_arguments(parser, batch_size=64, max_train_steps=1200)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> float:
    """Trains, saves, and returns the accuracy on the test split."""
    args = parse_args(argv)
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with errors_in_one_line():
        audios, labels, class_names, rate = load_labelled_clips("train", args.data_dir)
        test_audios, test_labels, _, _ = load_labelled_clips("test", args.data_dir)
    audios, labels = audios.to(device), labels.to(device)
    model = WordClassifier(rate, num_classes=len(class_names), feature_size=args.feature_size).to(device)

    def of_any_loudness(chosen: Tensor) -> Tensor:
        """All clips are equally loud, which generated ones are not."""
        loudness = 0.3 + 0.7 * torch.rand(len(chosen), 1, device=device)
        return audios[chosen].float() / 32768 * loudness

    return train_classifier("word classifier", model, labels, of_any_loudness, (test_audios, test_labels), args)


if __name__ == "__main__":
    main()
