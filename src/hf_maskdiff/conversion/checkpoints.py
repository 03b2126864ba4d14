"""Checkpoints of unknown origin, read without running anything in them: tensors and plain containers, nothing else."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from io import BufferedReader
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from hf_maskdiff.conversion.pickles import RestrictedUnpickler

# --- torch.save -------------------------------------------------------------------------------------------------------


def read_torch_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `torch.save` wrote without running anything it names: safe on files of unknown origin.

    Tensors and plain containers are kept; tensors stay in the file until they are looked at, so that an optimizer's
    state costs no memory. Objects of other classes are neither imported nor called; placeholders stand in their places.

    Args:
        path: A file in the zip format, the only one since PyTorch 1.6.

    Raises:
        ValueError: If the file is no such checkpoint, or holds no dictionary.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError):
        entries = []
    names = {Path(entry.filename).name for entry in entries}
    # "constants.pkl" marks a program, which torch would load as one. What is compressed cannot stay in the file.
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if "data.pkl" not in names or "constants.pkl" in names or not stored:
        raise ValueError(f"`path` must be a checkpoint written by `torch.save`, got {str(path)!r}. Fetch it again.")
    try:
        checkpoint = torch.load(
            path,
            map_location="cpu",
            pickle_module=SimpleNamespace(Unpickler=RestrictedUnpickler, __name__=__name__),
            weights_only=False,  # torch's own restriction would refuse the foreign classes instead of dropping them
            mmap=True,
        )
    except Exception as error:  # a crafted file can make the unpickler fail in any way
        raise ValueError(f"{str(path)!r} cannot be read as tensors and plain containers: {error}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{str(path)!r} must hold a dictionary, got {type(checkpoint).__name__}. Use another file.")
    return checkpoint


# --- flax -------------------------------------------------------------------------------------------------------------

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_NDARRAY = 1  # flax's type of extension for arrays
_MAX_DEPTH = 64


class _Flax:
    """The part of msgpack that flax writes: maps with names, arrays, numbers, strings, and ndarrays."""

    def __init__(self, file: BufferedReader, size: int) -> None:
        self.file, self.size = file, size

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise ValueError("it ends in the middle of a value")
        return self.file.read(count)

    def number(self, code: str) -> Any:
        return struct.unpack(f">{code}", self.take(struct.calcsize(code)))[0]

    def value(self, depth: int = 0) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        tag = self.take(1)[0]
        if tag <= 0x7F:
            return tag
        if tag >= 0xE0:
            return tag - 0x100
        if tag <= 0x8F:
            return self.map(tag & 0x0F, depth)
        if tag <= 0x9F:
            return [self.value(depth + 1) for _ in range(tag & 0x0F)]
        if tag <= 0xBF:
            return self.take(tag & 0x1F).decode()
        read = self.readers.get(tag)
        if read is None:
            raise ValueError(f"it holds a value of type 0x{tag:02x}, which no flax checkpoint has")
        return read(self, depth)

    def map(self, count: int, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for _ in range(count):
            name = self.value(depth + 1)
            if not isinstance(name, str):
                raise ValueError(f"a name in it is no string but {type(name).__name__}")
            result[name] = self.value(depth + 1)
        return result

    def array(self, count: int, depth: int) -> list[Any]:
        return [self.value(depth + 1) for _ in range(count)]

    def ndarray(self, count: int) -> torch.Tensor:
        """An extension: of all there are, only an array of numbers is read."""
        kind = self.number("b")
        end = self.file.tell() + count
        if kind != _NDARRAY:
            raise ValueError(f"it holds an extension of type {kind}, only arrays of numbers are read")
        match self.value(_MAX_DEPTH - 2):
            case [list(shape), str(name), bytearray(data)] if all(type(side) is int and side >= 0 for side in shape):
                dtype = _DTYPES.get(name)
            case _:
                raise ValueError("an array in it is not made of a shape, a type of numbers, and numbers")
        if dtype is None:
            raise ValueError(f"it holds an array of {name!r}, which is no type of numbers that models have")
        if self.file.tell() != end or len(data) != math.prod(shape) * dtype.itemsize:
            raise ValueError("an array in it is not as long as its shape says")
        return torch.frombuffer(data, dtype=dtype).view(shape) if data else torch.empty(shape, dtype=dtype)

    def binary(self, count: int) -> bytearray:
        if count > self.size - self.file.tell():
            raise ValueError("it ends in the middle of a value")
        data = bytearray(count)
        self.file.readinto(data)
        return data

    readers: Mapping[int, Callable[[_Flax, int], Any]] = {
        0xC0: lambda self, depth: None,
        0xC2: lambda self, depth: False,
        0xC3: lambda self, depth: True,
        0xC4: lambda self, depth: self.binary(self.number("B")),
        0xC5: lambda self, depth: self.binary(self.number("H")),
        0xC6: lambda self, depth: self.binary(self.number("I")),
        0xC7: lambda self, depth: self.ndarray(self.number("B")),
        0xC8: lambda self, depth: self.ndarray(self.number("H")),
        0xC9: lambda self, depth: self.ndarray(self.number("I")),
        0xCA: lambda self, depth: self.number("f"),
        0xCB: lambda self, depth: self.number("d"),
        0xCC: lambda self, depth: self.number("B"),
        0xCD: lambda self, depth: self.number("H"),
        0xCE: lambda self, depth: self.number("I"),
        0xCF: lambda self, depth: self.number("Q"),
        0xD0: lambda self, depth: self.number("b"),
        0xD1: lambda self, depth: self.number("h"),
        0xD2: lambda self, depth: self.number("i"),
        0xD3: lambda self, depth: self.number("q"),
        0xD4: lambda self, depth: self.ndarray(1),
        0xD5: lambda self, depth: self.ndarray(2),
        0xD6: lambda self, depth: self.ndarray(4),
        0xD7: lambda self, depth: self.ndarray(8),
        0xD8: lambda self, depth: self.ndarray(16),
        0xD9: lambda self, depth: self.take(self.number("B")).decode(),
        0xDA: lambda self, depth: self.take(self.number("H")).decode(),
        0xDB: lambda self, depth: self.take(self.number("I")).decode(),
        0xDC: lambda self, depth: self.array(self.number("H"), depth),
        0xDD: lambda self, depth: self.array(self.number("I"), depth),
        0xDE: lambda self, depth: self.map(self.number("H"), depth),
        0xDF: lambda self, depth: self.map(self.number("I"), depth),
    }


def read_flax_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read what `flax.serialization.to_bytes` wrote, without flax: nested dictionaries of tensors.

    msgpack holds data only; of its extensions only arrays of numbers are read. One array at a time is taken from the
    file, so that the result is all that memory holds.

    Raises:
        ValueError: If the file is no such checkpoint, or ends early.
    """
    path = Path(path)
    with path.open("rb") as file:
        reader = _Flax(file, path.stat().st_size)
        try:
            tree = reader.value()
            if not isinstance(tree, dict):
                raise ValueError(f"it holds {type(tree).__name__}, not a dictionary")
            if file.tell() != reader.size:
                raise ValueError("something follows its dictionary")
        except (ValueError, OverflowError, RuntimeError) as error:
            raise ValueError(f"{str(path)!r} cannot be read as a flax checkpoint: {error}. Fetch it again.") from error
    return tree


