"""A set of samples in a folder: finished shards, the parts of unfinished ones, and the description of all."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from hf_maskdiff_cli.set_folder import HIDDEN, require_set_folder

from .batches import cover, seed_of
from .claims import Claim
from .costs import forget_costs, log_cost
from .files import write_atomically
from .seals import is_sealed, is_whole, read_note, read_rows, sealed_parquet

_NAME = re.compile(r"(?:train|part)-(\d+)-(\d+)\.parquet")
_SET = b"hf_maskdiff.set"  # among a part's metadata: whose it is


class SampleSet:
    """A folder that holds a set, finished or not; `datasets.load_dataset(folder)` opens it.

    A finished batch is a part file in a hidden folder. A shard is written once all of its parts are there. Each file
    carries a checksum, which is looked at when the set is opened, and a part's when a shard is made of it.

    Args:
        folder: new, empty, or one with a set of the same configuration.
        configuration: what decides the samples, in a form that JSON can hold, with `num_samples`, `shard_size` and
            `block_size`; and with `seed`, the base seed, if files are to be checked for its samples.
    """

    def __init__(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        self.folder, self.hidden, self.claim = folder, folder / HIDDEN, Claim(folder, configuration)
        self.num_samples, self.shard_size = configuration["num_samples"], configuration["shard_size"]
        self.base_seed: int | None = configuration.get("seed")

    def open(self, verify: bool = False) -> list[tuple[int, int]]:
        """Make the folder, or see that it is this set's; remove what is damaged, and say so.

        Args:
            verify: report how many files are whole; of a set that an earlier version began, take files without a
                checksum for damaged ones.

        Returns:
            the index ranges that exist.

        Raises:
            ValueError: the folder holds something else, or belongs to another configuration, even if it is still empty.
        """
        require_set_folder(self.folder)
        if self.claim.take():
            forget_costs(self.folder)
        self.claim.warn()
        for left_over in self.hidden.glob(".*.partial"):
            left_over.unlink(missing_ok=True)
        self._remove_damaged(verify)
        self.finish_shards()
        return self.ranges()

    def give_back(self) -> None:
        """Free the folder for another configuration, if nothing was made for this one."""
        if not self.ranges():
            self.claim.release()

    def shard_path(self, start: int, stop: int) -> Path:
        """Where the shard with samples `start .. stop - 1` belongs."""
        return self.folder / f"train-{start:09d}-{stop:09d}.parquet"

    def write_part(self, batch: range, columns: Mapping[str, Sequence[Any]], features: datasets.Features) -> None:
        """Keep a finished batch.

        Args:
            columns: one value for each sample, by the names of `features`.

        Raises:
            ValueError: the folder has become another set's.
            OSError: the part could not be written.
        """
        self.claim.take()
        table = pa.table({name: columns[name] for name in features}, schema=features.arrow_schema)
        table = table.replace_schema_metadata((table.schema.metadata or {}) | {_SET: self.claim.name})
        write_atomically(self.hidden / f"part-{batch.start:09d}-{batch.stop:09d}.parquet", sealed_parquet(table))

    def log_cost(self, process_index: int, num_samples: int, seconds: float, passes: float) -> None:
        """Note what a batch cost, for `cost_of`."""
        log_cost(self.folder, process_index, num_samples, seconds, passes)

    def ranges(self) -> list[tuple[int, int]]:
        """The index ranges of the files that are there, by their names."""
        return sorted(span for span, _ in [*self._files(self.folder, "train"), *self._files(self.hidden, "part")])

    def finish_shards(self) -> bool:
        """Write every shard whose parts are all there; remove parts that are no longer needed.

        Only one process of a launch at a time may call it. Another launch with the same arguments may.

        Returns:
            whether all shards are there now.
        """
        complete = True
        parts = dict(self._files(self.hidden, "part"))
        shards = dict(self._files(self.folder, "train"))
        for start in range(0, self.num_samples, self.shard_size):
            stop = min(start + self.shard_size, self.num_samples)
            own = [span for span in parts if start <= span[0] < stop]
            if (start, stop) not in shards and not self._finish_shard(start, stop, {span: parts[span] for span in own}):
                complete = False
                continue
            for span in own:
                parts[span].unlink(missing_ok=True)
        return complete

    def _finish_shard(self, start: int, stop: int, parts: Mapping[tuple[int, int], Path]) -> bool:
        rows = {span: table for span, path in parts.items() if (table := self._rows_of_part(path, span)) is not None}
        covering = cover(rows, start, stop)
        if not covering:
            return self.shard_path(start, stop).exists()  # a launch beside this one may have been faster
        self.claim.take()
        table = pa.concat_tables(rows[span].slice(skipped) for span, skipped in covering)
        write_atomically(self.shard_path(start, stop), sealed_parquet(table))
        return True

    def _rows_of_part(self, path: Path, span: tuple[int, int]) -> pa.Table | None:
        """What a part holds; None for one that is damaged, of another set, or gone: a shard was made of it."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        if self._fault(content, span, self.claim.is_sealed) or self._is_another_s(content):
            return None
        table = read_rows(content)
        metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != _SET}
        return table.replace_schema_metadata(metadata)

    # --- damage -------------------------------------------------------------------------------------------------------

    def _remove_damaged(self, verify: bool) -> None:
        """Remove every file that does not hold what its name says, and tell its name: it is made again."""
        files = [*self._files(self.folder, "train"), *self._files(self.hidden, "part")]
        with ThreadPoolExecutor(4) as readers:
            must_be_sealed = verify or self.claim.is_sealed
            faults = list(readers.map(lambda file: self._fault_of_file(file[0], file[1], must_be_sealed), files))
        for (_, path), fault in zip(files, faults, strict=True):
            if fault is not None:
                print(f"{path}: {fault}. It is made again.", file=sys.stderr)
                path.unlink(missing_ok=True)
        if verify:
            print(f"{self.folder}: {faults.count(None)} of {len(files)} files are as they were written")

    def _fault_of_file(self, span: tuple[int, int], path: Path, must_be_sealed: bool) -> str | None:
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # taken away by a launch beside this one, which made a shard of it
            return None
        fault = self._fault(content, span, must_be_sealed)
        if fault is None and path.parent == self.hidden and self._is_another_s(content):
            return "belongs to another set"
        return fault

    def _is_another_s(self, part: bytes) -> bool:
        """Whether a part was written for another description; those of earlier versions do not say."""
        whose = read_note(part, _SET)
        return whose != self.claim.name and (self.claim.is_sealed or whose is not None)

    def _fault(self, content: bytes, span: tuple[int, int], must_be_sealed: bool) -> str | None:
        """What is wrong with a file that should hold the samples of an index range."""
        if is_sealed(content) and not is_whole(content):
            return "was damaged: its checksum does not fit"
        if must_be_sealed and not is_sealed(content):
            return "has no checksum"
        try:
            rows = read_rows(content, ["index", "seed"]).to_pydict()
        except (OSError, ValueError) as error:
            return f"was damaged: {' '.join(str(error).split())}"
        if rows["index"] != list(range(*span)):
            return "holds other samples than its name says"
        if self.base_seed is not None and rows["seed"] != [seed_of(self.base_seed, i) for i in rows["index"]]:
            return f"holds samples of another seed than {self.base_seed}"
        return None

    def _files(self, folder: Path, kind: str) -> list[tuple[tuple[int, int], Path]]:
        """Files of a kind, by the index ranges in their names."""
        found = ((_NAME.fullmatch(path.name), path) for path in sorted(folder.glob(f"{kind}-*.parquet")))
        return [((int(match[1]), int(match[2])), path) for match, path in found if match]
