"""What `convert` refuses before it writes: weights that are no numbers, parts that do not fit, options that lack."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_checkpoints import pack
from test_convert import flax_trees, make_tokenizer
from test_mdlm import CONFIG, make_checkpoint

from hf_maskdiff import MDLMTransformer
from hf_maskdiff.conversion.convert import convert
from hf_maskdiff.conversion.options import MissingOptions
from hf_maskdiff.conversion.parts import check_scheduler_ids, require_finite
from hf_maskdiff.models import MDLMForMaskedLM

NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Where nothing may be afterwards."""
    place = tmp_path / "made" / "out"
    yield place
    assert not place.parent.exists()


def changed(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(path)
    change(weights)
    path.chmod(0o644)
    save_file(weights, path, {"format": "pt"})


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to, copy_function=shutil.copyfile)
    for path in [to, *to.rglob("*")]:
        path.chmod(0o755)
    return to


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
@pytest.mark.parametrize(("number", "name"), [(NAN, "NaN"), (INFINITY, "infinity"), (-INFINITY, "infinity")])
def test_every_entry_is_looked_at(dtype: torch.dtype, number: float, name: str) -> None:
    for place in [(0, 0), (99, 6), (50, 3)]:
        tensor = torch.randn(100, 7)
        require_finite(tensor.to(dtype), "w")
        tensor[place] = number
        with pytest.raises(ValueError, match=rf"the weights must be finite numbers, got {name} in 'w'\. Fetch"):
            require_finite(tensor.to(dtype).T, "w")
    for harmless in (torch.zeros(0), torch.tensor(3), torch.tensor(1.0, dtype=dtype), torch.tensor([True])):
        require_finite(harmless, "w")


@pytest.mark.parametrize("number", [NAN, INFINITY])
def test_weights_that_are_no_numbers(number: float, out: Path, tmp_path: Path) -> None:
    """In a transformer and in a tokenizer of images, in both layouts of MDLM."""
    message = r"the weights must be finite numbers, got \w+ in '(transformer|vqvae)\..*'"
    for spoilt in range(2):
        trees = flax_trees()
        params = trees[spoilt]["params"]
        (params["MlmLayer_0"]["mlm_ln"]["scale"] if spoilt == 0 else params["quantizer"]["codebook"])[3] = number
        for name, tree in zip(("maskgit", "tokenizer"), trees, strict=True):
            (tmp_path / name).write_bytes(pack(tree))
        with pytest.raises(ValueError, match=message):
            convert(tmp_path / "maskgit", out, tokenizer=tmp_path / "tokenizer")

    words = make_tokenizer(tmp_path / "words", CONFIG["vocab_size"] - 1)
    checkpoint = make_checkpoint()
    checkpoint["ema"]["shadow_params"][2].flatten()[0] = number
    torch.save(checkpoint, tmp_path / "mdlm.ckpt")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "mdlm.ckpt", out, tokenizer=words)
    model = MDLMTransformer(**CONFIG, model_length=16)
    MDLMForMaskedLM.from_transformer(model).save_pretrained(tmp_path / "mdlm")
    changed(tmp_path / "mdlm" / "model.safetensors", lambda weights: next(iter(weights.values())).fill_(number))
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "mdlm", out, tokenizer=words)


def test_weights_of_language_models_that_are_no_numbers(golden_folder: Path, out: Path, tmp_path: Path) -> None:
    source = tmp_path / "dream"
    shutil.copytree(golden_folder / "dream", source, ignore=shutil.ignore_patterns("trace*", "expected*", "input*"))
    source.chmod(0o755)
    words = make_tokenizer(tmp_path / "words", 60)
    (words / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate("abcdefgh")}))
    (words / "merges.txt").write_text("#version: 0.2\n")
    changed(source / "model.safetensors", lambda weights: weights["model.norm.weight"][:1].fill_(NAN))
    with pytest.raises(ValueError, match=r"finite numbers, got NaN in 'transformer\.model\.norm\.weight'"):
        convert(source, out, tokenizer=words)