# --- both -------------------------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of torch or of flax, whichever it is, and run nothing in it.

    Raises:
        ValueError: If it is neither.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04":
        return read_torch_checkpoint(path)
    if start and (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):  # msgpack's maps that are not empty
        return read_flax_checkpoint(path)
    raise ValueError(
        f"{str(path)!r} must be a checkpoint of `torch.save` (a zip file) or of flax (msgpack), got a file that begins "
        f"with {start!r}. Pass the file as published; formats older than PyTorch 1.6 are not read."
    )


def require_tensors(weights: object, where: str) -> dict[str, torch.Tensor]:
    """The same dictionary, once it is known that it maps names to tensors.

    Raises:
        ValueError: naming the first entry that is none.
    """
    if not isinstance(weights, Mapping):
        raise ValueError(f"{where} must hold a dictionary of tensors. Pass the checkpoint as published.")
    for key, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor) or not isinstance(key, str):
            raise ValueError(f"{where} must hold tensors, {key!r} is not one. Do not use this file.")
        require_stored(tensor, key)
    return dict(weights)


def require_stored(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """The same tensor, once it is known that the file holds a number for each of its entries.

    A shape alone may promise more than any memory: what repeats one number costs nothing until it is written.

    Raises:
        ValueError: it is larger than what is stored of it.
    """
    stored = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > stored:
        raise ValueError(
            f"{name!r} must be stored whole, got {stored} bytes for the shape {tuple(tensor.shape)}. Save the "
            "checkpoint again from contiguous tensors."
        )
    return tensor
