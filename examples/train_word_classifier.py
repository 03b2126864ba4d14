"""Train the classifier of spoken words whose features and predictions judge generated ones (examples/judge_words.py).

    python examples/train_word_classifier.py --data_dir data/speech --output_dir runs/word-classifier

`--data_dir` is a folder that examples/render_speech.py wrote. Takes minutes on a CPU, and prints the accuracy on the
test split.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from training_utils import errors_in_one_line

from hf_maskdiff.evaluation.audio_data import load_labelled_clips
from hf_maskdiff.evaluation.word_classifier import WordClassifier


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder with train.npz and test.npz")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--max_train_steps", type=int, default=1200)
    parser.add_argument("--learning_rate", type=float, default=4e-3)
    parser.add_argument("--feature_size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
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
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.max_train_steps)

    model.train()
    progress = tqdm(range(args.max_train_steps), desc="word classifier")
    for step in progress:
        chosen = torch.randint(len(audios), (args.batch_size,), device=device)
        # All clips are equally loud, which generated ones are not.
        loudness = 0.3 + 0.7 * torch.rand(args.batch_size, 1, device=device)
        logits = model(audios[chosen].float() / 32768 * loudness).logits
        loss = F.cross_entropy(logits, labels[chosen])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")

    model.eval()
    accuracy = (model.read(test_audios)[0] == test_labels).double().mean().item()
    model.save_pretrained(args.output_dir)
    print(f"test accuracy {accuracy:.4f}, saved in {args.output_dir}")
    return accuracy


if __name__ == "__main__":
    main()
