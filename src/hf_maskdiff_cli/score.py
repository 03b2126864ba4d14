"""`hf-maskdiff score`: its arguments, and which of them it refuses before the pipeline is loaded."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checks import require_pipeline, require_positive
from .generate import DTYPES
from .names import ESTIMATORS, TEXTS
from .samples import kind_of_saved_pipeline

FIELDS = ("prompt", "continuation")
# What is added to each line; fields of the input of these names would be lost.
RESULTS = ("log_likelihood", "standard_error", "num_tokens", "num_model_passes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare every argument of the command."""
    add = parser.add_argument
    add("--pipeline", required=True, help="folder or Hub id of a text pipeline, or of a text model")
    add(
        "--input",
        type=Path,
        required=True,
        metavar="FILE.jsonl",
        help='each line an object with "continuation" and, if there is one, "prompt", a text or a chat',
    )
    add(
        "--output", type=Path, required=True, metavar="FILE.jsonl", help="new, or one that was stopped: it is completed"
    )
    add("--estimator", choices=ESTIMATORS, default=ESTIMATORS[0])
    add("--num_samples", type=int, default=128, help="random masks of each continuation")
    add("--group_size", type=int, help="samples that are drawn together; default: 16")
    add("--guidance_scale", type=float, default=1.0)
    add("--mask_counts", action="store_true", help="the mask shares the probability, as in LLaDA's program")
    add("--batch_size", type=int, default=16, help="rows of a model pass")
    add("--seed", type=int, default=0, help="line i depends on it and on i")
    add("--dtype", choices=DTYPES, default="float32")
    add("--device", help="default: the GPU where there is one")


def check_arguments(args: argparse.Namespace) -> None:
    """Raise `ValueError` for arguments that cannot work, before anything is loaded."""
    require_positive(args, ("num_samples", "group_size", "batch_size"))
    require_pipeline(args.pipeline)
    kind = kind_of_saved_pipeline(args.pipeline)
    if kind not in (None, TEXTS):
        raise ValueError(f"`pipeline` must make texts, got {args.pipeline!r}, which makes {kind}. Pass another one.")
    if args.output.resolve() == args.input.resolve() or args.output.is_dir():
        raise ValueError(f"`output` must be a file of its own, got {str(args.output)!r}. Pass another name.")


def run(args: argparse.Namespace) -> Path:
    """Check the arguments, score the lines that are not scored yet, and return the file of scores.

    Raises:
        ValueError, OSError: see `check_arguments`, `read_lines` and `hf_maskdiff.evaluation.score_file.score_file`.
    """
    check_arguments(args)
    lines = read_lines(args.input)
    from hf_maskdiff.evaluation.score_file import score_file

    return score_file(args, lines)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, each with a continuation.

    Raises:
        ValueError: a line that is none, or a file without lines.
    """
    try:
        words = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"`input` must be text in UTF-8, got {error} in {str(path)!r}. Save it as UTF-8.") from error
    lines = []
    for number, word in enumerate(words, 1):
        if not word.strip():
            continue
        try:
            line = json.loads(word)
        except json.JSONDecodeError:
            line = None
        if not isinstance(line, Mapping) or not isinstance(line.get("continuation"), str) or not line["continuation"]:
            raise ValueError(
                f'`input` must hold an object with a "continuation" on each line, got {word[:40]!r} in line {number}. '
                'Write for example {"prompt": "Why?", "continuation": " Because."}.'
            )
        taken = sorted(set(RESULTS) & line.keys())
        if taken:
            raise ValueError(
                f"`input` must leave {', '.join(RESULTS)} to the output, got {taken[0]!r} in line {number}. Rename it."
            )
        lines.append(dict(line))
    if not lines:
        raise ValueError(f"`input` must hold at least one line, got none in {str(path)!r}. Fill it.")
    return lines
