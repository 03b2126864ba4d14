"""The loop that makes what is missing of a set, on all processes together."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm.auto import tqdm

from .batches import blocks_of, plan_batches, seed_of
from .processes import on_main_process
from .sample_set import SampleSet
from .sources import Source


def generate(
    source: Source,
    output_dir: str | os.PathLike,
    configuration: Mapping[str, Any],
    *,
    base_seed: int,
    batch_size: int,
    state: PartialState,
    verify: bool = False,
) -> Path:
    """Make the missing samples of a set, on all processes together; after a kill, the same call continues.

    Sample i is a function of the base seed, i and the configuration: the same whatever the number of processes and the
    batch size. The folder must be one for all processes, also of several machines.

    Args:
        source: makes the samples; each process has its own.
        output_dir: see `SampleSet`.
        configuration: see `SampleSet`.
        base_seed: see `seed_of`.
        batch_size: samples between two writes. A kill can lose twice as many of each process: one batch is written
            while the next is made.
        state: of `start_processes`.
        verify: see `SampleSet.open`.

    Returns:
        The folder. After this every shard is there, and was whole when it was looked at or written.

    Raises:
        ValueError: the folder holds something else.
        OSError: a file cannot be written. The files of finished batches stay.
    """
    samples = SampleSet(Path(output_dir), configuration)
    try:
        # One process looks: files of the others may appear meanwhile.
        done = on_main_process(lambda: samples.open(verify), state)
        plan = (samples.num_samples, samples.shard_size, configuration["block_size"], batch_size)
        batches = plan_batches(*plan, done)
        _make_all(source, samples, batches, configuration["block_size"], base_seed, state)
    except BaseException:
        if state.is_main_process:
            samples.give_back()
        raise
    if not on_main_process(samples.finish_shards, state):
        raise OSError(
            f"all processes must write to one folder, and {str(samples.folder)!r} lacks samples. Pass one that all "
            "machines share, and run the same command again."
        )
    return samples.folder


def _make_all(
    source: Source, samples: SampleSet, batches: list[range], block_size: int, base_seed: int, state: PartialState
) -> None:
    """Make and write this process's share of the batches, and wait for the others."""
    missing, num_samples = sum(map(len, batches)), samples.num_samples
    with (
        tqdm(total=num_samples, initial=num_samples - missing, unit="sample", disable=not state.is_main_process) as bar,
        ThreadPoolExecutor(1) as writer,
    ):
        pending: Future[None] | None = None
        for batch in batches[state.process_index :: state.num_processes]:
            columns = _make_and_log(source, batch, block_size, base_seed, samples, state)
            if pending is not None:
                pending.result()
            pending = writer.submit(
                lambda b, c: samples.write_part(b, source.encode(c), source.features), batch, columns
            )
            if state.is_main_process:
                _show(bar, samples)
        if pending is not None:
            pending.result()
        state.wait_for_everyone()
        if state.is_main_process:
            _show(bar, samples)


def _make_and_log(
    source: Source, batch: range, block_size: int, base_seed: int, samples: SampleSet, state: PartialState
) -> dict[str, list[Any]]:
    """The columns of a batch; what it cost goes to the log, without the samples that are made and not kept."""
    started, passes = time.perf_counter(), source.passes
    columns = _make(source, batch, block_size, base_seed)
    kept = len(batch) / (block_size * len(blocks_of(batch, block_size)))
    seconds, passes = time.perf_counter() - started, kept * (source.passes - passes)
    samples.log_cost(state.process_index, len(batch), seconds, passes)
    return columns


def _make(source: Source, batch: range, block_size: int, base_seed: int) -> dict[str, list[Any]]:
    """The columns of a batch, block by block: what is made together decides the last bits of a matrix product."""
    columns: dict[str, list[Any]] = {"index": list(batch), "seed": [seed_of(base_seed, i) for i in batch]}
    for block in blocks_of(batch, block_size):
        made = source.sample(block, [seed_of(base_seed, i) for i in block])
        for name, values in made.items():
            columns.setdefault(name, []).extend(values)
    return {name: values[: len(batch)] for name, values in columns.items()}


def _show(bar: tqdm, samples: SampleSet) -> None:
    """Move the bar to what all processes have finished."""
    bar.update(sum(stop - start for start, stop in samples.ranges()) - bar.n)
