"""VampNet's checkpoints, converted: the original's logits, what the folder says, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_data import COMMITTED, later_cases
from hub_server import LoopbackHub, Repository
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch import Tensor

from hf_maskdiff import (
    LACModel,
    MaskedDiffusionAudioPipeline,
    MaskedDiffusionScheduler,
    MaskGITScheduler,
    VampNetTransformer,
)
from hf_maskdiff.conversion.convert import convert
from hf_maskdiff.conversion.options import MissingOptions

CLOSE = {"atol": 5e-5, "rtol": 5e-5}
MASK = "embedding.special.MASK"


def state_dicts() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of the committed model and of its codec, under the published names."""
    golden = load_file(COMMITTED / "vampnet" / "coarse.safetensors")
    model, codec = (
        {name.removeprefix(start): tensor for name, tensor in golden.items() if name.startswith(start)}
        for start in ("model.", "codec.")
    )
    return model, codec


def save(path: Path, weights: dict[str, Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": weights, "metadata": {"kwargs": {}}}, path)
    return path


@pytest.fixture
def published(tmp_path: Path) -> Path:
    model, codec = state_dicts()
    save(tmp_path / "vampnet" / "coarse.pth", model)
    return save(tmp_path / "vampnet" / "codec.pth", codec).parent


def opened(folder: Path, name: str = "transformer") -> VampNetTransformer:
    return VampNetTransformer.from_pretrained(folder, subfolder=name)


@torch.no_grad()
def check_logits(model: VampNetTransformer, codes: Tensor, expected: Tensor) -> None:
    """Against the original's, `(batch_size, codebook_size, frames * codebooks)`, frame by frame."""
    num_given, num_codebooks = model.config.num_conditioning_codebooks, model.config.num_codebooks
    logits = model(codes[:, num_given:], codes[:, :num_given] if num_given else None).sample
    expected = expected.unflatten(2, (-1, num_codebooks)).permute(0, 3, 2, 1).flatten(1, 2)
    assert expected.std() > 1
    torch.testing.assert_close(logits, expected, **CLOSE)


def test_the_committed_model(published: Path, tmp_path: Path) -> None:
    convert(published, tmp_path / "out")
    golden = load_file(COMMITTED / "vampnet" / "coarse.safetensors")
    check_logits(opened(tmp_path / "out"), golden["z_masked"], golden["logits"])


@pytest.mark.parametrize("path", later_cases("vampnet"))
def test_both_models(path: Path, tmp_path: Path) -> None:
    convert(path, tmp_path / "out")
    for name, prefix in (("transformer", "coarse"), ("fine_transformer", "c2f")):
        kwargs = torch.load(path / f"{prefix}.pth", weights_only=True)["metadata"]["kwargs"]
        model = opened(tmp_path / "out", name)
        assert model.config.num_codebooks == kwargs["n_codebooks"] - kwargs["n_conditioning_codebooks"]
        codes = load_file(path / f"{prefix}.input.safetensors")["z_masked"]
        check_logits(model, codes, load_file(path / f"{prefix}.expected.safetensors")["logits"])


def test_what_a_folder_says(published: Path, tmp_path: Path) -> None:
    folder = convert(published, tmp_path / "out")
    scheduler = MaskedDiffusionScheduler.from_pretrained(folder, subfolder="scheduler")
    assert type(scheduler) is MaskGITScheduler
    codes = opened(folder).config.codebook_size
    settings = {"mask_token_id": codes, "codebook_size": codes, "choice_temperature": 10.5, "typical_p": None}
    assert settings.items() <= dict(scheduler.config).items()
    pipe = MaskedDiffusionAudioPipeline.from_pretrained(folder)
    assert pipe.config.call_defaults == {"num_inference_steps": 12, "num_fine_inference_steps": 2}
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "cc-by-nc-sa-4.0"
    assert "no commercial use" in card.text
    assert not (folder / "fine_transformer").exists()


def test_a_file_with_its_codec(published: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingOptions, match=r"one codec for 'coarse.pth'.*'hugggof/vampnet/codec.pth'"):
        convert(published / "coarse.pth", tmp_path / "out")
    folder = convert(published / "coarse.pth", tmp_path / "out", published / "codec.pth")
    assert "Its tokenizer is that of `codec.pth`" in (folder / "README.md").read_text()


def test_from_a_repository_that_holds_more(published: Path, tmp_path: Path, hub: LoopbackHub) -> None:
    files = {path.name: path.read_bytes() for path in published.iterdir()}
    more = {"wavebeat.pth": b"", "README.md": b"---\nlicense: cc-by-nc-4.0\n---\n"}
    more |= {f"loras/them/{name}": content for name, content in files.items() if name == "coarse.pth"}
    repository = Repository()
    repository.commit(files | more, "published")
    hub.repositories["them/vampnet"] = repository
    folder = convert("them/vampnet", tmp_path / "out")
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "cc-by-nc-4.0"  # as its card says
    assert "CC BY-NC-SA 4.0" in card.text  # as its authors say
    convert("them/vampnet/loras/them", tmp_path / "tuned", "them/vampnet/codec.pth")


@torch.no_grad()
@pytest.mark.parametrize("rate", [4, 3])
def test_a_whole_codec_is_converted_too(rate: int, published: Path, tmp_path: Path) -> None:
    """But for odd rates, which change a clip's length: then the models' vectors alone are taken."""
    golden = load_file(COMMITTED / "vampnet" / "codec.safetensors")
    whole = {name.removeprefix("codec."): tensor for name, tensor in golden.items() if name.startswith("codec.")}
    third = {name: tensor for name, tensor in whole.items() if ".quantizers.2." in name}
    whole |= {name.replace(".2.", ".3."): tensor.clone() for name, tensor in third.items()} | state_dicts()[1]
    whole["encoder.block.2.block.4.weight_v"] = whole["encoder.block.2.block.4.weight_v"][..., : 2 * rate].clone()
    save(published / "codec.pth", whole)
    folder = convert(published, tmp_path / "out")
    pipe = MaskedDiffusionAudioPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    card = (folder / "README.md").read_text()
    if rate == 3:
        assert (pipe.codec, pipe.sampling_rate, pipe.config.hop_length) == (None, 44100, 768)
        assert "The codec is not among them" in card
        return
    assert (type(pipe.codec), pipe.codec.config.n_codebooks) == (LACModel, 4)
    assert "Their codec, a LAC, is in `codec`." in card
    assert pipe.sampling_rate == 44100  # the file does not say it
    codes = pipe.encode_audio(golden["audio"], 44100)
    assert torch.equal(codes, pipe.codec.encode(golden["audio"]).audio_codes)
    keep = torch.zeros(4, 41, dtype=torch.bool)
    keep[:, ::2] = True
    made = pipe(codes=codes, keep=keep, num_inference_steps=2)
    assert made.audios.shape == (1, 1, 328)
    assert torch.equal(made.codes[..., ::2], codes[..., ::2])


def test_weights_that_were_not_tuned_by_lora(tmp_path: Path) -> None:
    """The same matrices without additions are converted as they are."""
    model, codec = state_dicts()
    save(tmp_path / "in" / "codec.pth", codec)
    save(tmp_path / "in" / "coarse.pth", {name: tensor for name, tensor in model.items() if ".lora_" not in name})
    found = opened(convert(tmp_path / "in", tmp_path / "out")).transformer_blocks[1].ff.proj_out.weight
    assert torch.equal(found, model["transformer.layers.1.feed_forward.w_2.weight"])


def without(name: str) -> Any:
    return lambda model, codec: model.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model, codec: model.update({"ctrl_encoder.weight": torch.ones(2)}), "1 unknown: 'ctrl_encoder.weight'"),
        (without("transformer.layers.0.self_attn.w_qs.lora_B"), r"'transformer_blocks.0.attn.to_q.lora_B' is missing"),
        (without("transformer.norm.weight"), r"VampNetTransformer, they are not.*norm_out.weight"),
        (without("classifier.layers.0.weight_v"), "'head.weight_v' is missing"),
        (
            lambda model, codec: model[MASK].fill_(torch.nan),
            "finite numbers, got NaN in 'transformer.latent_embedding.weight'",
        ),
        (lambda model, codec: codec.popitem(), "must have the 4 codebooks of the model.* got 3"),
        (lambda model, codec: model.update({MASK: torch.ones(4, 3)}), "of vectors of 3 numbers, got 4 of shapes"),
        (
            lambda model, codec: codec.update({name: tensor[:7].clone() for name, tensor in codec.items()}),
            "96 logits of a frame must be those of 1 to 4 of the codec's codebooks of 7 codes",
        ),
    ],
)
def test_refusals(change: Any, message: str, tmp_path: Path) -> None:
    model, codec = state_dicts()
    change(model, codec)
    save(tmp_path / "in" / "coarse.pth", model)
    save(tmp_path / "in" / "codec.pth", codec)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        convert(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_models_of_one_kind_and_models_that_do_not_fit(published: Path, tmp_path: Path) -> None:
    save(published / "c2f.pth", state_dicts()[0])
    with pytest.raises(ValueError, match=r"one coarse model and at most one .* 'vampnet' holds 2 and 0"):
        convert(published, tmp_path / "out")
    (published / "c2f.pth").unlink()
    with pytest.raises(ValueError, match="`--num_attention_heads` must be left out for VampNet"):
        convert(published, tmp_path / "out", num_attention_heads=[2])
