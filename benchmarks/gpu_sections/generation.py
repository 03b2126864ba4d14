"""Runs `hf_maskdiff.generation` twice on one device, with different batch sizes: do the samples agree?"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import hf_maskdiff  # noqa: F401  (before the section's turn, see `gpu.py`)

from .measures import Bench, Case, Row

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
NEEDED = ("accelerate", "datasets", "pyarrow")


def cases(bench: Bench) -> Iterator[Case]:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        yield "packages", partial(iter, [{"not installed": ", ".join(missing)}])
        return
    for name in ("maskgit-mnist", "mdlm-shakespeare"):
        for dtype in bench.pick(("float32", "bfloat16"), ("float32",)):
            yield f"{name}, {dtype}", partial(agreement, name, dtype, bench)


def agreement(name: str, dtype: str, bench: Bench) -> Iterator[Row]:
    num_samples, sizes, steps = bench.pick((96, (32, 8), 8), (4, (4, 2), 2))
    with tempfile.TemporaryDirectory() as folder:
        made = [tokens_of(name, dtype, num_samples, size, steps, Path(folder, str(size)), bench) for size in sizes]
    first, second = made
    pairs = [
        (one, other)
        for row, other_row in zip(first, second, strict=True)
        for one, other in zip(row, other_row, strict=False)
    ]
    yield {
        "pipeline": name,
        "dtype": dtype,
        "samples": num_samples,
        "batch sizes": " and ".join(map(str, sizes)),
        "steps": steps,
        "tokens": len(pairs),
        "share of equal tokens": sum(one == other for one, other in pairs) / len(pairs),
        "share of equal samples": sum(a == b for a, b in zip(first, second, strict=True)) / num_samples,
    }


def tokens_of(
    name: str, dtype: str, num_samples: int, batch_size: int, steps: int, folder: Path, bench: Bench
) -> list[list[int]]:
    """The tokens of a set that `generate` makes in batches of this size, in the order of the samples."""
    import pyarrow.parquet as pq

    from hf_maskdiff.generation import add_arguments, run

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = {"pipeline": PIPELINES / name, "num_samples": num_samples, "output_dir": folder, "dtype": dtype}
    arguments |= {"batch_size": batch_size, "block_size": batch_size, "num_inference_steps": steps}
    if not bench.on_gpu:
        arguments["num_threads"] = 1
    with contextlib.redirect_stdout(sys.stderr):
        run(parser.parse_args([f"--{key}={value}" for key, value in arguments.items()]))
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return [row["tokens"] for row in sorted(rows, key=lambda row: row["index"])]
