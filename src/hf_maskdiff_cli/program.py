"""The program `hf-maskdiff`: its sub-commands, and how it reports errors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import convert, demo, evaluate, generate, lm_eval, report, score, tune
from .errors import USER_ERRORS, one_line

# Set to anything in the environment, it shows where an error came from.
TRACEBACK = "HF_MASKDIFF_TRACEBACK"


class Command(NamedTuple):
    """A sub-command.

    Args:
        help: what the list of commands says of it.
        description: what its own `--help` begins with.
        add_arguments: declares its arguments.
        run: checks the arguments, then imports what it needs and does the work.
    """

    help: str
    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], object]


COMMANDS = {
    "convert": Command(
        "write a pipeline folder of a published checkpoint",
        "Write a pipeline folder, in safetensors and with preset and model card, of a published checkpoint; its format "
        "is recognised, and nothing in it is run.",
        convert.add_arguments,
        convert.run,
    ),
    "generate": Command(
        "make any number of images or texts, as a data set",
        "Make any number of images or texts, as a data set that `datasets.load_dataset` opens; on many processes with "
        "`accelerate launch -m hf_maskdiff generate ...`. Stopped, the same command completes the set.",
        generate.add_arguments,
        generate.run,
    ),
    "evaluate": Command(
        "judge samples, or a pipeline: Frechet distance, Inception score, perplexity, entropy, MAUVE",
        "Judge folders of samples, or a pipeline; prints a table, and writes it with a picture to --output_dir. Sets "
        "that differ in their seed alone become one row with error bars.",
        evaluate.add_arguments,
        evaluate.run,
    ),
    "tune": Command(
        "find the sampler, temperature and steps for a model: a search within a budget, judged again on new seeds",
        "Search samplers, choice temperatures, groups of a step and thresholds at each number of passes, by successive "
        "halving within a budget; judge the finalists on new seeds; write a table, a picture and presets. Stopped, the "
        "same command goes on.",
        tune.add_arguments,
        tune.run,
    ),
    "score": Command(
        "how likely a model finds given texts, with error bars: JSON lines in, JSON lines out",
        "Write how likely a text model finds each continuation of a prompt, in nats, with its standard error. Stopped, "
        "the same command completes the file.",
        score.add_arguments,
        score.run,
    ),
    "lm_eval": Command(
        "run lm-evaluation-harness on a text model: hf-maskdiff lm_eval --model_args pretrained=... --tasks ...",
        "Run the program of lm-evaluation-harness with the model `hf_maskdiff`; all arguments are the harness's own.",
        lm_eval.add_arguments,
        lm_eval.run,
    ),
    "report": Command(
        "tables and a picture of results, side by side: of evaluate, tune, lm_eval and benchmarks",
        "Show files of results in one page, with a picture, and what they have in common side by side; or make the "
        "tables of a page from the files that they come from.",
        report.add_arguments,
        report.run,
    ),
    "demo": Command(
        "a page on which two samplers are watched side by side",
        "Serve a page on which two samplers fill in the same masks, step by step, and images are edited by painting.",
        demo.add_arguments,
        demo.run,
    ),
}


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    program = argparse.ArgumentParser(prog="hf-maskdiff", description="Swappable samplers for masked diffusion.")
    commands = program.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        own = commands.add_parser(name, help=command.help, description=command.description)
        command.add_arguments(own)
        own.set_defaults(run=command.run)
    return program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status: 0, 1 after an error, which is printed in one line, 130 after Ctrl-C.

    Args:
        arguments: the words of the command line after the program's name; None takes them from `sys.argv`.

    Raises:
        SystemExit: with status 2 where the words are not those of a command, and with 0 after `--help`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["lm_eval"] and given[1:] not in (["-h"], ["--help"]):  # another program's options
        given.insert(1, "--")
    options = parser().parse_args(given)
    try:
        options.run(options)
    except KeyboardInterrupt:
        return _tell(options.command, "stopped; what is finished is kept", 130)
    except USER_ERRORS as error:
        return _tell(options.command, one_line(error), 1)
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        words = f"{type(error).__name__}: {one_line(error)}"
        hint = f"If the arguments are right, please report it with what the same command prints after {TRACEBACK}=1."
        return _tell(options.command, f"{words} (Not foreseen. {hint})", 1)
    return 0


def _tell(command: str, message: str, status: int) -> int:
    print(f"hf-maskdiff {command}: {message}", file=sys.stderr)
    return status
