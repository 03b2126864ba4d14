"""Checkpoints of MDLM's training code: which weights are taken, and that nothing in a file is ever run."""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden_data import Model

from hf_maskdiff import MDLMTransformer
from hf_maskdiff.conversion.mdlm import (
    convert_mdlm_checkpoint,
    load_mdlm_checkpoint,
    mdlm_config,
    read_mdlm_checkpoint,
)

CONFIG = {"vocab_size": 12, "hidden_dim": 32, "cond_dim": 8, "n_blocks": 2, "n_heads": 4}


def make_checkpoint(**extra: object) -> dict[str, object]:
    """The layout of MDLM's training code, with other weights in the average than in the state."""
    torch.manual_seed(0)
    model = MDLMTransformer(**CONFIG, model_length=16)
    state_dict = {f"backbone.{key}": tensor for key, tensor in model.state_dict().items()}
    average = {"decay": 0.99, "num_updates": 7, "shadow_params": [p.detach() + 1 for p in model.parameters()]}
    return {"state_dict": state_dict, "ema": average, **extra}


def save(folder: Path, checkpoint: object) -> Path:
    torch.save(checkpoint, folder / "mdlm.ckpt")
    return folder / "mdlm.ckpt"


@torch.no_grad()
@pytest.mark.parametrize("use_ema", [True, False])
def test_parity_with_the_original_checkpoint_format(golden_folder: Path, use_ema: bool) -> None:
    golden = Model(golden_folder / "mdlm")
    untold = {name: golden.config[name] for name in ("model_length", "dropout")}
    model = load_mdlm_checkpoint(golden.checkpoint, use_ema=use_ema, **untold)
    published = MDLMTransformer.from_pretrained(golden.folder)
    public = {key: value for key, value in model.config.items() if not key.startswith("_")}
    assert public == {key: published.config[key] for key in public}
    logits = model(golden.inputs["input_ids"]).logits
    expected = golden.expected["logits_ema" if use_ema else "logits"]
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=2e-5)


def test_the_model_is_whole_and_can_be_saved(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    model = load_mdlm_checkpoint(save(tmp_path, checkpoint), time_conditioning=True)
    assert mdlm_config(model.state_dict()) == CONFIG
    assert (model.config.model_length, model.config.time_conditioning, model.training) == (1024, True, False)
    for key, tensor in model.state_dict().items():
        shift = 0 if key == "rotary_emb.inv_freq" else 1
        assert torch.equal(tensor, checkpoint["state_dict"][f"backbone.{key}"] + shift), key
    model.save_pretrained(tmp_path / "saved")
    ids = torch.randint(0, 12, (2, 9))
    torch.testing.assert_close(MDLMTransformer.from_pretrained(tmp_path / "saved")(ids, 0.5), model(ids, 0.5))


def test_weights_of_the_noise_schedule_are_left_out() -> None:
    checkpoint = make_checkpoint()
    expected = convert_mdlm_checkpoint(checkpoint)
    checkpoint["state_dict"]["noise.gamma"] = torch.zeros(3)
    checkpoint["ema"]["shadow_params"].append(torch.zeros(3))
    for use_ema in (True, False):
        assert convert_mdlm_checkpoint(checkpoint, use_ema).keys() == expected.keys()


def test_weights_of_something_else_are_named() -> None:
    checkpoint = make_checkpoint()
    checkpoint["state_dict"]["head.weight"] = torch.zeros(3)
    for use_ema in (True, False):
        with pytest.raises(ValueError, match=r"named 'backbone\.'.*, got 1 others: 'head\.weight'"):
            convert_mdlm_checkpoint(checkpoint, use_ema)


def test_averages_that_do_not_fit_are_refused() -> None:
    checkpoint = make_checkpoint()
    checkpoint["ema"]["shadow_params"].pop(3)
    with pytest.raises(ValueError, match="must be tensors shaped as the weights"):
        convert_mdlm_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r'must hold averaged weights under "ema", got none\. Pass `use_ema=False`'):
        convert_mdlm_checkpoint({"state_dict": checkpoint["state_dict"]})


def test_weights_that_are_missing_or_unknown_are_named(tmp_path: Path) -> None:
    checkpoint = make_checkpoint()
    weights = checkpoint["state_dict"]
    weights["backbone.blocks.1.extra"] = weights.pop("backbone.blocks.1.norm1.weight")
    path = save(tmp_path, checkpoint)
    with pytest.raises(ValueError, match=r"(?s)not those of an MDLM.*Missing.*1\.norm1\.weight.*Unexpected.*1\.extra"):
        load_mdlm_checkpoint(path, use_ema=False)
    with pytest.raises(ValueError, match=r"must be tensors shaped as the weights"):
        load_mdlm_checkpoint(path)


# --- files of unknown origin ------------------------------------------------------------------------------------------


