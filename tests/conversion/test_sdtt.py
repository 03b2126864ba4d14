"""SDTT's checkpoints: both published layouts, from the Hub by revision too, and what is refused of them."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from concrete import SCHEDULERS
from golden_data import Model, later_cases
from hub_server import LoopbackHub, Repository
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from test_convert import make_tokenizer

from hf_maskdiff import (
    DelayedCacheConfig,
    DualCacheConfig,
    GreedyCacheConfig,
    MaskedDiffusionScheduler,
    MDLMPipeline,
    MDLMTransformer,
    MomentScheduler,
    PartialCacheConfig,
    PrefixCacheConfig,
    UniformScheduler,
)
from hf_maskdiff.cli import main
from hf_maskdiff.conversion.convert import convert

CONFIG = {"vocab_size": 12, "hidden_dim": 32, "cond_dim": 8, "n_blocks": 2, "n_heads": 4, "model_length": 16}
# As published: names of sizes, and the number of parameters of our model at these sizes with GPT-2's tokens and a mask.
RELEASED = {"sm": (768, 12, 12), "md": (1024, 24, 16), "large": (1536, 24, 16)}


def sdtt_config(**model: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "cond_dim": 8, "n_blocks": 2, "n_heads": 4, "length": 16, "dropout": 0.1}
    kind = {"type": "ddit-orig", "tie_word_embeddings": False, "name": "small", "scale_by_sigma": True}
    return {
        "model": {**kind, **sizes, **model},
        "parameterization": {"name": "multi-round-sdtt"},
        "time_conditioning": False,
        "loader": {"batch_size": "${div_up:${.global_batch_size}, 2}"},
    }


def write(folder: Path, config: dict[str, Any], prefix: str = "backbone.") -> MDLMTransformer:
    """A checkpoint of random weights in the published layout, and the model that it is."""
    torch.manual_seed(0)
    model = MDLMTransformer(**CONFIG).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    folder.mkdir(exist_ok=True)
    save_file({f"{prefix}{key}": tensor for key, tensor in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write(tmp_path / "source", sdtt_config())
    return tmp_path / "source"


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return make_tokenizer(tmp_path / "words", CONFIG["vocab_size"] - 1)


@torch.no_grad()
@pytest.mark.parametrize("folder", later_cases("sdtt/*", Path.is_dir))
@pytest.mark.parametrize("is_file", [False, True])
def test_golden_logits(folder: Path, is_file: bool, tmp_path: Path) -> None:
    """Of the model as published, and of the folder that it is converted to."""
    golden, theirs = Model(folder), Model(folder).config["model"]
    tokenizer = make_tokenizer(tmp_path / "words", len(golden.expected["logits"][0, 0]) - 1)
    convert(folder / "model.safetensors" if is_file else folder, tmp_path / "out", tokenizer)
    pipe = MDLMPipeline.from_pretrained(tmp_path / "out")
    config = pipe.transformer.config
    assert (config.hidden_dim, config.n_blocks, config.n_heads) == (
        theirs["hidden_size"],
        theirs["n_blocks"],
        theirs["n_heads"],
    )
    assert (config.model_length, config.cond_dim) == (theirs["length"], theirs["cond_dim"])
    mask = json.loads((folder.parent / "manifest.json").read_text())["mask_token_id"]
    assert pipe.scheduler.config.mask_token_id == pipe.scheduler.config.codebook_size == mask
    for model in (pipe.transformer, MDLMTransformer.from_pretrained(folder)):
        for suffix in ("", "_short"):
            logits = model(golden.inputs[f"input_ids{suffix}"]).logits
            torch.testing.assert_close(logits, golden.expected[f"logits{suffix}"], atol=2e-5, rtol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["backbone.", "backbone.backbone."])
def test_both_layouts(prefix: str, tmp_path: Path) -> None:
    model, ids = write(tmp_path / "source", sdtt_config(), prefix), torch.randint(0, 12, (2, 16))
    opened = MDLMTransformer.from_pretrained(tmp_path / "source", dtype=torch.float64)
    assert {name: opened.config[name] for name in CONFIG} == CONFIG
    assert (opened.config.time_conditioning, opened.training, opened.dtype) == (False, False, torch.float64)
    torch.testing.assert_close(opened(ids).logits, model.double()(ids).logits)


@pytest.mark.parametrize("size", RELEASED)
def test_released_sizes(size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight of them is in memory: they are tensors of shapes alone."""
    width, blocks, heads = RELEASED[size]
    sizes = {"hidden_size": width, "n_blocks": blocks, "n_heads": heads, "cond_dim": 128, "length": 1024}
    with torch.device("meta"):
        model = MDLMTransformer(50258, 1024, width, 128, blocks, heads)
    weights = {f"backbone.{key}": tensor for key, tensor in model.state_dict().items()}
    monkeypatch.setattr("hf_maskdiff.published.mdlm_weights.load_state_dict", lambda file: weights)
    (tmp_path / "config.json").write_text(json.dumps(sdtt_config(**sizes)))
    save_file({"stands_for": torch.zeros(1)}, tmp_path / "model.safetensors")
    found = MDLMTransformer.from_pretrained(tmp_path)
    assert {key: tensor.shape for key, tensor in found.state_dict().items()} == {
        key: tensor.shape for key, tensor in model.state_dict().items()
    }
    assert found.rotary_emb.inv_freq.shape == (width // heads // 2,)


@torch.no_grad()
def test_from_the_hub_by_revision(source: Path, words: Path, tmp_path: Path, hub: LoopbackHub) -> None:
    repository, read = hub.repositories.setdefault("them/sdtt", Repository()), {}
    for revision, layout in (("baselines_kld_step_70000", "backbone."), ("teacher_1M_sm", 2 * "backbone.")):
        read[revision] = write(source, sdtt_config(), layout)
        repository.commit({path.name: path.read_bytes() for path in source.iterdir()}, revision, revision)
    repository.commit({"README.md": b"---\n{}\n---\n"}, "main")
    ids = torch.randint(0, 12, (2, 16))
    for revision, model in read.items():
        output = tmp_path / revision
        assert main(["convert", f"them/sdtt@{revision}", str(output), "--tokenizer", str(words)]) == 0
        torch.testing.assert_close(MDLMPipeline.from_pretrained(output).transformer(ids).logits, model(ids).logits)
        card = ModelCard.load(output / "README.md")
        assert (card.data.license, card.data.base_model) == ("unknown", "them/sdtt")
        assert f"`them/sdtt@{revision}` at revision `{repository.refs[revision]}`" in card.text
        assert "The licence is unknown: its publishers state none" in card.text
        assert "under unknown" not in card.text
        pipe = MDLMPipeline.from_pretrained("them/sdtt", revision=revision, tokenizer=str(words))
        torch.testing.assert_close(pipe.transformer(ids).logits, model(ids).logits)
    convert("them/sdtt", tmp_path / "same", words, "teacher_1M_sm")
    with pytest.raises(ValueError, match=r"`revision` must be given once, got 'main' for 'them/sdtt@teacher_1M_sm'"):
        convert("them/sdtt@teacher_1M_sm", tmp_path / "new", words, "main")
    with pytest.raises(OSError, match="or a repository that the Hub gives out, got 'them/sdtt@none'"):
        convert("them/sdtt@none", tmp_path / "new", words)
    assert not (tmp_path / "new").exists()


def test_every_scheduler_and_plan_runs(source: Path, words: Path) -> None:
    pipe = MDLMPipeline.from_pretrained(source, tokenizer=str(words))
    pipe.set_progress_bar_config(disable=True)
    mask, prompt = pipe.scheduler.config.mask_token_id, torch.tensor([[2, 3, 4]])
    plans = (PartialCacheConfig(num_substeps=2), PrefixCacheConfig(), DualCacheConfig(), DelayedCacheConfig())

    def run(scheduler_type: type[MaskedDiffusionScheduler], **call: Any) -> torch.Tensor:
        pipe.scheduler = scheduler_type(mask_token_id=mask, codebook_size=mask)
        made = pipe(input_ids=prompt, max_new_tokens=13, num_inference_steps=6, **call).sequences[0]
        assert made[:3].tolist() == [2, 3, 4]
        assert len(made) == 16
        assert not (made == mask).any()
        return made

    for scheduler_type in SCHEDULERS:
        run(scheduler_type, generator=torch.Generator().manual_seed(0))
    for plan in plans:
        pipe.enable_cache(plan)
        run(MomentScheduler, block_length=8)
        pipe.disable_cache()
    pipe.enable_cache(GreedyCacheConfig())
    run(UniformScheduler)


# --- what is refused --------------------------------------------------------------------------------------------------


def without(name: str) -> dict[str, Any]:
    config = sdtt_config()
    del config["model"][name]
    return config


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no length": (without("length"), r"must name its sizes under `model`, \['length'\] are not there"),
    "another backbone": (sdtt_config(type="ddit"), r"a model of SDTT must be an MDLM, .* got \{'type': 'ddit'\}"),
    "tied": (sdtt_config(tie_word_embeddings=True), r"got \{'tie_word_embeddings': True\} in config.json"),
    "a width of words": (sdtt_config(hidden_size="32"), r"`hidden_dim` in config\.json must be a number from 1 to"),
    "a huge width": (sdtt_config(hidden_size=10**9), r"`hidden_dim` in config\.json must be a number from 1 to 256"),
    "other heads": (sdtt_config(n_heads=2), r"do not fit its config\.json.*rotary_emb\.inv_freq"),
    "more blocks": (sdtt_config(n_blocks=3), r"do not fit its config\.json.*Missing.*blocks\.2"),
    "an odd length": (sdtt_config(length="${seq_len}"), r"must be well-formed, got TypeError"),
    "unknown time": ({**sdtt_config(), "time_conditioning": "maybe"}, r"`time_conditioning` .* true or false, got 'ma"),
}


