"""The program `hf-maskdiff`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hf_maskdiff.conversion.convert import convert


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with these arguments, by default those of the command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="hf-maskdiff", description="Swappable samplers for masked diffusion.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "convert",
        help="write a pipeline folder of a published checkpoint",
        description="Write a pipeline folder, in safetensors and with preset and model card, of a published "
        "checkpoint; its format is found out, and nothing in it is run.",
    )
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
    options = parser.parse_args(arguments)
    try:
        output = convert(
            options.source, options.output, options.tokenizer, options.revision, options.num_attention_heads
        )
    except (ValueError, OSError) as error:
        print(f"hf-maskdiff {options.command}: {error}", file=sys.stderr)
        return 1
    print(f"{output}: open it with `from_pretrained({str(output)!r})`, read {output / 'README.md'}")
    return 0
