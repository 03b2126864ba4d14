"""`hf-maskdiff convert`: whole folders that open anywhere, or one clear error and nothing."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fresh
import pytest
import torch
from golden_data import Model, image_tokenizer, sampled_model
from hub_server import LoopbackHub, Repository
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from test_checkpoints import pack
from test_mdlm import make_checkpoint
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from hf_maskdiff import (
    AncestralScheduler,
    MaskedDiffusionTextToImagePipeline,
    MaskGITPipeline,
    MaskGITScheduler,
    MaskGITTransformer2DModel,
    MaskGITVQModel,
    MomentScheduler,
)
from hf_maskdiff.cli import main
from hf_maskdiff.conversion.convert import convert
from hf_maskdiff.conversion.whole_folders import whole_folder
from hf_maskdiff.models import HaltonMaskGITTransformer2DModel

IMAGES = ["halton_maskgit", "mage", "maskgit_jax", "maskgit_pytorch_v1"]
LICENCES = {"maskgit_jax": "apache-2.0", "amused": "openrail++"}
Converted = Callable[[str], Path]


# --- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_a_folder_is_a_repository(name: str, converted: Converted) -> None:
    folder = converted(name)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    weights = {f"{part}/diffusion_pytorch_model.safetensors" for part in ("transformer", "vqvae")}
    configs = {"scheduler/scheduler_config.json", "transformer/config.json", "vqvae/config.json"}
    assert files == weights | configs | {"README.md", "config.json", "model_index.json", "pipeline.py"}
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask()
    assert not [path for path in folder.parent.iterdir() if path != folder]

    card = ModelCard.load(folder / "README.md")
    assert card.data.license == LICENCES.get(name, "mit")
    assert f"# {name}\n" in card.text
    assert "whether its weights are too is for their publisher to say" in card.text
    assert "## Sampling" in card.text
    snippet = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1]
    names: dict[str, Any] = {}
    exec(snippet.replace('.save("image.png")', ""), names)
    pipe = names["pipe"]
    assert pipe.scheduler.num_inference_steps == pipe.config.call_defaults["num_inference_steps"]


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# Steps, guidance scale and whether images go in and out as -1 to 1, as published.
PUBLISHED = {
    "halton_maskgit": (32, 3.0, True),
    "mage": (20, 1.0, False),
    "maskgit_jax": (16, 1.0, False),
    "maskgit_pytorch_v1": (8, (1.0, 4.0), True),
}
PUBLISHED_FOR_MORE_TOKENS = {"maskgit_pytorch_v1": (15, (1.0, 3.8), True)}  # than 16 x 16


@pytest.mark.parametrize("name", IMAGES)
def test_a_pipeline_samples_as_published_unless_told_otherwise(name: str, converted: Converted) -> None:
    pipe = MaskGITPipeline.from_pretrained(converted(name))
    pipe.set_progress_bar_config(disable=True)
    many = pipe.transformer.config.sample_size > 16 and name in PUBLISHED_FOR_MORE_TOKENS
    steps, scale, normalised = (PUBLISHED_FOR_MORE_TOKENS if many else PUBLISHED)[name]
    num_classes = pipe.transformer.config.num_classes
    classes = [num_classes - 1, 0] if num_classes else None
    image = pipe(classes, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert pipe.scheduler.num_inference_steps == steps
    assert pipe.config.do_normalize is normalised
    assert pipe.guidance_scale == scale or list(pipe.guidance_scale) == list(scale)
    assert image.min() >= 0
    assert image.max() <= 1
    again = pipe(
        classes,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        num_inference_steps=steps,
        guidance_scale=scale,
    ).images
    assert torch.equal(image, again)
    pipe.scheduler = MomentScheduler.from_config(pipe.scheduler.config, masking_schedule="cosine")
    assert pipe(classes, num_inference_steps=3, output_type="pt").images.shape[-2:] == image.shape[-2:]


def test_editing_goes_through_the_tokenizer_s_own_range(golden_folder: Path, converted: Converted) -> None:
    pipe = MaskGITPipeline.from_pretrained(converted("maskgit_pytorch_v1"))
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, *image_tokenizer(golden_folder / "maskgit_pytorch_v1").inputs["image"].shape[1:])
    codes = pipe.encode_image(image)
    latents = pipe.vqvae.encode(image * 2 - 1).latents
    assert torch.equal(codes, pipe.vqvae.quantize(latents)[2][2].view(codes.shape))
    shape = (*codes.shape, pipe.vqvae.quantize.vq_embed_dim)
    expected = pipe.vqvae.decode(codes, force_not_quantize=True, shape=shape).sample
    torch.testing.assert_close(pipe.decode_latents(codes), (expected / 2 + 0.5).clip(0, 1))


def test_a_model_that_knows_classes_only_says_so(converted: Converted) -> None:
    pipe = MaskGITPipeline.from_pretrained(converted("maskgit_jax"))
    pipe.transformer.register_forward_pre_hook(lambda *_: pytest.fail("the model was called"))
    last = pipe.transformer.config.num_classes - 1
    with pytest.raises(ValueError, match=rf"`class_labels` must be given, got None: .* Pass ids in 0 \.\. {last}"):
        pipe()
    with pytest.raises(ValueError, match=r"`guidance_scale` must not exceed 1, got \(1, 4\): .* Leave it out"):
        pipe(1, guidance_scale=(1, 4))


def test_defaults_of_a_call_are_two(make_pipeline: Callable[..., MaskGITPipeline]) -> None:
    parts = make_pipeline().components
    pipe = MaskGITPipeline(**parts, call_defaults={"num_inference_steps": 3})
    pipe.set_progress_bar_config(disable=True)
    pipe(1)
    assert (pipe.num_timesteps, pipe.guidance_scale) == (3, 1.0)
    with pytest.raises(ValueError, match=r"`call_defaults` must name .* only, got \['strength'\]"):
        MaskGITPipeline(**parts, call_defaults={"strength": 0.5})


# --- in another process, without a network ----------------------------------------------------------------------------

OFFLINE = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
folder, inputs, outputs = sys.argv[1:]
given = load_file(inputs)
"""
IMAGE = """
from hf_maskdiff import MaskGITPipeline, MomentScheduler, PartialCacheConfig

pipe = MaskGITPipeline.from_pretrained(folder)
pipe.set_progress_bar_config(disable=True)
pipe.transformer.to(torch.float32)
with torch.no_grad():
    model = pipe.transformer
    results = {"logits": model(given["codes"], given["labels"]).sample}
    model.enable_cache(PartialCacheConfig())
    with model.cache_context("cond"):
        results["full"] = model(given["codes"], given["labels"]).sample
        places = given["places"]
        codes = given["codes"].flatten(1).gather(1, places)
        results["partial"] = model(codes, given["labels"], positions=places).sample
    model.disable_cache()
    if "image_codes" in given:
        codes = given["image_codes"]
        shape = (*codes.shape, pipe.vqvae.quantize.vq_embed_dim)
        results["decoded"] = pipe.vqvae.decode(codes, force_not_quantize=True, shape=shape).sample
    pipe.scheduler = MomentScheduler.from_config(pipe.scheduler.config, masking_schedule="cosine")
    rows = given["rows"]
    classes = given["labels"][rows].tolist() if model.config.num_classes else None
    call = {"num_inference_steps": int(given["steps"]), "output_type": "latent", "guidance_scale": 1.0}
    call |= {"class_labels": classes, "num_images_per_prompt": 1 if classes else len(rows)}
    call["latents"] = given["codes"][rows].view(len(rows), model.config.sample_size, -1)
    seen = []
    model.register_forward_hook(lambda module, arguments, output: seen.append(output))
    for groups in (0, 1, 2):
        seen.clear()
        if groups:
            model.enable_cache(PartialCacheConfig(num_substeps=groups))
        drawn = pipe(**call, generator=torch.Generator().manual_seed(0)).images
        if groups:
            model.disable_cache()
        first = seen[0] if isinstance(seen[0], tuple) else (seen[0].sample,)
        results |= {f"{groups} groups, first": first[0], f"{groups} groups": drawn}
        results[f"{groups} groups, passes"] = torch.tensor(len(seen))
save_file({key: value.contiguous() for key, value in results.items()}, outputs)
"""