# --- tokenizers -------------------------------------------------------------------------------------------------------


def test_a_tokenizer_that_is_larger_than_the_model(golden_folder: Path, out: Path, tmp_path: Path) -> None:
    torch.save(make_checkpoint(), tmp_path / "mdlm.ckpt")
    rows = CONFIG["vocab_size"]
    larger, mask_taken = (make_tokenizer(tmp_path / str(size), size) for size in (rows + 3, rows))
    with pytest.raises(ValueError, match=r"last row, 11, must be the mask's alone, got a tokenizer whose 'w11'"):
        convert(tmp_path / "mdlm.ckpt", out, tokenizer=mask_taken)
    with pytest.raises(ValueError, match=r"last row, 11, must be|ids must be rows of the model, 0 .. 11, got"):
        convert(tmp_path / "mdlm.ckpt", out, tokenizer=larger)
    llada = make_tokenizer(tmp_path / "larger", 1000)
    with pytest.raises(ValueError, match=r"ids must be rows of the model, 0 .. \d+, got \d+ for 'w\d+' among 1000"):
        convert(golden_folder / "llada" / "gqa_tied", out, tokenizer=llada)


# --- options ----------------------------------------------------------------------------------------------------------


def test_all_that_lacks_is_one_message(golden_folder: Path, out: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingOptions) as missing:
        convert(golden_folder / "halton_maskgit" / "cls_base.pth", out)
    assert missing.value.options.keys() == {"tokenizer", "num_attention_heads"}
    text = str(missing.value)
    assert text.startswith("2 missing. `--num_attention_heads`: must be given for a model of width 64")
    assert "`--tokenizer`: there must be one tokenizer for 'cls_base.pth', got none." in text
    assert text.endswith("(In Python `num_attention_heads=`, `tokenizer=`.)")
    assert "\n" not in text

    source = tmp_path / "a2d"
    shutil.copytree(golden_folder / "dream", source, ignore=shutil.ignore_patterns("trace*"))
    source.chmod(0o755)
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").chmod(0o644)
    (source / "config.json").write_text(json.dumps(settings | {"model_type": "a2d-qwen2"}))
    with pytest.raises(MissingOptions) as missing:
        convert(source, out)
    assert missing.value.options.keys() == {"tokenizer", "attention"}


@pytest.mark.parametrize("heads", [[], [3]])
def test_both_numbers_of_heads_are_asked_for_at_once(heads: list[int], golden_folder: Path, out: Path) -> None:
    with pytest.raises(MissingOptions, match=r"1 missing\. .* of width \d+.* Pass 2, encoder's and decoder's\."):
        convert(golden_folder / "mage", out, num_attention_heads=heads)


def test_more_heads_than_there_is_use_for(golden_folder: Path, out: Path) -> None:
    with pytest.raises(ValueError, match=r"must be 2 numbers at most for this model, got \[3, 2, 4\]"):
        convert(golden_folder / "mage", out, num_attention_heads=[3, 2, 4])
    with pytest.raises(ValueError, match=r"must be 0 numbers at most for this model, got \[2\]"):
        convert(golden_folder / "maskgit_jax", out, num_attention_heads=[2])


def test_options_that_would_have_no_effect(golden_folder: Path, amused: Path, out: Path) -> None:
    for source, option in (
        (amused, {"tokenizer": "me/words"}),
        (amused, {"num_attention_heads": [2]}),
        (amused, {"attention": "full"}),
        (golden_folder / "mdlm", {"num_attention_heads": [2]}),
        (golden_folder / "mdlm" / "mdlm.ckpt", {"num_attention_heads": [2]}),
        (golden_folder / "mdlm" / "mdlm.ckpt", {"attention": "full"}),
        (golden_folder / "dream", {"num_attention_heads": [2]}),
        (golden_folder / "mage", {"attention": "full"}),
    ):
        with pytest.raises(ValueError, match=rf"`--{next(iter(option))}` must be left out for .*, got"):
            convert(source, out, **option)


