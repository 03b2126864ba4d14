"""Parquet files that carry a checksum of themselves: one changed byte, wherever it is, is noticed."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 128  # rows that a reader has to read for one of them
_KEY = b"hf_maskdiff.seal"
_MARK = b"hf_maskdiff.sha256="
_EMPTY = _MARK + b"0" * 64


def sealed_parquet(table: pa.Table) -> bytes:
    """The content of a parquet file with the rows of a table; equal rows give equal bytes, however they came about.

    The checksum stands among the file's metadata, which readers of parquet pass over, and is that of the whole file
    with zeros in the checksum's place.
    """
    sink = pa.BufferOutputStream()
    metadata = (table.schema.metadata or {}) | {_KEY: _EMPTY}
    table = table.combine_chunks().replace_schema_metadata(metadata)
    pq.write_table(table, sink, row_group_size=ROW_GROUP)
    content = sink.getvalue().to_pybytes()
    at = content.rindex(_EMPTY)  # the metadata follow the rows, which might hold these words too
    digest = hashlib.sha256(content).hexdigest().encode()
    return b"".join((content[:at], _MARK, digest, content[at + len(_EMPTY) :]))


def is_sealed(content: bytes) -> bool:
    """Whether a file carries a checksum. Damage may have struck the checksum itself: see `is_whole`."""
    return _MARK in content


def is_whole(content: bytes) -> bool:
    """Whether a file is, byte for byte, what `sealed_parquet` made; False for one without a checksum."""
    at = content.rfind(_MARK)
    if at < 0:
        return False
    stop = at + len(_EMPTY)
    digest = hashlib.sha256(content[:at])
    digest.update(_EMPTY)
    digest.update(memoryview(content)[stop:])
    return content[at + len(_MARK) : stop] == digest.hexdigest().encode()


def read_rows(content: bytes, columns: list[str] | None = None) -> pa.Table:
    """The rows of a file, without what it says of itself.

    Raises:
        ValueError, OSError: it is no parquet file.
    """
    table = pq.read_table(pa.BufferReader(content), columns=columns)
    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key != _KEY}
    return table.replace_schema_metadata(metadata)
