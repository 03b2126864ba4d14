"""Many samples on many processes: which are missing, who makes them, and files that survive a kill at any moment.

A set is samples 0 .. N - 1, cut into shards of fixed index ranges, so that neither the samples nor the files depend on
how many processes made them. A finished batch is a part file in a hidden folder; a shard is written once its parts are
there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from tqdm.auto import tqdm

HIDDEN = ".generation"  # what `datasets.load_dataset` does not look into
ROW_GROUP = 128  # rows that a reader of one sample has to read
_NAME = re.compile(r"(?:train|part)-(\d+)-(\d+)\.parquet")
_Result = TypeVar("_Result")


class Source(Protocol):
    """What makes samples: images and texts differ in this alone."""

    features: datasets.Features
    passes: float  # of the model, over all samples made so far; a pass over part of a sample counts as that part

    def sample(self, indices: range, seeds: Sequence[int]) -> dict[str, Sequence[Any]]:
        """The samples of these indices, made together: a column each, in the order of `indices`."""

    def encode(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The columns as `features` store them; run beside the next batch."""


def start_processes() -> PartialState:
    """This process among those of `accelerate launch`: one, or several on GPUs or, by gloo, on CPUs."""
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    # The slowest process may be hours behind the others where GPUs differ.
    return PartialState(cpu=on_cpu, timeout=timedelta(days=7))


def on_main_process(deed: Callable[[], _Result], state: PartialState) -> _Result:
    """What `deed` returns or raises: it is done by one process, and all learn of it."""
    news: list[Any] = [None, None]
    if state.is_main_process:
        try:
            news = [deed(), None]
        except (ValueError, OSError) as error:
            news = [None, error]
    broadcast_object_list(news)
    if news[1] is not None:
        raise news[1]
    return news[0]


def seed_of(base_seed: int, index: int) -> int:
    """Seed of sample `index`, of 63 bits: a hash, so that sets of neighbouring base seeds share no sample.

    Example:
        >>> torch.Generator().manual_seed(seed_of(0, 7))  # draws sample 7 of the set of base seed 0
    """
    return int.from_bytes(hashlib.sha256(f"{base_seed}:{index}".encode()).digest()[:8], "big") >> 1


# --- the plan: pure ---------------------------------------------------------------------------------------------------


