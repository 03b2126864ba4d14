"""`hf-maskdiff lm_eval`: the program of lm-evaluation-harness, which then knows the model `hf_maskdiff`."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec

MODEL = "hf_maskdiff"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare that the harness gets all arguments."""
    parser.add_argument("arguments", nargs="*", metavar="...", help="those of `lm_eval`; --model is hf_maskdiff")


def run(args: argparse.Namespace) -> None:
    """Run the harness's program.

    Raises:
        ValueError: the harness is not installed.
    """
    if find_spec("lm_eval") is None:
        raise ValueError(
            'lm-evaluation-harness is not installed. Run `pip install "hf-maskdiff[lm-eval]"`, which brings it.'
        )
    words = list(args.arguments)
    runs = not words or words[0] == "run" or words[0].startswith("-")
    if runs and not {"-h", "--help"} & {*words} and not any(word.split("=")[0] in ("--model", "-M") for word in words):
        words += ["--model", MODEL]
    from lm_eval.__main__ import cli_evaluate

    from hf_maskdiff.harness import HarnessModel

    assert HarnessModel.__name__  # imported for its registration
    before, sys.argv = sys.argv, ["lm_eval", *words]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
