"""A score of samples with error bars: of folders, or of a pipeline whose samples are made first.

    python examples/evaluate.py out/digits --network pipelines/maskgit-mnist/digit_classifier --reference REAL_DIGITS

    python examples/evaluate.py --pipeline pipelines/maskgit-mnist --num_samples 1000 --num_inference_steps 8 \\
        --network pipelines/maskgit-mnist/digit_classifier --reference REAL_DIGITS --output_dir out/evaluation

    python examples/evaluate.py --pipeline pipelines/mdlm-shakespeare --num_samples 64 --num_inference_steps 16 \\
        --ngram REAL_TEXTS --output_dir out/evaluation

    accelerate launch --multi_gpu --num_processes 8 examples/evaluate.py --pipeline me/imagenet-256 \\
        --num_samples 50000 --num_seeds 1 --reference imagenet.npz --output_dir out/fid

Images get a Frechet distance and an Inception score, in Inception's features (`pip install "hf-maskdiff[fid]"`) or a
classifier's; texts entropy and distinct n-grams, and perplexity and MAUVE under `--judge gpt2-large`, or the likelihood
under an n-gram judge that `--ngram` fits. Sets that differ in their seed alone become one row. `hf-maskdiff evaluate`
is the same program.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_maskdiff_cli import USER_ERRORS, one_line
from hf_maskdiff_cli.evaluate import add_arguments, run  # imports nothing heavy before the arguments are checked

if TYPE_CHECKING:
    from hf_maskdiff.evaluation.report import Report


def main(argv: Sequence[str] | None = None) -> Report | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        return run(args)
    except USER_ERRORS as error:  # the package's say rule, value and remedy
        parser.error(one_line(error))


if __name__ == "__main__":
    main()