class Payload:
    """Pickles as a call of any function, and as the file it would leave."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def payloads(folder: Path) -> dict[str, Payload]:
    touch = f"open({str(folder / 'pwned')!r}, 'w')"
    return {
        "os.system": Payload(os.system, f"touch {folder / 'pwned'}"),
        "exec": Payload(exec, touch),
        "eval": Payload(eval, touch),
        "a method": Payload((folder / "pwned").touch),
    }


NAMES = sorted(payloads(Path()))


@pytest.fixture
def payload(tmp_path: Path, request: pytest.FixtureRequest) -> Payload:
    return payloads(tmp_path)[request.param]


@pytest.mark.parametrize("payload", NAMES, indirect=True)
@pytest.mark.parametrize("place", ["file", "state_dict", "tensor", "ema", "shadow_params"])
def test_what_would_run_code_is_refused_and_does_not_run(payload: Payload, place: str, tmp_path: Path) -> None:
    checkpoint: object = make_checkpoint()
    if place == "file":
        checkpoint = payload
    elif place == "tensor":
        checkpoint["state_dict"]["backbone.vocab_embed.embedding"] = payload
    elif place == "shadow_params":
        checkpoint["ema"]["shadow_params"][0] = payload
    else:
        checkpoint[place] = payload
    path = save(tmp_path, checkpoint)
    with pytest.raises(ValueError, match=r"must hold|must be tensors"):
        load_mdlm_checkpoint(path)
    assert not (tmp_path / "pwned").exists()

    torch.load(path, weights_only=False)  # proof that the file is a weapon
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize("payload", NAMES, indirect=True)
def test_what_would_run_code_elsewhere_is_dropped(payload: Payload, tmp_path: Path) -> None:
    path = save(tmp_path, make_checkpoint(hyper_parameters={"config": payload, payload: 3}, callbacks=[payload]))
    model = load_mdlm_checkpoint(path)
    assert not (tmp_path / "pwned").exists()
    assert model(torch.zeros(1, 4, dtype=torch.int64)).logits.isfinite().all()


def test_objects_of_classes_that_are_not_installed_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the real files, which hold a configuration and a tokenizer."""

    class Foreign(dict):
        def __init__(self) -> None:
            self.state = {"nested": [Namespace(a=1), {2}, torch.float16]}
            self["key"] = "value"

    class ForeignList(list):
        pass

    Foreign.__module__ = ForeignList.__module__ = "not_installed"
    Foreign.__qualname__, ForeignList.__qualname__ = "Foreign", "ForeignList"
    monkeypatch.setitem(sys.modules, "not_installed", Namespace(Foreign=Foreign, ForeignList=ForeignList))
    path = save(tmp_path, make_checkpoint(hyper_parameters={"config": Foreign(), "list": ForeignList([1, 2])}, epoch=3))
    monkeypatch.delitem(sys.modules, "not_installed")
    checkpoint = read_mdlm_checkpoint(path)
    assert checkpoint["epoch"] == 3
    assert not isinstance(checkpoint["hyper_parameters"]["config"], dict)
    assert "not_installed" not in sys.modules
    assert load_mdlm_checkpoint(path).config.n_blocks == 2


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.ckpt"
    path.write_bytes(pickle.dumps(make_checkpoint()["ema"]["decay"]))
    with pytest.raises(ValueError, match=r"must be a checkpoint written by `torch\.save`"):
        load_mdlm_checkpoint(path)
    torch.save(make_checkpoint(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"must be a checkpoint written by `torch\.save`"):
        load_mdlm_checkpoint(path)
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with pytest.raises(ValueError, match=r"must be a checkpoint written by `torch\.save`"):
        load_mdlm_checkpoint(path)
    save(tmp_path, {"model": {}})
    with pytest.raises(ValueError, match='must hold a dictionary with a "state_dict"'):
        load_mdlm_checkpoint(tmp_path / "mdlm.ckpt")
    save(tmp_path, {"state_dict": {"backbone.weight": torch.zeros(1)}})
    with pytest.raises(ValueError, match=r"must hold the weights of an MDLM, 'vocab_embed\.embedding' is not there"):
        load_mdlm_checkpoint(tmp_path / "mdlm.ckpt", use_ema=False)
    with pytest.raises(FileNotFoundError):
        load_mdlm_checkpoint(tmp_path / "nowhere.ckpt")


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02}(",  # cut short
        b"\x80\x02c__builtin__\nexec\n(X\x01\x00\x00\x001tR0.",  # a stack too short
        b"\x80\x02]X\x01\x00\x00\x00aQ.",  # a reference to a storage that is none
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(X\x01\x00\x00\x001tR.",  # a tensor of nothing
    ],
)
def test_broken_pickles_are_one_clear_error(program: bytes, tmp_path: Path) -> None:
    whole = save(tmp_path, make_checkpoint())
    broken = io.BytesIO()
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(broken, "w") as target:
        for name in source.namelist():
            target.writestr(name, program if name.endswith("data.pkl") else source.read(name))
    whole.write_bytes(broken.getvalue())
    with pytest.raises(ValueError, match="cannot be read as tensors and plain containers"):
        load_mdlm_checkpoint(whole)
