"""Any number of images or texts, on one process or many, as a data set that `datasets.load_dataset` opens.

    python examples/generate_dataset.py --pipeline pipelines/maskgit-mnist --num_samples 1000 --output_dir out/digits

    accelerate launch --multi_gpu --num_processes 8 examples/generate_dataset.py \\
        --pipeline me/imagenet --num_samples 50000 --output_dir out/samples --batch_size 128 --dtype bfloat16

    accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no \\
        examples/generate_dataset.py --pipeline pipelines/mdlm-shakespeare --num_samples 500 --output_dir out/plays

The last one is two processes on a CPU, in spite of the name. Stopped or killed, the same command completes the set;
what it holds does not depend on the number of processes, nor on a CPU on the batch size. `hf-maskdiff generate` is the
same program (`accelerate launch -m hf_maskdiff generate ...`); docs/fid-50k.md goes on from here to a score.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hf_maskdiff_cli import USER_ERRORS, one_line
from hf_maskdiff_cli.generate import add_arguments, run  # imports nothing heavy before the arguments are checked


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        run(args)
    except USER_ERRORS as error:  # the package's say rule, value and remedy
        parser.exit(2, f"{parser.prog}: error: {one_line(error)}\n")


if __name__ == "__main__":
    main()
