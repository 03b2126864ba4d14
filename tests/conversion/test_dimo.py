"""Di[M]O's published file: by its path in a repository, in a folder, safely, at its released size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_data import Model, later_cases
from hub_server import LoopbackHub, Repository
from huggingface_hub import ModelCard
from test_convert import Payload, expect_error
from test_dimo_traces import tokenizer_with

from hf_maskdiff import MaskGITPipeline, MaskGITTransformer2DModel, OneStepScheduler
from hf_maskdiff.cli import main
from hf_maskdiff.conversion.convert import convert
from hf_maskdiff.conversion.dimo import UPSTREAM
from hf_maskdiff.conversion.options import MissingOptions

FOLDERS = later_cases("dimo/manifest.json")


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.rglob("pytorch_model.bin")
    return torch.load(file, map_location="cpu", weights_only=True)


@pytest.fixture
def parts(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, dict[str, Any]]:
    """The golden folder, a tokenizer for its model, and the number of heads that no tensor tells."""
    folder = request.param.parent
    config = Model(folder).config
    return folder, tokenizer_with(config["codebook_size"], tmp_path), {"num_attention_heads": [config["heads"]]}


@pytest.mark.parametrize("parts", FOLDERS, indirect=True)
def test_from_the_hub(parts: tuple, tmp_path: Path, hub: LoopbackHub) -> None:
    """By the path that the model has there, the tokenizer from another repository."""
    folder, tokenizer, heads = parts
    (file,) = folder.rglob("pytorch_model.bin")
    hub.repositories["them/DiMO"], hub.repositories["them/vq"] = Repository(), Repository()
    others = {"meissonic/config.json": b"{}", "meissonic/diffusion_pytorch_model.bin": b"PK"}
    hub.repositories["them/DiMO"].commit({"maskgit/pytorch_model.bin": file.read_bytes(), **others}, "weights")
    hub.repositories["them/vq"].commit({"VQGAN/last.ckpt": tokenizer.read_bytes()}, "weights")
    command = ["convert", "them/DiMO/maskgit/pytorch_model.bin", str(tmp_path / "out")]
    command += ["--tokenizer", "them/vq/VQGAN/last.ckpt", "--num_attention_heads", *map(str, heads.popitem()[1])]
    assert main(command) == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.base_model) == ("unknown", "them/DiMO")
    for words in ("yuanzhi-zhu/DiMO", "The licence is unknown: its publishers", "them/vq/VQGAN/last.ckpt", "OneStep"):
        assert words in card.text or words in (tmp_path / "out" / "model_index.json").read_text()
    assert "under unknown" not in card.text
    pipe = MaskGITPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, OneStepScheduler)
    side = pipe.transformer.config.sample_size * pipe.vae_scale_factor
    images = pipe([0, 1], output_type="pt", generator=torch.Generator().manual_seed(0)).images
    assert images.shape == (2, 3, side, side)
    assert (pipe.num_timesteps, images.min() >= 0, images.max() <= 1) == (1, True, True)


@pytest.mark.parametrize("parts", FOLDERS, indirect=True)
def test_from_a_folder(parts: tuple, tmp_path: Path) -> None:
    """With wrappers of distributed training in its names, and the tokenizer beside it."""
    folder, tokenizer, heads = parts
    source, weights = tmp_path / "both", weights_of(folder)
    (source / "maskgit").mkdir(parents=True)
    torch.save({f"module.{key}": tensor for key, tensor in weights.items()}, source / "maskgit" / "pytorch_model.bin")
    tokenizer.rename(source / "last.ckpt")
    convert(source, tmp_path / "out", **heads)
    model = MaskGITPipeline.from_pretrained(tmp_path / "out").transformer
    assert torch.equal(model.token_embedding.weight, weights["tok_emb.weight"])
    assert model.config.num_classes == Model(folder).config["nclass"]


SPOILT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a weight lacks": (
        lambda w: w.pop("first_layer.2.bias"),
        r"weights must be those of a MaskGITTransf.*proj_in\.0\.b",
    ),
    "a weight more": (lambda w: w.update({"critic.x": torch.ones(2)}), r"and no others, got 1 unknown: 'critic\.x'"),
    "a shape": (lambda w: w.update({"pos_emb": w["pos_emb"][:, :-1].clone()}), "must be a square, got 15"),
    "no number": (lambda w: w["last_layer.2.weight"].fill_(float("inf")), "must be finite numbers, got infinity"),
    "no tensor": (lambda w: w.update({"bias": [1.0]}), "The checkpoint must hold tensors, 'bias' is not one"),
    "no table": (lambda w: w.pop("tok_emb.weight"), r"'tok_emb\.weight' is missing"),
}


@pytest.mark.parametrize("parts", FOLDERS, indirect=True)
@pytest.mark.parametrize("name", SPOILT)
def test_weights_that_do_not_fit(name: str, parts: tuple, tmp_path: Path) -> None:
    folder, tokenizer, heads = parts
    spoil, message = SPOILT[name]
    weights = weights_of(folder)
    spoil(weights)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        convert(tmp_path / "pytorch_model.bin", tmp_path / "out", tokenizer, **heads)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("parts", FOLDERS, indirect=True)
def test_options_that_lack(parts: tuple, tmp_path: Path) -> None:
    folder, tokenizer, heads = parts
    (file,) = folder.rglob("pytorch_model.bin")
    with pytest.raises(MissingOptions, match=r"2 missing\. .*there must be one tokenizer .* Pass llvictorll/.*VQGAN"):
        convert(file, tmp_path / "out")
    with pytest.raises(
        MissingOptions, match=r"1 missing\. `--num_attention_heads`: must be given for a model of width"
    ):
        convert(file, tmp_path / "out", tokenizer)
    larger = tokenizer_with(3 * Model(folder).config["codebook_size"], tmp_path)
    with pytest.raises(ValueError, match=r"`num_classes` must be at least 0|codes"):
        convert(file, tmp_path / "out", larger, **heads)


def test_nothing_in_the_file_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    payload, evil = Payload(f"touch {tmp_path / 'pwned'}"), tmp_path / "pytorch_model.bin"
    torch.save({"first_layer.0.weight": payload, "tok_emb.weight": payload, "x": payload}, evil)
    expect_error(capsys, tmp_path, "must hold tensors", evil, tmp_path / "out", "--num_attention_heads", 2)
    torch.save(payload, evil)
    expect_error(capsys, tmp_path, "must hold a dictionary|cannot be read", evil, tmp_path / "out")
    assert not (tmp_path / "pwned").exists()
    torch.load(evil, weights_only=False)  # proof that the file is a weapon
    assert (tmp_path / "pwned").exists()


def test_the_released_size() -> None:
    """256 pixels, 1000 classes: the shapes of its code at the sizes that the authors' program states; no memory."""
    width, rows, places, inner = 768, 1024 + 1 + 1000 + 1, 257, 3072
    norm = {"weight": (width,), "bias": (width,)}

    def named(prefix: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
        return {f"{prefix}{key}": torch.empty(shape, device="meta") for key, shape in shapes.items()}

    def linear(after: int, before: int) -> dict[str, tuple[int, ...]]:
        return {"weight": (after, before), "bias": (after,)}

    weights = named("", {"pos_emb": (1, places, width), "bias": (places, rows), "tok_emb.weight": (rows, width)})
    for place, shapes in {
        "first_layer.0": norm,
        "first_layer.4": norm,
        "last_layer.0": norm,
        "last_layer.4": norm,
    }.items():
        weights |= named(f"{place}.", shapes)
    for place in ("first_layer.2", "first_layer.6", "last_layer.2"):
        weights |= named(f"{place}.", linear(width, width))
    for i in range(24):
        block = f"transformer.layers.{i}."
        weights |= named(f"{block}0.norm.", norm) | named(f"{block}1.norm.", norm)
        weights |= named(f"{block}0.fn.mha.", {"in_proj_weight": (3 * width, width), "in_proj_bias": (3 * width,)})
        weights |= named(f"{block}0.fn.mha.out_proj.", linear(width, width))
        weights |= named(f"{block}1.fn.net.0.", linear(inner, width)) | named(
            f"{block}1.fn.net.3.", linear(width, inner)
        )
    assert UPSTREAM.contents(weights) == {"transformer"}
    assert UPSTREAM.widths({key: torch.empty(tensor.shape) for key, tensor in weights.items() if "tok" in key}) == [
        (768, 16)
    ]
    from hf_maskdiff.conversion.maskgit_pytorch_v1 import convert_transformer

    component = convert_transformer(weights, 1024)
    with torch.device("meta"):
        model = MaskGITTransformer2DModel(**component.config)
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == {
        key: tensor.shape for key, tensor in component.state_dict.items()
    }
    assert (component.config["num_attention_heads"], component.config["num_classes"]) == (16, 1000)
    assert (component.config["num_layers"], component.config["sample_size"]) == (24, 16)
