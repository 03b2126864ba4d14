"""The arguments that several benchmarks share; each benchmark's own arguments are in its file."""

from __future__ import annotations

import argparse
from pathlib import Path


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows a program's docstring unchanged."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_cell_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that say where `cells.run_cells` keeps its file."""
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="keep the cells already in OUTPUT_DIR")


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num_threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")


def add_pipeline_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that name the pipelines; by default the two shipped models."""
    parser.add_argument("--image_pipeline", default="pipelines/maskgit-mnist", help="folder or Hub name")
    parser.add_argument("--text_pipeline", default="pipelines/mdlm-shakespeare", help="folder or Hub name")