# --- aMUSEd, whose files are copied -----------------------------------------------------------------------------------


@pytest.fixture
def amused(golden_folder: Path, tmp_path: Path) -> Path:
    return copy_of(golden_folder / "amused" / "pipeline", tmp_path / "amused")


@pytest.mark.parametrize("part", ["transformer", "vqvae", "text_encoder"])
def test_weights_of_amused(part: str, amused: Path, out: Path) -> None:
    (file,) = (amused / part).glob("*.safetensors")
    whole = file.read_bytes()
    changed(file, lambda weights: next(t for t in weights.values() if t.is_floating_point()).flatten()[:1].fill_(NAN))
    with pytest.raises(ValueError, match=rf"finite numbers, got NaN in '{part}\."):
        convert(amused, out)
    file.write_bytes(whole)
    changed(file, lambda weights: weights.pop(max(weights)))
    with pytest.raises(ValueError, match=rf"The weights of '{part}' must fit its config\.json, got .*missing_keys"):
        convert(amused, out)
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="must hold whole safetensors"):
        convert(amused, out)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("scheduler/scheduler_config.json", {"mask_token_id": 10**6}, "`mask_token_id` must be a row of the model, 0"),
        ("scheduler/scheduler_config.json", {"mask_token_id": "5"}, "`mask_token_id` must be a row of the model, 0"),
        ("vqvae/config.json", {"num_vq_embeddings": 7}, r"'vqvae' must be what its config.json says"),
        ("transformer/config.json", {"codebook_size": 7}, r"'transformer' must be what its config.json says"),
        ("transformer/config.json", {"hidden_size": 2**40}, "`hidden_size` in config.json must be a number from 1 to"),
        ("transformer/config.json", {"num_hidden_layers": "2"}, "`num_hidden_layers` in config.json must be a number"),
        ("vqvae/config.json", {"layers_per_block": 2**40}, "`layers_per_block` in config.json must be a number"),
        ("vqvae/config.json", {"block_out_channels": [2**40]}, "`block_out_channels` in config.json must be"),
        ("model_index.json", {"transformer": ["evil", "Evil"]}, "must be a class of diffusers or transformers, got"),
        ("model_index.json", {"transformer": ["os", "system"]}, "must be a class of diffusers or transformers, got"),
        ("model_index.json", {"transformer": ["diffusers", 5]}, "must be a class of diffusers or transformers, got"),
        ("model_index.json", {"transformer": [None, None]}, r"must name the parts of an aMUSEd, \['transformer'\]"),
    ],
)
def test_settings_of_amused(file: str, changes: dict, message: str, amused: Path, out: Path) -> None:
    settings = json.loads((amused / file).read_text())
    (amused / file).write_text(json.dumps(settings | changes))
    with pytest.raises(ValueError, match=message):
        convert(amused, out)


# --- files and samplers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "[]", "{", "\udc80"])
@pytest.mark.parametrize("name", ["config.json", "model_index.json"])
def test_settings_nested_without_end(name: str, content: str, out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=rf"{name}' must (be well-formed, got RecursionError|hold settings)|readable"):
        convert(folder, out)


def test_samplers_must_speak_of_rows_of_the_model() -> None:
    check_scheduler_ids({"mask_token_id": 7, "codebook_size": 7}, 8)
    check_scheduler_ids({"mask_token_id": 0}, 8)
    for mask in (8, -1, "7", None, True):
        with pytest.raises(ValueError, match=r"`mask_token_id` must be a row of the model, 0 .. 7, got"):
            check_scheduler_ids({"mask_token_id": mask}, 8)
    for codes in (9, 0, "7"):
        with pytest.raises(ValueError, match=r"`codebook_size` must be at most the model's 8 rows, got"):
            check_scheduler_ids({"mask_token_id": 7, "codebook_size": codes}, 8)