def golden_of(name: str, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Inputs and outputs of a golden folder in the words of our models."""
    if name in ("maskgit_jax", "mage"):
        model = Model(folder / name)
        inputs, expected, config = model.inputs, model.expected, model.config
    if name == "maskgit_jax":
        config, ids = config["transformer"], inputs["input_ids"].long()
        size, mask = config["codebook_size"], config["vocab_size"] - 1
        given = {"codes": ids[:, 1:].where(ids[:, 1:] >= 0, mask), "labels": ids[:, 0] - size}
        given["image_codes"] = inputs["codes"].long()
        return given, {"logits": expected["logits"][:, 1:, :size], "decoded": expected["decoded"].permute(0, 3, 1, 2)}
    if name == "mage":
        ids = inputs["token_indices"]
        given = {"codes": ids[:, 1:], "labels": torch.zeros(len(ids), dtype=torch.int64)}
        is_code = expected["rows"] > 0  # not the class slot
        given["image_codes"] = inputs["codes"]
        logits = expected["logits_rows"][:, is_code, : config["codebook_size"]]
        return given, {"logits": logits, "rows": expected["rows"][is_code] - 1, "decoded": expected["decoded"]}
    model, vqvae = sampled_model(folder / name), image_tokenizer(folder / name)
    inputs = model.inputs
    given = {"codes": inputs["codes"], "labels": inputs["labels"].where(~inputs["drop_label"], model.config["nclass"])}
    given["image_codes"] = vqvae.inputs["codes"]
    return given, {"logits": model.expected["logits"], "decoded": vqvae.expected["decoded"]}


def run_alone(program: str, folder: Path, given: dict[str, torch.Tensor], tmp_path: Path) -> dict[str, torch.Tensor]:
    """What a program makes of a folder in a new process, to which every connection is refused."""
    save_file({key: tensor.contiguous() for key, tensor in given.items()}, tmp_path / "in.safetensors")
    arguments = (folder, tmp_path / "in.safetensors", tmp_path / "made")
    done = fresh.run(OFFLINE + program, *arguments, environment=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    return load_file(tmp_path / "made")


def run_image_model(folder: Path, given: dict[str, torch.Tensor], tmp_path: Path) -> dict[str, torch.Tensor]:
    size = given["codes"].flatten(1).shape[1]
    config = json.loads((folder / "transformer" / "config.json").read_text())
    mask = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["mask_token_id"]
    # What a run can begin with: codes with masks among them, and a class.
    masked = given["codes"].flatten(1) == mask
    rows = (masked.any(-1) & (given["labels"] < max(config["num_classes"], 1))).nonzero()[:, 0]
    assert len(rows)
    places, steps = torch.stack([torch.randperm(size)[:5] for _ in given["codes"]]), 4
    given = {**given, "places": places, "rows": rows, "steps": torch.tensor(steps)}
    results = run_alone(IMAGE, folder, given, tmp_path)
    assert torch.equal(results["full"], results["logits"])
    # No token changed since the full pass: a partial one repeats it.
    index = given["places"][..., None].expand_as(results["partial"])
    torch.testing.assert_close(results["partial"], results["logits"].gather(1, index), atol=2e-5, rtol=2e-5)

    known = given["codes"].flatten(1)[rows]
    for groups in (0, 1, 2):
        first, drawn = results[f"{groups} groups, first"], results[f"{groups} groups"].flatten(1)
        torch.testing.assert_close(first, results["logits"][rows], atol=2e-5, rtol=2e-5)
        assert torch.equal(drawn[known != mask], known[known != mask])
        assert not (drawn == mask).any()
    assert torch.equal(results["1 groups"], results["0 groups"])
    assert results["1 groups, passes"] == results["0 groups, passes"]
    # Of more masks than steps some come in pairs, and a pair in two groups.
    in_pairs = masked[rows].sum(-1).max() > steps
    assert results["2 groups, passes"] >= results["1 groups, passes"] + in_pairs
    return results


@pytest.mark.parametrize("name", IMAGES)
def test_a_fresh_process_gives_the_golden_outputs(
    name: str, golden_folder: Path, converted: Converted, tmp_path: Path
) -> None:
    given, expected = golden_of(name, golden_folder)
    results = run_image_model(converted(name), given, tmp_path)
    logits = results["logits"][:, expected["rows"]] if "rows" in expected else results["logits"]
    torch.testing.assert_close(logits, expected["logits"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(results["decoded"], expected["decoded"], atol=1e-4, rtol=1e-4)


def test_a_fresh_process_opens_the_committed_folder(tmp_path: Path) -> None:
    folder = Path(__file__).parents[1] / "golden" / "maskgit_jax"
    golden = load_file(folder / "golden.safetensors")
    results = run_image_model(folder, {"codes": golden["codes"], "labels": golden["labels"]}, tmp_path)
    torch.testing.assert_close(results["logits"], golden["logits"], atol=1e-4, rtol=1e-4)


AMUSED = """
from diffusers import AmusedPipeline

pipe = AmusedPipeline.from_pretrained(folder)
with torch.no_grad():
    text = pipe.text_encoder(given["prompt_ids"], return_dict=True, output_hidden_states=True)
    results = {"text_embeds": text.text_embeds, "hidden_m2": text.hidden_states[-2]}
    results["uvit_logits"] = pipe.transformer(
        given["uvit_input_ids"],
        micro_conds=given["uvit_micro_conds"],
        pooled_text_emb=text.text_embeds,
        encoder_hidden_states=text.hidden_states[-2],
    )
    codes = given["vq_codes"]
    shape = (*codes.shape, pipe.vqvae.config.latent_channels)
    results["vq_decoded"] = pipe.vqvae.decode(codes, force_not_quantize=True, shape=shape).sample
    results["vq_encoded"] = pipe.vqvae.encode(given["vq_image"]).latents
    results["vq_encoded_codes"] = pipe.vqvae.quantize(results["vq_encoded"])[2][2].view(codes.shape)
save_file({key: value.contiguous() for key, value in results.items()}, outputs)
"""


def test_the_program_says_what_opens_a_copy_of_amused(
    golden_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(golden_folder / "amused" / "pipeline"), str(tmp_path / "out")]) == 0
    assert "open it with `MaskedDiffusionTextToImagePipeline.from_pretrained(" in capsys.readouterr().out


def test_amused_is_passed_through(golden_folder: Path, converted: Converted, tmp_path: Path) -> None:
    """Its weights stay files of diffusers' own classes, which have no partial cache."""
    source, folder = golden_folder / "amused" / "pipeline", converted("amused")
    copied = {path.relative_to(source): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    ours = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert ours.keys() - copied.keys() == {Path("README.md")}
    assert all(ours[path] == data for path, data in copied.items())
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "openrail++"
    assert "AmusedPipeline.from_pretrained" in card.text
    assert "MaskedDiffusionTextToImagePipeline.from_pretrained" in card.text
    opened = MaskedDiffusionTextToImagePipeline.from_pretrained(folder)
    assert (type(opened.scheduler), opened.scheduler.config.choice_temperature) == (MaskGITScheduler, [2.0, 0.0])

    expected = Model(golden_folder / "amused").expected
    results = run_alone(AMUSED, folder, Model(golden_folder / "amused").inputs, tmp_path)
    assert torch.equal(results.pop("vq_encoded_codes"), expected["vq_encoded_codes"])
    results["vq_decoded"], wanted = results["vq_decoded"].clip(0, 1), expected["vq_decoded"].clip(0, 1)
    for name, result in results.items():
        torch.testing.assert_close(result, {**expected, "vq_decoded": wanted}[name], atol=1e-4, rtol=1e-4)


def make_tokenizer(folder: Path, size: int) -> Path:
    words = {"<|endoftext|>": 0, **{f"w{i}": i for i in range(1, size)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w1"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    return folder


MDLM = """
from hf_maskdiff import MDLMPipeline, MomentScheduler, PartialCacheConfig

pipe, ids = MDLMPipeline.from_pretrained(folder), given["input_ids"]
pipe.set_progress_bar_config(disable=True)
with torch.no_grad():
    results = {"logits": pipe.transformer(ids).logits}
    pipe.transformer.enable_cache(PartialCacheConfig())
    with pipe.transformer.cache_context("cond"):
        results["full"] = pipe.transformer(ids).logits
        results["partial"] = pipe.transformer(ids, positions=torch.arange(ids.shape[1]).expand_as(ids)).logits
    pipe.transformer.disable_cache()
pipe.scheduler = MomentScheduler.from_config(pipe.scheduler.config)
for groups in (0, 1, 2):
    if groups:
        pipe.enable_cache(PartialCacheConfig(num_substeps=groups))
    run = pipe(input_ids=ids, num_inference_steps=4, generator=torch.Generator().manual_seed(0))
    results[f"{groups} groups"] = torch.stack(run.sequences)
    if groups:
        pipe.disable_cache()
save_file({key: value.contiguous() for key, value in results.items()}, outputs)
"""


@pytest.mark.parametrize("is_file", [False, True])
def test_both_layouts_of_mdlm(is_file: bool, golden_folder: Path, tmp_path: Path) -> None:
    golden = Model(golden_folder / "mdlm")
    mask = golden.config["vocab_size"] - 1
    assert mask == json.loads((golden.folder / "manifest.json").read_text())["mask_token_id"]
    tokenizer = make_tokenizer(tmp_path / "tokenizer", mask)
    convert(golden.checkpoint if is_file else golden.folder, tmp_path / "out", tokenizer=tokenizer)
    scheduler = AncestralScheduler.from_pretrained(tmp_path / "out" / "scheduler")
    assert scheduler.config.mask_token_id == mask
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(words in card for words in ("kuleshov-group/mdlm", "num_inference_steps=1000", f"`{tokenizer}`"))

    ids = golden.inputs["input_ids"]
    results = run_alone(MDLM, tmp_path / "out", {"input_ids": ids}, tmp_path)
    expected = golden.expected["logits_ema" if is_file else "logits"]
    for name in ("logits", "full", "partial"):
        torch.testing.assert_close(results[name], expected, atol=2e-5, rtol=2e-5)
    assert torch.equal(results["1 groups"], results["0 groups"])
    for groups in (0, 2):
        assert torch.equal(results[f"{groups} groups"][ids != mask], ids[ids != mask])
        assert not (results[f"{groups} groups"] == mask).any()


# --- small checkpoints of our own, in upstream's layout ---------------------------------------------------------------


def flax_trees() -> tuple[dict, dict]:
    """A MaskGIT of one layer and its tokenizer, random, as flax nests and shapes them."""
    torch.manual_seed(0)

    def norm(width: int) -> dict:
        return {"scale": torch.randn(width), "bias": torch.randn(width)}

    def dense(*shape: int, bias: tuple[int, ...] = ()) -> dict:
        return {"kernel": torch.randn(shape), "bias": torch.randn(bias or shape[-1:])}

    heads = {name: dense(8, 2, 4, bias=(2, 4)) for name in ("query", "key", "value")}
    attention = {"self_attention": {**heads, "out": dense(2, 4, 8)}, "attention_output_ln": norm(8)}
    mlp = {"intermediate_output": dense(8, 16), "layer_output": dense(16, 8), "layer_output_ln": norm(8)}
    embed = {"word_embeddings": {"embedding": torch.randn(11, 8)}, "embeddings_ln": norm(8)}
    embed["position_embeddings"] = {"embedding": torch.randn(5, 8)}
    head = {"mlm_dense": dense(8, 8), "mlm_ln": norm(8), "mlm_bias": {"bias": torch.randn(11)}}
    layer = {"Attention_0": attention, "Mlp_0": mlp}

    def block() -> dict:
        convolutions = {f"Conv_{i}": {"kernel": torch.randn(3, 3, 32, 32)} for i in range(2)}
        return {**convolutions, "GroupNorm_0": norm(32), "GroupNorm_1": norm(32)}

    def conv(size: int, before: int, after: int) -> dict:
        return {"kernel": torch.randn(size, size, before, after), "bias": torch.randn(after)}

    blocks = {"ResBlock_0": block(), "ResBlock_1": block(), "GroupNorm_0": norm(32)}
    encoder = {"Conv_0": {"kernel": torch.randn(3, 3, 3, 32)}, "Conv_1": conv(1, 32, 4), **blocks}
    decoder = {"Conv_0": conv(3, 4, 32), "Conv_1": conv(3, 32, 3), **blocks}
    tokenizer = {"encoder": encoder, "decoder": decoder, "quantizer": {"codebook": torch.randn(8, 4)}}
    transformer = {"Embed_0": embed, "TransformerLayer_0": layer, "MlmLayer_0": head}
    return {"params": transformer}, {"params": tokenizer}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with both, and room for the outcome beside it."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name, tree in zip(("maskgit", "tokenizer"), flax_trees(), strict=True):
        (folder / name).write_bytes(pack(tree))
    return folder


def run(*arguments: object) -> int:
    return main(["convert", *map(str, arguments)])


def test_the_program_writes_a_folder(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(source, tmp_path / "out" / "deep") == 0
    assert "open it with `MaskGITPipeline.from_pretrained(" in capsys.readouterr().out
    pipe = MaskGITPipeline.from_pretrained(tmp_path / "out" / "deep")
    assert (type(pipe.transformer), type(pipe.vqvae)) == (MaskGITTransformer2DModel, MaskGITVQModel)
    assert (pipe.transformer.config.num_classes, pipe.transformer.config.num_attention_heads) == (2, 2)
    pipe.set_progress_bar_config(disable=True)
    assert pipe([0, 1], output_type="pt").images.shape == (2, 3, 2, 2)

    (tmp_path / "empty").mkdir()
    assert run(source / "maskgit", tmp_path / "empty", "--tokenizer", source / "tokenizer") == 0
    assert MaskGITPipeline.from_pretrained(tmp_path / "empty").config.call_defaults == pipe.config.call_defaults


def test_from_the_hub(source: Path, tmp_path: Path, hub: LoopbackHub) -> None:
    repository = Repository()
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    repository.commit({**files, "README.md": b"---\nlicense: cc-by-4.0\n---\n", "LICENSE": b"Do."}, "weights")
    hub.repositories["them/maskgit"] = repository
    for arguments in (["them/maskgit"], ["them/maskgit/maskgit", "--tokenizer", "them/maskgit/tokenizer"]):
        output = tmp_path / f"out-{len(arguments)}"
        assert run(*arguments, output, "--revision", "main") == 0
        card = ModelCard.load(output / "README.md")
        assert (card.data.license, card.data.base_model) == ("cc-by-4.0", "them/maskgit")
        assert card.text.count(f"at revision `{repository.refs['main']}`") == len(arguments[:2])
        assert MaskGITPipeline.from_pretrained(output).transformer.config.codebook_size == 8
    (source / "LICENSE").write_text("Do.")
    assert convert(source, tmp_path / "local").is_dir()
    repository.commit({**files, "other": files["maskgit"]}, "more")
    with pytest.raises(ValueError, match=r"`source` must be one checkpoint, 'them/maskgit' has .*'other'"):
        convert("them/maskgit", tmp_path / "new")


# --- what cannot be ---------------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def expect_error(capsys: pytest.CaptureFixture[str], tmp_path: Path, message: str, *arguments: object) -> None:
    """One line, no trace, exit status 1, and nothing new on the disk."""
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.startswith("hf-maskdiff convert: ")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("suffix", ["pth", "pt", "ckpt", "msgpack"])
def test_malicious_files(suffix: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    payload, evil = Payload(f"touch {tmp_path / 'pwned'}"), tmp_path / f"evil.{suffix}"
    if suffix == "msgpack":
        evil.write_bytes(pack({"params": {"Embed_0": {}}})[:-3] + b"\xc7\x01\x05\x00")
        message = "cannot be read as a flax checkpoint"
    else:
        weights = {"first_layer.0.weight": payload, "cls_emb.weight": payload}
        key = {"pth": "model_state_dict", "pt": "model", "ckpt": "state_dict"}[suffix]
        torch.save({key: {**weights, "backbone.vocab_embed.embedding": payload}, "x": payload}, evil)
        message = "must hold tensors|must be a checkpoint of|must be tensors|must hold one transformer"
    expect_error(capsys, tmp_path, message, evil, tmp_path / "out", "--tokenizer", source / "tokenizer")
    assert not (tmp_path / "pwned").exists()
    torch.save({"model": {}}, tmp_path / "harmless.pth")


@pytest.mark.parametrize("key", ["model_state_dict", "model", "state_dict", "params", "ema"])
def test_what_stands_in_the_place_of_weights(
    key: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    payload, evil = Payload(f"touch {tmp_path / 'pwned'}"), tmp_path / "evil.pth"
    for value in (payload, torch.ones(3), [payload], 5, "cls_emb.weight", None, {payload: 1}, {3: payload}):
        torch.save({key: value}, evil)
        expect_error(capsys, tmp_path, "must be a checkpoint of valeoai", evil, tmp_path / "out")
    torch.load(evil, weights_only=False)  # proof that the file is a weapon
    assert (tmp_path / "pwned").exists()


def test_files_that_are_cut_short_or_something_else(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (source / "maskgit").read_bytes()
    (source / "maskgit").write_bytes(whole[: len(whole) // 2])
    expect_error(capsys, tmp_path, "cannot be read as a flax checkpoint: it ends", source, tmp_path / "out")
    (source / "maskgit").write_text("hello")
    expect_error(capsys, tmp_path, "must be a checkpoint of `torch.save`", source, tmp_path / "out")
    (source / "maskgit").write_bytes(pack({"params": {"other": torch.ones(1)}}))
    expect_error(capsys, tmp_path, r"must hold one transformer, 'source' holds none", source, tmp_path / "out")
    (source / "tokenizer").unlink()
    expect_error(capsys, tmp_path, r"must be a checkpoint of valeoai/.*got 'source' with", source, tmp_path / "out")
    (source / "maskgit").unlink()
    expect_error(capsys, tmp_path, "must hold a checkpoint .* holds none", source, tmp_path / "out")
    expect_error(capsys, tmp_path, "`source` must be a file, a folder, a repo", "no where!", tmp_path / "out")
    message = r"`revision` must be left out for a path on this machine, got 'main' for '.*source'"
    expect_error(capsys, tmp_path, message, source, tmp_path / "out", "--revision", "main")
    (source / "a.safetensors").write_bytes(b"")
    expect_error(capsys, tmp_path, r"must be the folder of 'a\.safeten", source / "a.safetensors", tmp_path / "out")


def test_tokenizers_that_are_not_there(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expect_error(
        capsys,
        tmp_path,
        r"`tokenizer` must be a file, a folder, a repository on the Hub .*, got '/no/where'",
        *(source / "maskgit", tmp_path / "out", "--tokenizer", "/no/where"),
    )
    torch.save(make_checkpoint(), tmp_path / "mdlm.ckpt")
    for tokenizer, message in (
        ("/no/where", r"got '/no/where'\. Pass for"),
        (source, r"cannot be opened\. Pass the f"),
    ):
        message = rf"`--tokenizer` must be a folder or the name of a tokenizer of transformers, .*{message}"
        expect_error(capsys, tmp_path, message, tmp_path / "mdlm.ckpt", tmp_path / "out", "--tokenizer", tokenizer)


def test_a_hub_that_does_not_answer(
    source: Path, tmp_path: Path, hub: LoopbackHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = (
        r"`source` must be a path on this machine, or a repository that the Hub gives out, got 'them/none'\. Check"
    )
    expect_error(capsys, tmp_path, message, "them/none", tmp_path / "out")

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Name or service not known")  # of no class that the Hub's client promises

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    expect_error(capsys, tmp_path, message + r".*\(Name or service not known\)", "them/none", tmp_path / "out")


def test_missing_extra_and_misshapen_weights(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def spoil(change: Callable[[dict], object]) -> None:
        tree, _ = flax_trees()
        change(tree["params"])
        (source / "maskgit").write_bytes(pack(tree))

    spoil(lambda params: params["MlmLayer_0"].pop("mlm_ln"))
    expect_error(capsys, tmp_path, r"(?s)they are not\. .*Missing key.*head\.2\.weight", source, tmp_path / "out")
    spoil(lambda params: params["Embed_0"].pop("position_embeddings"))
    expect_error(capsys, tmp_path, "'position_embedding.weight' is missing", source, tmp_path / "out")
    spoil(lambda params: params.update(Extra={"kernel": torch.ones(2)}))
    expect_error(capsys, tmp_path, r"no others, got 1 unknown: 'Extra/kernel'", source, tmp_path / "out")
    spoil(lambda params: params["MlmLayer_0"]["mlm_ln"].update(scale=torch.ones(3)))
    expect_error(capsys, tmp_path, r"(?s)they are not\. .*size mismatch for head\.2", source, tmp_path / "out")
    spoil(lambda params: params["Embed_0"]["position_embeddings"].update(embedding=torch.tensor(1.0)))
    expect_error(capsys, tmp_path, "must hold weights shaped as published, .* does not", source, tmp_path / "out")
    spoil(lambda params: params.update(Extra=[1]))
    expect_error(capsys, tmp_path, "must hold tensors, 'Extra' is not one", source, tmp_path / "out")
    spoil(lambda params: params["Embed_0"]["position_embeddings"].update(embedding=torch.ones(6, 8)))
    expect_error(capsys, tmp_path, "positions must be a square, got 5", source, tmp_path / "out")
    spoil(lambda params: None)
    expect_error(
        capsys, tmp_path, "must be one tokenizer for 'maskgit', got none", source / "maskgit", tmp_path / "out"
    )


def test_the_tokenizer_must_be_the_model_s(tmp_path: Path, golden_folder: Path) -> None:
    halton, v1 = golden_folder / "halton_maskgit", golden_folder / "maskgit_pytorch_v1"
    model, vq, out, other = sampled_model(halton), image_tokenizer(halton), tmp_path / "out", tmp_path / "other.pt"
    arguments = {"num_attention_heads": [model.config["heads"]]}
    source = model.checkpoint
    message = rf"`--tokenizer`: there must be one tokenizer for '{re.escape(source.name)}', got none\. Pass .*LlamaGen"
    with pytest.raises(ValueError, match=message):
        convert(source, out, tokenizer=image_tokenizer(v1).checkpoint, **arguments)
    weights = torch.load(vq.checkpoint, weights_only=True)["model"]
    for name in ("quantize.embedding.weight", "quantize.codebook_used"):
        weights[name] = weights[name][:-1].clone()
    torch.save({"model": weights}, other)
    codes = model.config["codebook_size"]
    with pytest.raises(ValueError, match=f"codes must be the tokenizer's, got {codes} and {codes - 1}"):
        convert(source, out, tokenizer=other, **arguments)
    width = model.config["hidden_dim"]
    with pytest.raises(ValueError, match=rf"`--num_attention_heads`: must be given for a model of width {width}"):
        convert(source, out, tokenizer=vq.checkpoint)
    mage = Model(golden_folder / "mage")
    heads, width = [mage.config["num_heads"]], mage.config["decoder_embed_dim"]
    message = rf"`--num_attention_heads`: must be given for a model of width {width}, .* Pass 2, encoder's"
    with pytest.raises(ValueError, match=message):
        convert(mage.checkpoint, out, num_attention_heads=heads)
    assert [path.name for path in tmp_path.iterdir()] == ["other.pt"]


def test_pickles_of_amused_are_refused(golden_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(golden_folder / "amused" / "pipeline", folder, copy_function=shutil.copyfile)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    (folder / "transformer").chmod(0o755)
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"'transformer' must have its weights in safetensors, got '.*\.bin' alone"):
        convert(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pipeline"]


def test_code_of_amused_is_neither_run_nor_copied(golden_folder: Path, tmp_path: Path) -> None:
    folder, pwned = tmp_path / "pipeline", tmp_path / "pwned"
    shutil.copytree(golden_folder / "amused" / "pipeline", folder, copy_function=shutil.copyfile)
    for path in (folder, folder / "transformer"):
        path.chmod(0o755)
        (path / "evil.py").write_text(f"open({str(pwned)!r}, 'w')\nclass Evil: pass\n")
    assert not list(convert(folder, tmp_path / "out").rglob("*.py"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"transformer": ["evil", "Evil"]}))
    with pytest.raises(Exception, match="evil"):
        convert(folder, tmp_path / "new")
    assert not pwned.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pipeline"]


# --- whole or not at all ----------------------------------------------------------------------------------------------


def test_an_output_that_is_there_is_left_alone(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    expect_error(capsys, tmp_path, "`output` must be a new or empty folder", source, tmp_path / "out")
    expect_error(capsys, tmp_path, "`output` must be a new or empty folder", source, tmp_path / "out" / "mine")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
def test_what_interrupts_the_writing_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    def write(output: Path) -> None:
        with whole_folder(output) as folder:
            assert folder.parent.parent == output.parent
            (folder / "part").write_text("some")
            assert not output.exists()
            raise error

    with pytest.raises(type(error)):
        write(tmp_path / "deep" / "out")
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from hf_maskdiff import MaskGITTransformer2DModel
from hf_maskdiff.cli import main
from hf_maskdiff.conversion import whole_folders

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

transformer, flush = (MaskGITTransformer2DModel, "save_pretrained"), (whole_folders, "_flush")
setattr(*{"between two parts": transformer, "before it is named": flush}[sys.argv[1]], die)
main(sys.argv[2:])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system cannot kill")
@pytest.mark.parametrize("when", ["between two parts", "before it is named"])
def test_what_is_killed_leaves_no_output(when: str, source: Path, tmp_path: Path) -> None:
    """Nothing can clean up after that: a hidden folder stays, and the next conversion takes it away."""
    done = fresh.run(KILLED, when, "convert", source, tmp_path / "out")
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = (path for path in tmp_path.iterdir() if path != source)
    assert left.name == ".out.partial"
    assert [path for path in left.rglob("*") if path.is_file() and path.name != "lock"]
    assert run(source, tmp_path / "out") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    assert MaskGITPipeline.from_pretrained(tmp_path / "out").transformer.config.codebook_size == 8


def test_a_full_disk(source: Path, tmp_path: Path) -> None:
    """Files may not grow beyond 20 kB: the tokenizer's weights do not fit."""
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from hf_maskdiff.cli import main; import diffusers.pipelines.pipeline_utils;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.exit(main(sys.argv[1:]))"
    )
    done = fresh.run(program, "convert", source, tmp_path / "out")
    assert done.returncode == 1, done.stderr
    assert "hf-maskdiff convert: " in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20_000


PEAK = """
import sys, torch, transformers
import diffusers.pipelines.pipeline_utils
from hf_maskdiff.conversion.convert import convert

def memory(entry):
    # Of this program alone: what `getrusage` says begins with the peak of the process that started it.
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith(entry)).split()[1]) * 1024

before = memory("VmRSS")
convert(sys.argv[1], sys.argv[2], sys.argv[3], num_attention_heads=[8])
print(memory("VmHWM") - before)
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell a program's peak memory")
def test_memory_stays_near_the_model_s_size(tmp_path: Path, golden_folder: Path) -> None:
    """A checkpoint with an optimizer's state, twice the model: only the model's share is ever in memory."""
    from hf_maskdiff.conversion.halton_maskgit import _BLOCK_KEYS, _MODEL_KEYS

    vq = image_tokenizer(golden_folder / "halton_maskgit")
    torch.manual_seed(0)
    model = HaltonMaskGITTransformer2DModel(8, vq.config["codebook_size"], 3, 640, 6, 8, 1792)
    theirs = {ours: upstream for upstream, ours in _MODEL_KEYS.items()}
    of_block = {ours: upstream for upstream, ours in _BLOCK_KEYS.items()}

    def name(key: str) -> str:
        if key in theirs:
            return theirs[key]
        _, number, rest = key.split(".", 2)
        return f"transformer.layers.{number}.{of_block[rest]}"

    weights = {name(key): tensor for key, tensor in model.state_dict().items()}
    size = sum(tensor.nbytes for tensor in weights.values())
    state = [{"exp_avg": torch.randn(size // 4), "exp_avg_sq": torch.randn(size // 4)}]
    torch.save({"model_state_dict": weights, "optimizer_state_dict": state}, tmp_path / "big.pth")
    del state, weights, model
    command = [sys.executable, "-c", PEAK, tmp_path / "big.pth", tmp_path / "out"]
    done = subprocess.run([*command, vq.checkpoint], capture_output=True, text=True, check=True)
    assert size > 150e6
    assert 0.9 * size < int(done.stdout.splitlines()[-1]) < 1.4 * size
