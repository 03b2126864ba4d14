r"""Judge a pipeline that speaks words: are they the words asked for, and how far are they from real ones?

    python examples/judge_words.py --pipeline runs/speech --classifier runs/word-classifier --data_dir data/speech

Prints how many of its clips the classifier reads as asked for, and the Frechet distance of its features to those of the
test split. The first row is the test split through the codec and back: no sampler comes closer, but by chance.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor
from training_utils import errors_in_one_line

from hf_maskdiff import MaskedDiffusionAudioPipeline
from hf_maskdiff.evaluation.audio_data import load_labelled_clips
from hf_maskdiff.evaluation.frechet import feature_statistics, frechet_distance
from hf_maskdiff.evaluation.word_classifier import WordClassifier


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", required=True, help="folder or Hub name")
    parser.add_argument("--classifier", required=True, help="folder that examples/train_word_classifier.py wrote")
    parser.add_argument("--data_dir", required=True, help="folder with test.npz")
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 8, 16], help="model passes of a clip")
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def drawn(
    pipe: MaskedDiffusionAudioPipeline, labels: Tensor, seconds: float, steps: int, args: argparse.Namespace
) -> Tensor:
    """A clip of each class asked for, `(num_clips, num_samples)`."""
    made = []
    for number, batch in enumerate(labels.split(args.batch_size)):
        seeds = range(args.seed + number * args.batch_size, args.seed + number * args.batch_size + len(batch))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        output = pipe(
            class_labels=batch,
            audio_length_in_s=seconds,
            num_inference_steps=steps,
            guidance_scale=args.guidance_scale,
            generator=generators,
        )
        made.append(output.audios[:, 0])
    return torch.cat(made)


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
    """Prints a row for the codec and for each number of steps, and returns them: accuracy and distance."""
    args = parse_args(argv)
    pipe = MaskedDiffusionAudioPipeline.from_pretrained(args.pipeline, trust_remote_code=False)
    pipe.set_progress_bar_config(disable=True)
    classifier = WordClassifier.from_pretrained(args.classifier, use_safetensors=True)
    with errors_in_one_line():
        audios, labels, _, rate = load_labelled_clips("test", args.data_dir)
    real = feature_statistics(classifier.read(audios)[1])
    found = {}

    def judge(name: str, clips: Tensor) -> None:
        classes, features = classifier.read(clips.cpu())
        accuracy = (classes == labels).double().mean().item()
        found[name] = accuracy, frechet_distance(*feature_statistics(features), *real)
        print(f"{name:>8}: {found[name][0]:7.1%} read as asked for, Frechet distance {found[name][1]:.3f}")

    with errors_in_one_line():
        codes = pipe.encode_audio(audios[:, None].float() / 32768, rate)
    judge("codec", pipe.decode_codes(codes)[:, 0])
    for steps in args.steps:
        judge(f"{steps} steps", drawn(pipe, labels, audios.shape[1] / rate, steps, args))
    return found


if __name__ == "__main__":
    main()
