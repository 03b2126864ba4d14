"""The program `hf-maskdiff`: one sub-command a deed, each with the arguments of the function it calls."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from hf_maskdiff.conversion.convert import convert
from hf_maskdiff.evaluation.evaluate import add_arguments as add_evaluate_arguments
from hf_maskdiff.evaluation.evaluate import run as evaluate
from hf_maskdiff.generation import add_arguments as add_generate_arguments
from hf_maskdiff.generation import run as generate


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with these arguments, by default those of the command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="hf-maskdiff", description="Swappable samplers for masked diffusion.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_convert(
        commands.add_parser(
            "convert",
            help="write a pipeline folder of a published checkpoint",
            description="Write a pipeline folder, in safetensors and with preset and model card, of a published "
            "checkpoint; its format is found out, and nothing in it is run.",
        )
    )
    generate_command = commands.add_parser(
        "generate",
        help="make any number of images or texts, as a data set",
        description="Make any number of images or texts, as a data set that `datasets.load_dataset` opens; on many "
        "processes with `accelerate launch -m hf_maskdiff generate ...`. Stopped, the same command completes the set.",
    )
    add_generate_arguments(generate_command)
    generate_command.set_defaults(run=generate)
    evaluate_command = commands.add_parser(
        "evaluate",
        help="judge samples, or a pipeline: Frechet distance, Inception score, perplexity, entropy, MAUVE",
        description="Judge folders of samples, or a pipeline; prints a table, and writes it with a picture to "
        "--output_dir. Sets that differ in their seed alone become one row with error bars.",
    )
    add_evaluate_arguments(evaluate_command)
    evaluate_command.set_defaults(run=evaluate)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"hf-maskdiff {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _add_convert(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", help="file, folder, repository on the Hub, or owner/name/file in one")
    command.add_argument("output", help="folder to write: new, or empty")
    command.add_argument("--tokenizer", help="where the tokenizer is, if elsewhere; forms as those of the source")
    command.add_argument("--revision", help="branch, tag or commit of the source on the Hub")
    command.add_argument(
        "--num_attention_heads",
        type=int,
        nargs="+",
        default=(),
        metavar="N",
        help="for sizes that were not published; for MAGE encoder's and decoder's",
    )
    command.add_argument(
        "--attention", choices=["full"], help="of a model of dLLM that its type and name do not tell: full for an MDLM"
    )
    command.set_defaults(run=_convert)


def _convert(options: argparse.Namespace) -> None:
    output = convert(
        options.source,
        options.output,
        options.tokenizer,
        options.revision,
        options.num_attention_heads,
        options.attention,
    )
    name = json.loads((output / "model_index.json").read_text())["_class_name"]
    print(f"{output}: open it with `{name}.from_pretrained({str(output)!r})`, read {output / 'README.md'}")