def plan_batches(
    num_samples: int, shard_size: int, block_size: int, batch_size: int, done: Iterable[tuple[int, int]] = ()
) -> list[range]:
    """The batches that are missing, in order: whole blocks of one shard, as many as a batch holds.

    Args:
        shard_size: samples of a shard, a multiple of `block_size`.
        block_size: samples that are made together, always the same ones: `block_size k .. block_size (k + 1) - 1`.
        batch_size: samples of a batch, rounded up to whole blocks.
        done: index ranges `(start, stop)` that exist.

    Returns:
        disjoint ranges; the last one of all may end within a block, at `num_samples`.

    Example:
        >>> plan_batches(10, shard_size=8, block_size=2, batch_size=3, done=[(2, 4)])
        [range(0, 2), range(4, 8), range(8, 10)]
    """
    finished = {block for start, stop in done for block in range(start // block_size, -(-stop // block_size))}
    size = -(-batch_size // block_size) * block_size
    batches: list[range] = []
    for start in range(0, num_samples, block_size):
        stop = min(start + block_size, num_samples)
        if start // block_size in finished:
            continue
        last = batches[-1] if batches else range(0)
        if last.stop == start and start % shard_size and last and stop - last.start <= size:
            batches[-1] = range(last.start, stop)
        else:
            batches.append(range(start, stop))
    return batches


def blocks_of(batch: range, block_size: int) -> list[range]:
    """The blocks of a batch, the last one filled up with samples that follow it and are not kept."""
    return [range(start, start + block_size) for start in range(batch.start, batch.stop, block_size)]


def cover(spans: Iterable[tuple[int, int]], start: int, stop: int) -> list[tuple[tuple[int, int], int]]:
    """Index ranges that hold `start .. stop - 1`, each with how many of its first the ones before it hold.

    They overlap where two runs wrote to one folder: workers outlive a launcher that is killed.

    Returns:
        `(range, number to skip)` in order; empty if an index is missing.

    Example:
        >>> cover([(0, 4), (2, 6), (6, 8)], 0, 8)
        [((0, 4), 0), ((2, 6), 2), ((6, 8), 0)]
    """
    found: list[tuple[tuple[int, int], int]] = []
    at = start
    for begin, end in sorted(spans):
        if begin <= at < end:
            found.append(((begin, end), at - begin))
            at = end
    return found if at == stop else []


# --- files ------------------------------------------------------------------------------------------------------------


def write_atomically(path: Path, content: bytes | pa.Buffer) -> None:
    """A file that is there whole or not at all, also after a kill, a full disk or a power cut.

    Raises:
        OSError: it could not be written, with the path; nothing else is lost.
    """
    partial = path.parent / f".{path.name}.{os.getpid()}.partial"
    if path.parent.name != HIDDEN:
        partial = path.parent / HIDDEN / partial.name
    try:
        with _said_clearly(path):
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def _said_clearly(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror or error}; what is finished is kept. Make room, and run the same command again"
        raise OSError(error.errno, reason, str(path)) from error


class SampleSet:
    """A folder that holds a set, finished or not; `datasets.load_dataset(folder)` opens it.

    Args:
        folder: new, empty, or one with a set of the same configuration.
        configuration: what decides the samples, as JSON can hold it; `num_samples`, `shard_size` and `block_size`
            among it.
    """

    def __init__(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        self.folder, self.hidden, self.configuration = folder, folder / HIDDEN, json.loads(json.dumps(configuration))
        self.num_samples, self.shard_size = configuration["num_samples"], configuration["shard_size"]

    def open(self) -> list[tuple[int, int]]:
        """Make the folder, or see that it is this set's; returns the index ranges that exist.

        Raises:
            ValueError: the folder holds something else, or samples of another configuration.
        """
        settings = self.hidden / "configuration.json"
        if settings.is_file():
            if self.ranges():  # else nothing was made with what may have been a wrong argument
                self._require_same(json.loads(settings.read_text()))
            else:
                for log in self.hidden.glob("cost-*.jsonl"):
                    log.unlink()
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.glob("[!.]*"))):
            raise ValueError(
                f"`output_dir` must be new, empty, or hold a set that shall be completed, got {str(self.folder)!r}. "
                "Pass another folder."
            )
        self.hidden.mkdir(parents=True, exist_ok=True)
        write_atomically(settings, json.dumps(self.configuration, indent=2, sort_keys=True).encode())
        for left_over in self.hidden.glob(".*.partial"):
            left_over.unlink(missing_ok=True)
        self.finish_shards()
        return self.ranges()

    def _require_same(self, present: dict[str, Any]) -> None:
        for key in sorted(present.keys() | self.configuration.keys()):
            if present.get(key) != self.configuration.get(key):
                raise ValueError(
                    f"`output_dir` must hold a set of the same configuration, got {str(self.folder)!r}, where `{key}` "
                    f"is {present.get(key)!r} and not {self.configuration.get(key)!r}. Pass the same arguments to "
                    "complete that set, or another folder."
                )

    def shard_path(self, start: int, stop: int) -> Path:
        return self.folder / f"train-{start:09d}-{stop:09d}.parquet"

    def write_part(self, batch: range, columns: Mapping[str, Sequence[Any]], features: datasets.Features) -> None:
        """Keep a finished batch: its samples' columns."""
        table = pa.table({name: columns[name] for name in features}, schema=features.arrow_schema)
        write_atomically(self.hidden / f"part-{batch.start:09d}-{batch.stop:09d}.parquet", _as_parquet(table))

    def log_cost(self, process_index: int, num_samples: int, seconds: float, passes: float) -> None:
        """Note what a batch cost; a log, so that a kill loses its last line at most."""
        line = {"num_samples": num_samples, "seconds": round(seconds, 3), "passes": round(passes, 3)}
        path = self.hidden / f"cost-{process_index}.jsonl"
        with _said_clearly(path), open(path, "a") as log:
            log.write("\n" + json.dumps(line))  # a line that was cut does not spoil the next one

    def ranges(self) -> list[tuple[int, int]]:
        """Index ranges of the files, by their names."""
        files = [*self.folder.glob("train-*.parquet"), *self.hidden.glob("part-*.parquet")]
        return sorted((int(m[1]), int(m[2])) for path in files if (m := _NAME.fullmatch(path.name)))

    def finish_shards(self) -> bool:
        """Write every shard whose parts are all there, remove those parts, and damaged files; True when all are.

        For one process at a time.
        """
        complete = True
        parts = self._whole(self.hidden.glob("part-*.parquet"))
        shards = self._whole(self.folder.glob("train-*.parquet"))
        for start in range(0, self.num_samples, self.shard_size):
            stop = min(start + self.shard_size, self.num_samples)
            own = [span for span in parts if start <= span[0] < stop]
            if (start, stop) not in shards:
                covering = cover(own, start, stop)
                if not covering:
                    complete = False
                    continue
                table = pa.concat_tables(pq.read_table(parts[span]).slice(skipped) for span, skipped in covering)
                write_atomically(self.shard_path(start, stop), _as_parquet(table))
            for span in own:
                parts[span].unlink(missing_ok=True)
        return complete

    @staticmethod
    def _whole(paths: Iterable[Path]) -> dict[tuple[int, int], Path]:
        """Files by index range; one that holds other than its name says, somebody's doing, is removed."""
        whole = {}
        for path in paths:
            start, stop = map(int, path.stem.split("-")[1:])
            try:
                num_rows = pq.read_metadata(path).num_rows
            except (OSError, pa.ArrowInvalid):
                num_rows = -1
            if num_rows == stop - start:
                whole[start, stop] = path
            else:
                path.unlink(missing_ok=True)
        return whole


def cost_of(folder: Path) -> tuple[float | None, float | None]:
    """What making a set took: model passes a sample, and seconds, those of all processes together; None if not known.

    Batches that a kill lost are in it: they were paid for.
    """
    lines = [line for log in sorted((folder / HIDDEN).glob("cost-*.jsonl")) for line in log.read_text().splitlines()]
    batches = [json.loads(line) for line in lines if line.endswith("}")]  # a kill may have cut the last one
    if not batches:
        return None, None
    made = sum(batch["num_samples"] for batch in batches)
    return sum(batch["passes"] for batch in batches) / made, sum(batch["seconds"] for batch in batches)


def _as_parquet(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink, row_group_size=ROW_GROUP)
    return sink.getvalue()


# --- the run ----------------------------------------------------------------------------------------------------------


def generate(
    source: Source,
    output_dir: str | os.PathLike,
    configuration: Mapping[str, Any],
    *,
    base_seed: int,
    batch_size: int,
    state: PartialState,
) -> Path:
    """Make what is missing of a set, on all processes together; killed and called again, it goes on where it was.

    Sample i is a function of the base seed, i and the configuration: the same whatever the number of processes and the
    batch size. The folder must be one for all processes, also of several machines.

    Args:
        source: makes the samples; each process has its own.
        output_dir: see `SampleSet`.
        configuration: see `SampleSet`.
        batch_size: samples between two writes, which is what a kill can lose of each process, twice: one batch is
            written while the next is made.

    Returns:
        The folder. After this every shard is there.

    Raises:
        ValueError: the folder holds something else.
        OSError: a file cannot be written. The files of finished batches stay.
    """
    samples = SampleSet(Path(output_dir), configuration)
    num_samples, block_size = samples.num_samples, configuration["block_size"]
    # One process looks: files of the others may appear meanwhile.
    batches = on_main_process(
        lambda: plan_batches(num_samples, samples.shard_size, block_size, batch_size, samples.open()), state
    )
    own = batches[state.process_index :: state.num_processes]
    missing = sum(map(len, batches))
    with (
        tqdm(total=num_samples, initial=num_samples - missing, unit="sample", disable=not state.is_main_process) as bar,
        ThreadPoolExecutor(1) as writer,
    ):
        pending: Future[None] | None = None
        for batch in own:
            started, passes = time.perf_counter(), source.passes
            columns = _make(source, batch, block_size, base_seed)
            kept = len(batch) / (block_size * len(blocks_of(batch, block_size)))
            cost = (time.perf_counter() - started, kept * (source.passes - passes))
            samples.log_cost(state.process_index, len(batch), *cost)
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
    if not on_main_process(samples.finish_shards, state):
        raise OSError(
            f"all processes must write to one folder, and {str(samples.folder)!r} lacks samples. Pass one that all "
            "machines share, and run the same command again."
        )
    return samples.folder


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