@pytest.mark.parametrize("name", BAD)
def test_settings_that_do_not_fit(name: str, source: Path, words: Path, tmp_path: Path) -> None:
    config, message = BAD[name]
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        convert(source, tmp_path / "out", words)
    assert not (tmp_path / "out").exists()


def change_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Any]:
    def of_folder(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return of_folder


WHOLE = "must hold whole safetensors, it does not"
SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "must hold `model.safetensors`"),
    "cut short": (
        lambda folder: os.truncate(folder / "model.safetensors", 5000),
        WHOLE,
    ),
    "a weight lacks": (change_weights(lambda w: w.pop("backbone.blocks.1.attn_qkv.weight")), "Missing.*1.attn_qkv"),
    "a weight more": (change_weights(lambda w: w.update({"teacher.x": torch.ones(2)})), "Unexpected.*teacher.x"),
    "two prefixes": (
        change_weights(lambda w: w.update({"backbone.backbone.sigma_map.x": torch.ones(2)})),
        r"'vocab_embed\.embedding', it is not there",
    ),
    "a pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "must hold `model.safetensors`",
    ),
    "no number": (
        change_weights(lambda w: w["backbone.output_layer.linear.weight"].fill_(float("nan"))),
        "the weights must be finite numbers, got NaN in 'transformer.output_layer.linear.weight'",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_weights_that_do_not_fit(name: str, source: Path, words: Path, tmp_path: Path) -> None:
    spoil, message = SPOILT[name]
    spoil(source)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        convert(source, tmp_path / "out", words)
    assert not (tmp_path / "out").exists()


def test_options_and_tokenizers_that_do_not_fit(
    source: Path, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", str(source), str(tmp_path / "out")]
    larger = make_tokenizer(tmp_path / "larger", 12)
    for options, message in (
        (["--tokenizer", str(words), "--num_attention_heads", "4"], "must be left out for SDTT"),
        (["--tokenizer", str(words), "--block_size", "4"], "must be left out for SDTT"),
        (["--tokenizer", str(larger)], "must be the mask's alone, got a tokenizer whose 'w11'"),
    ):
        assert main([*command, *options]) == 1
        error = capsys.readouterr().err
        assert re.search(message, error), error
        assert error.count("\n") == 1
    shutil.rmtree(words)
    assert not (tmp_path / "out").exists()


def test_a_shape_that_promises_more_than_is_stored(source: Path, words: Path, tmp_path: Path) -> None:
    """A header may state any shape; the file must hold as much."""
    path = source / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["backbone.vocab_embed.embedding"]["shape"] = [10**9, 32]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(ValueError, match=WHOLE):
        convert(source, tmp_path / "out", words)
