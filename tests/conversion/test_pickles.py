"""Crafted checkpoints: every operation that a pickle has, tried on everything that it can get hold of."""

from __future__ import annotations

import copyreg
import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from hf_maskdiff.conversion.checkpoints import read_torch_checkpoint, require_tensors

# What a pickle may name and get, as it names them: the older way of all protocols, and that of protocol 4.
ADMITTED = [
    ("torch._utils", "_rebuild_tensor_v2", torch._utils._rebuild_tensor_v2),
    ("torch._utils", "_rebuild_parameter", torch._utils._rebuild_parameter),
    ("collections", "OrderedDict", OrderedDict),
    ("torch", "Size", torch.Size),
]


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def by_line(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def by_stack(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


STATES = {
    # `None` for the defaults: calls without the last argument fail from then on.
    "defaults": b"}" + text("__defaults__") + b"Ns",
    "code": b"N}" + text("__code__") + b"Ns\x86",  # of slots, which are set as attributes
    "slots": b"N}" + text("__defaults__") + b"Ns\x86",
    "kwdefaults": b"N}" + text("__kwdefaults__") + b"}" + text("metadata") + b"K\x01ss\x86",
    "dictionary": b"}" + text("__wrapped__") + b"K\x01s",
    "class": b"N}" + text("__class__") + b"Ns\x86",
    "method": b"N}" + text("__getitem__") + b"Ns\x86",
}
# What is done to an object on the stack; it is still there afterwards, or in memo 0.
OPERATIONS = {
    **{f"BUILD {name}": state + b"b" for name, state in STATES.items()},
    "SETITEM": text("__defaults__") + b"Ns",
    "SETITEMS": b"(" + text("__defaults__") + b"Nu",
    "APPEND": b"Na",
    "APPENDS": b"(NNe",
    "ADDITEMS": b"(NN\x90",
    "memo, BUILD": b"q\x000h\x00" + STATES["slots"] + b"b",
    "LONG_BINPUT, BUILD": b"r\x05\x00\x00\x000j\x05\x00\x00\x00" + STATES["slots"] + b"b",
    "MEMOIZE, BUILD": b"\x940h\x00" + STATES["slots"] + b"b",
    "PUT and GET, BUILD": b"p0\n0g0\n" + STATES["slots"] + b"b",
    "DUP, BUILD": b"2" + STATES["slots"] + b"b0",
    "NEWOBJ": b")\x81",
    "NEWOBJ_EX": b")}\x92",
    "NEWOBJ, BUILD": b")\x81" + STATES["slots"] + b"b",
    "REDUCE, BUILD": b")R" + STATES["slots"] + b"b",
    "OBJ": b"1(h\x00No",
    "persistent id": b"Q",
}
# Those that name what they take.
DIRECT = {
    "INST": "({arguments}i{module}\n{name}\n",
    "INST of a method": "({arguments}i{module}\n{name}.__init__\n",
}


def crafted(folder: Path, program: bytes) -> Path:
    """A checkpoint of `torch.save` whose pickle is another, and beside it a storage of four numbers."""
    whole = io.BytesIO()
    torch.save({"a": torch.arange(4.0)}, whole)
    path = folder / "crafted.pth"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, program if name.endswith("data.pkl") else source.read(name))
    return path


def attributes(thing: object) -> dict[str, object]:
    names = [name for name in dir(thing) if name not in ("__doc__", "__dict__", "__weakref__")]
    return {name: str(getattr(thing, name, None)) for name in names if not callable(getattr(thing, name, None))}


def everything() -> list[dict[str, object]]:
    """What is to be as before: the functions, our own stand-ins, the module's table."""
    from hf_maskdiff.conversion import pickles

    stand_ins = [vars(pickles._Foreign), vars(pickles._Admitted), vars(pickles._Dictionary)]
    table = {key: id(value) for key, value in pickles._ADMITTED.items()}
    functions = [attributes(found) for *_, found in ADMITTED]
    return [*functions, *({k: id(v) for k, v in names.items()} for names in stand_ins), table]


@pytest.fixture
def unchanged(tmp_path: Path) -> Iterator[None]:
    """After the test a checkpoint is read as before it, by us and by torch."""
    path = tmp_path / "whole.pth"
    model = torch.nn.Linear(2, 2)
    torch.save({"state": model.state_dict(), "weight": model.weight, "size": torch.Size([2])}, path)
    before = everything()
    yield
    assert everything() == before
    for tree in (read_torch_checkpoint(path), torch.load(path, weights_only=False), torch.load(path)):
        assert torch.equal(tree["state"]["weight"], model.weight)
        assert torch.equal(tree["weight"], model.weight)
        assert tree["size"] == torch.Size([2])


def try_to_read(folder: Path, program: bytes) -> None:
    """Whatever a file does, it is read as a dictionary or refused with one clear error."""
    with suppress(ValueError):
        assert isinstance(read_torch_checkpoint(crafted(folder, program)), dict)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("named", [by_line, by_stack])
def test_no_operation_changes_what_a_pickle_names(
    operation: str, named: object, tmp_path: Path, unchanged: None
) -> None:
    heads = {0: b"", 1: b"", 2: b"\x80\x02", 3: b"\x80\x03", 4: b"\x80\x04", 5: b"\x80\x05"}
    foreign = ("os", "environ", None)
    for module, name, _ in [*ADMITTED, foreign, ("torch", "FloatStorage", None)]:
        for head in heads.values():
            program = head + named(module, name) + b"q\x00" + OPERATIONS[operation] + b"0}."
            try_to_read(tmp_path, program)
            # What is left on the stack may be what was changed: the same, as an entry of the dictionary.
            try_to_read(tmp_path, head + b"}" + text("x") + program[len(head) : -3] + b"s.")


@pytest.mark.parametrize("kind", DIRECT)
def test_operations_that_name_what_they_take(kind: str, tmp_path: Path, unchanged: None) -> None:
    for module, name, _ in ADMITTED:
        for arguments in ("", "N", "NN"):
            program = DIRECT[kind].format(arguments=arguments, module=module, name=name).encode()
            for after in (b"", *(state + b"b" for state in STATES.values())):
                try_to_read(tmp_path, program + after + b"0}.")


def storage(kind: str = "FloatStorage", key: str = "0", count: bytes = b"K\x04") -> bytes:
    """The persistent id of the storage in the file, as `torch.save` writes it."""
    named = by_line("torch", kind)
    return b"(" + text("storage") + named + text(key) + text("cpu") + count + b"tQ"


def tensor(of: bytes, size: bytes = b"(K\x04t", stride: bytes = b"(K\x01t", hooks: bytes = b"N") -> bytes:
    rebuild = by_line("torch._utils", "_rebuild_tensor_v2")
    return rebuild + b"(" + of + b"K\x00" + size + stride + b"\x89" + hooks + b"tR"


def test_the_programs_above_are_what_torch_writes(tmp_path: Path) -> None:
    """The crafted pieces do make a tensor: what is tried with them is tried for real."""
    tree = read_torch_checkpoint(crafted(tmp_path, b"\x80\x02}" + text("a") + tensor(storage()) + b"s."))
    assert tree["a"].tolist() == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("state", STATES)
def test_what_is_built_takes_no_foreign_methods(state: str, tmp_path: Path, unchanged: None) -> None:
    empty = by_line("collections", "OrderedDict") + b")R"
    for built in (empty, tensor(storage()), storage(), by_line("torch", "FloatStorage"), by_line("a", "b") + b")\x81"):
        try_to_read(tmp_path, b"\x80\x02}" + text("x") + built + STATES[state] + b"bs.")
    shadowed = empty + b"}" + text("items") + by_line("a", "b") + b"sb"
    tree = read_torch_checkpoint(crafted(tmp_path, b"\x80\x02" + shadowed + b"."))
    assert list(tree.items()) == []


@pytest.mark.parametrize(
    "program",
    [
        storage(count=b"J\xff\xff\xff\xff"),
        storage(count=b"\x8a\x08" + b"\x00" * 7 + b"\x10"),
        storage(count=b"N"),
        storage(key="1"),
        storage(key="../../etc/passwd"),
        storage("ComplexStorage"),
        storage("StorageStorage"),
        by_line("a", "Storage") + b"Q",
        b"(" + text("module") + b"tQ",
        b"(" + text("storage") + by_line("a", "b") + text("0") + text("cuda") + b"K\x04tQ",
        b"P0\n",
        tensor(storage(), size=b"(J\xff\xff\xff\xfft"),
        tensor(storage(), size=b"(K\x05t"),
        tensor(by_line("a", "b") + b")R"),
        tensor(storage(), hooks=by_line("torch._utils", "_rebuild_parameter")),
        by_line("torch._utils", "_rebuild_parameter") + b"(" + tensor(storage()) + b"\x88NtR",
        b"h\x07",
        b"j\xff\xff\xff\xff",
        b"g-1\n",
        b"Nr\xff\xff\xff\xff",  # a memo of four milliards of entries, for an unpickler that keeps it in an array
        b"\x96" + struct.pack("<Q", 2**62),
        b"\x8e" + struct.pack("<Q", 2**62),
        b"\x95" + struct.pack("<Q", 2**62) + b"N",
        b"\x97",
        b"\x98",
        b"]" * 50_000 + b"a" * 49_999,
    ],
)
def test_references_and_lengths_of_all_kinds(program: bytes, tmp_path: Path, unchanged: None) -> None:
    try_to_read(tmp_path, b"\x80\x05}" + text("x") + program + b"s.")


def test_numbers_of_a_registry_are_not_looked_up(tmp_path: Path, unchanged: None) -> None:
    copyreg.add_extension("collections", "Counter", 123)
    try:
        for operation in (b"\x82\x7b", b"\x83\x7b\x00", b"\x84\x7b\x00\x00\x00"):
            try_to_read(tmp_path, b"\x80\x02}" + text("x") + operation + b"s.")
        assert copyreg._extension_cache == {}
    finally:
        copyreg.remove_extension("collections", "Counter", 123)


@pytest.mark.parametrize("protocol", range(1, 6))
def test_every_protocol_that_torch_writes_is_read(protocol: int, tmp_path: Path) -> None:
    weights = OrderedDict(a=torch.randn(3), b=torch.nn.Parameter(torch.ones(2, 2)), c=(1, 2.5, "d", b"e", {3}, None))
    weights._metadata = {"": {"version": 1}}
    torch.save({"state": weights, "size": torch.Size([3])}, tmp_path / "a.pth", pickle_protocol=protocol)
    tree = read_torch_checkpoint(tmp_path / "a.pth")
    assert list(tree["state"]) == ["a", "b", "c"]
    assert torch.equal(tree["state"]["a"], weights["a"])
    assert torch.equal(tree["state"]["b"], weights["b"])
    assert tree["size"] == (3,)
    if protocol > 2:  # of which those before write bytes and sets as calls
        assert tree["state"]["c"][:4] == (1, 2.5, "d", b"e")


def test_a_weight_must_be_stored_whole(tmp_path: Path) -> None:
    """Of a shape that repeats one number a few bytes make more than any memory holds."""
    torch.save({"a": torch.ones(1).expand(2**40)}, tmp_path / "a.pth")
    tree = read_torch_checkpoint(tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"'a' must be stored whole, got 4 bytes for the shape \(1099511627776,\)"):
        require_tensors(tree, "It")
    torch.save({"a": torch.ones(4, 4).T[1:]}, tmp_path / "a.pth")
    assert require_tensors(read_torch_checkpoint(tmp_path / "a.pth"), "It")["a"].shape == (3, 4)


def test_the_old_way_was_open(tmp_path: Path) -> None:
    """Proof that such a file is a weapon against an unpickler that hands out the functions themselves."""

    def victim(a: int, b: int = 2) -> int:
        return a + b

    class Open(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            return victim

    program = by_line("torch._utils", "_rebuild_tensor_v2") + STATES["slots"] + b"b."
    Open(io.BytesIO(program)).load()
    with pytest.raises(TypeError):
        victim(1)
