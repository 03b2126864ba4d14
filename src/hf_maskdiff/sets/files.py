"""Files of a set that are there whole or not at all, also after a kill, a full disk or a power cut."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hf_maskdiff_cli.set_folder import HIDDEN

ROW_GROUP = 128  # rows that a reader has to read for one of them


def write_atomically(path: Path, content: bytes | pa.Buffer) -> None:
    """Write a file of a set, by way of a partial file in the set's hidden folder, which must exist.

    Raises:
        OSError: it could not be written; the message has the path and says that what is finished is kept.
    """
    partial = path.parent / f".{path.name}.{os.getpid()}.partial"
    if path.parent.name != HIDDEN:
        partial = path.parent / HIDDEN / partial.name
    try:
        with telling_what_to_do(path):
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
def telling_what_to_do(path: Path) -> Iterator[None]:
    """Give an `OSError` of the block a message that names the path and the remedy."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror or error}; what is finished is kept. Make room, and run the same command again"
        raise OSError(error.errno, reason, str(path)) from error


def as_parquet(table: pa.Table) -> pa.Buffer:
    """The content of a parquet file with the rows of a table; equal rows give equal bytes, however they came about."""
    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink, row_group_size=ROW_GROUP)
    return sink.getvalue()
