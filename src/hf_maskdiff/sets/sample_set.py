"""A set of samples in a folder: finished shards, the parts of unfinished ones, and the configuration of all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from hf_maskdiff_cli.set_folder import CONFIGURATION, HIDDEN, require_set_folder

from .batches import cover
from .costs import forget_costs, log_cost
from .files import as_parquet, write_atomically

_NAME = re.compile(r"(?:train|part)-(\d+)-(\d+)\.parquet")


class SampleSet:
    """A folder that holds a set, finished or not; `datasets.load_dataset(folder)` opens it.

    A finished batch is a part file in a hidden folder. A shard is written once all of its parts are there.

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
        require_set_folder(self.folder)
        settings = self.hidden / CONFIGURATION
        if settings.is_file():
            if self.ranges():
                self._require_same(json.loads(settings.read_text()))
            else:  # nothing was made with what may have been a wrong argument
                forget_costs(self.folder)
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
        """Where the shard with samples `start .. stop - 1` belongs."""
        return self.folder / f"train-{start:09d}-{stop:09d}.parquet"

    def write_part(self, batch: range, columns: Mapping[str, Sequence[Any]], features: datasets.Features) -> None:
        """Keep a finished batch.

        Args:
            columns: one value a sample, by the names of `features`.
        """
        table = pa.table({name: columns[name] for name in features}, schema=features.arrow_schema)
        write_atomically(self.hidden / f"part-{batch.start:09d}-{batch.stop:09d}.parquet", as_parquet(table))

    def log_cost(self, process_index: int, num_samples: int, seconds: float, passes: float) -> None:
        """Note what a batch cost, for `cost_of`."""
        log_cost(self.folder, process_index, num_samples, seconds, passes)

    def ranges(self) -> list[tuple[int, int]]:
        """The index ranges of the files that are there, by their names."""
        files = [*self.folder.glob("train-*.parquet"), *self.hidden.glob("part-*.parquet")]
        return sorted((int(m[1]), int(m[2])) for path in files if (m := _NAME.fullmatch(path.name)))

    def finish_shards(self) -> bool:
        """Write every shard whose parts are all there; remove parts that are no longer needed, and damaged files.

        Only one process at a time may call it.

        Returns:
            whether all shards are there now.
        """
        complete = True
        parts = _whole(self.hidden.glob("part-*.parquet"))
        shards = _whole(self.folder.glob("train-*.parquet"))
        for start in range(0, self.num_samples, self.shard_size):
            stop = min(start + self.shard_size, self.num_samples)
            own = [span for span in parts if start <= span[0] < stop]
            if (start, stop) not in shards:
                covering = cover(own, start, stop)
                if not covering:
                    complete = False
                    continue
                table = pa.concat_tables(pq.read_table(parts[span]).slice(skipped) for span, skipped in covering)
                write_atomically(self.shard_path(start, stop), as_parquet(table))
            for span in own:
                parts[span].unlink(missing_ok=True)
        return complete


def _whole(paths: Iterable[Path]) -> dict[tuple[int, int], Path]:
    """Files by index range. One that does not hold what its name says was damaged by somebody, and is removed."""
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
