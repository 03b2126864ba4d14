"""Checkpoints of unknown origin: what is read of flax's, what is refused, and that nothing is ever run."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from golden_data import cases
from hypothesis import given
from hypothesis import strategies as st

from hf_maskdiff.conversion.checkpoints import read_checkpoint, read_flax_checkpoint, read_torch_checkpoint


def pack(value: object) -> bytes:
    """msgpack as flax writes it: a tensor is an extension of type 1 that holds shape, type and bytes."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        return struct.pack(">Bq", 0xD3, value)
    if isinstance(value, float):
        return struct.pack(">Bd", 0xCB, value)
    if isinstance(value, str):
        data = value.encode()
        return struct.pack(">BB", 0xD9, len(data)) + data
    if isinstance(value, bytes):
        return struct.pack(">BI", 0xC6, len(value)) + value
    if isinstance(value, list):
        return struct.pack(">BH", 0xDC, len(value)) + b"".join(map(pack, value))
    if isinstance(value, dict):
        items = b"".join(pack(key) + pack(item) for key, item in value.items())
        return struct.pack(">BH", 0xDE, len(value)) + items
    assert isinstance(value, torch.Tensor)
    name = str(value.dtype).removeprefix("torch.")
    data = value.contiguous().view(torch.uint8) if value.numel() and value.ndim else value.reshape(-1).view(torch.uint8)
    return extension(1, pack([list(value.shape), name, bytes(data.flatten().tolist())]))


def extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">BIb", 0xC9, len(data), kind) + data


def written(folder: Path, data: bytes) -> Path:
    path = folder / "checkpoint"
    path.write_bytes(data)
    return path


# --- flax -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool]
)
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4), (5,)])
def test_arrays(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    array = torch.randn(shape).mul(3).to(dtype)
    tree = read_checkpoint(written(tmp_path, pack({"params": {"a": array}})))
    assert tree["params"]["a"].dtype == dtype
    assert torch.equal(tree["params"]["a"], array)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4))
def test_plain_values_are_what_they_were(tmp_path_factory: pytest.TempPathFactory, tree: dict) -> None:
    path = tmp_path_factory.getbasetemp() / "values"
    path.write_bytes(pack(tree))
    assert read_flax_checkpoint(path) == tree


def test_the_short_forms_of_msgpack(tmp_path: Path) -> None:
    data = b"\x84" + b"\xa1a" + b"\x05" + b"\xa1b" + b"\xff" + b"\xa1c" + b"\x92\xcc\xfe\xd1\xff\x00"
    assert read_checkpoint(written(tmp_path, data + b"\xa1d" + b"\xda\x00\x02hi")) == {
        "a": 5,
        "b": -1,
        "c": [254, -256],
        "d": "hi",
    }
    array = b"\x93\x91\x01\xa4int8\xc4\x01\x07"
    for head in (b"\xc7" + bytes([len(array)]), b"\xc8" + struct.pack(">H", len(array))):
        tree = read_checkpoint(written(tmp_path, b"\x81\xa1a" + head + b"\x01" + array))
        assert tree["a"].tolist() == [7]


@pytest.mark.parametrize("path", cases("maskgit_jax/*_checkpoint"))
def test_the_golden_checkpoints(path: Path) -> None:
    shapes = {}

    def collect(tree: dict, prefix: str) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                collect(value, f"{prefix}{key}/")
            else:
                shapes[prefix + key] = list(value.shape)

    collect(read_checkpoint(path)["params"], "")
    assert shapes == json.loads(path.with_name(path.name.replace("_checkpoint", "_keys.json")).read_text())


GOOD = pack([[2, 2], "float32", bytes(16)])
DEEP = b"\x81\xa1a" * 200 + b"\xc0"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pack({"a": {"b": torch.ones(3)}})[:-2], "ends in the middle of a value"),
        (b"\xde\x00\x05", "ends in the middle of a value"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "ends in the middle of a value"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "ends in the middle of a value"),
        (b"\x81\xa1a\xc1", "a value of type 0xc1"),
        (pack({"a": 1}) + b"\x00", "something follows its dictionary"),
        (b"\x81\x01\x02", "a name in it is no string but int"),
        (b"\x81\xa1a" + extension(3, GOOD), "an extension of type 3"),
        (b"\x81\xa1a" + extension(-1, bytes(8)), "an extension of type -1"),
        (b"\x81\xa1a" + extension(1, pack([[2, 2], "float32", bytes(15)])), "not as long as its shape says"),
        (b"\x81\xa1a" + extension(1, pack([[2**62, 2**62], "float32", bytes(16)])), "not as long as its shape says"),
        (b"\x81\xa1a" + extension(1, pack([[-2, -2], "float32", bytes(16)])), "not made of a shape"),
        (b"\x81\xa1a" + extension(1, pack([[True], "float32", bytes(4)])), "not made of a shape"),
        (b"\x81\xa1a" + extension(1, pack([[1], "object", bytes(8)])), "an array of 'object'"),
        (b"\x81\xa1a" + extension(1, pack(["float32", bytes(4)])), "not made of a shape"),
        (b"\x81\xa1a" + extension(1, GOOD + b"\xc0"), "not as long as its shape says"),
        (DEEP, "nested more than 64 deep"),
        (b"\x81\xa2\xff\xfe\xc0", "cannot be read as a flax checkpoint"),
    ],
)
def test_what_is_no_flax_checkpoint_is_one_clear_error(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_checkpoint(written(tmp_path, data))


@given(st.binary(max_size=60))
def test_no_bytes_at_all_do_more_than_fail(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(b"\x82" + data)
    with suppress(ValueError):
        assert isinstance(read_flax_checkpoint(path), dict)


# --- torch (what would run code is in test_mdlm.py) -------------------------------------------------------------------


class Payload:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def test_nothing_runs_and_tensors_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    weights = {"weight": torch.randn(300, 300), "half": torch.ones(3).half()}
    torch.save({"model": weights, "optimizer": Payload(f"touch {tmp_path / 'pwned'}")}, path)
    tree = read_checkpoint(path)
    assert not (tmp_path / "pwned").exists()
    assert torch.equal(tree["model"]["weight"], weights["weight"])
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(path) in maps.read_text()


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as source,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(ValueError, match=r"must be a checkpoint written by `torch\.save`"):
        read_torch_checkpoint(tmp_path / "b.pth")


@pytest.mark.parametrize("kept", [0, 3, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(kept: float, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pth")
    data = (tmp_path / "a.pth").read_bytes()
    path = written(tmp_path, data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(ValueError, match=r"must be a checkpoint"):
        read_checkpoint(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    for data in (b"\x80\x02}q\x00.", b"{}", b"\x00" * 40, b"GGUF"):
        with pytest.raises(ValueError, match=r"must be a checkpoint of `torch\.save` .* or of flax"):
            read_checkpoint(written(tmp_path, data))
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="must hold a dictionary, got list"):
        read_checkpoint(tmp_path / "list.pth")
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "nowhere")
