"""`hf-maskdiff demo`: its arguments, and which of them it refuses before anything is loaded."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from .checks import require_pipeline
from .generate import DTYPES
from .samples import kind_of_saved_pipeline

_HIGHEST_PORT = 65535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare every argument of the command."""
    add = parser.add_argument
    add(
        "--pipeline", nargs="+", metavar="PIPELINE", help="folders or Hub ids, a tab each; default: those in pipelines/"
    )
    add("--device", help="default: the GPU where there is one")
    add("--dtype", choices=DTYPES, default="float32")
    add("--host", help="address to serve the page at; 0.0.0.0 for other machines; default: this machine alone")
    add("--port", type=int, help="default: the first free one from 7860 on")


def check_arguments(args: argparse.Namespace) -> None:
    """Raise `ValueError` for arguments that cannot work, or if gradio is missing; nothing is loaded for it."""
    if args.port is not None and not 1 <= args.port <= _HIGHEST_PORT:
        raise ValueError(f"`port` must be in 1 .. {_HIGHEST_PORT}, got {args.port}. Leave it out for a free one.")
    for pipeline in args.pipeline or ():
        require_pipeline(pipeline)
        kind_of_saved_pipeline(pipeline)
    if not args.pipeline and not pipelines_here():
        raise ValueError(
            "`pipeline` must be given where there is no folder pipelines/ with some, got None. Pass --pipeline with a "
            "folder or an id of the Hub."
        )
    if find_spec("gradio") is None:
        raise ValueError('the demo page needs gradio, which is not installed. Run `pip install "hf-maskdiff[demo]"`.')


def pipelines_here() -> list[str]:
    """The pipelines in the folder `pipelines` of the working directory, else in that of the source that is run."""
    for folder in (Path("pipelines"), Path(__file__).resolve().parents[2] / "pipelines"):
        found = sorted(index.parent for index in folder.glob("*/model_index.json"))
        if found:
            return [str(one) for one in found]
    return []


def run(args: argparse.Namespace) -> None:
    """Check the arguments, and serve the page until it is stopped.

    Raises:
        ValueError, OSError: see `check_arguments` and `hf_maskdiff.demo.serve.serve`.
    """
    check_arguments(args)
    args.pipeline = args.pipeline or pipelines_here()
    from hf_maskdiff.demo.serve import serve

    serve(args)
