"""Folders that this package wrote, spoilt: their doors are ours too."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_models import change_json

from hf_maskdiff import MaskGITPipeline, MaskGITTransformer2DModel, MDLMPipeline, MDLMTransformer
from hf_maskdiff.evaluation.digit_classifier import DigitClassifier
from hf_maskdiff.models import HaltonMaskGITTransformer2DModel, MaskGITVQModel

PIPELINES = Path(__file__).parents[2] / "pipelines"
SIZES = [-1, 2**20, 2**40, 2**70, "16", 16.5]


def copy_of(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size: object, tmp_path: Path) -> None:
    models = {
        "maskgit-mnist/transformer": (
            HaltonMaskGITTransformer2DModel,
            "hidden_size num_layers codebook_size num_classes",
        ),
        "maskgit-mnist/digit_classifier": (DigitClassifier, "feature_size block_out_channels in_channels"),
        "mdlm-shakespeare/transformer": (MDLMTransformer, "hidden_dim n_blocks cond_dim n_heads vocab_size"),
    }
    for name, (model_class, names) in models.items():
        folder = copy_of(PIPELINES / name, tmp_path / name)
        whole = (folder / "config.json").read_text()
        for setting in names.split():
            value = [size, size] if setting == "block_out_channels" else size
            change_json(folder / "config.json", lambda before, setting=setting, value=value: before | {setting: value})
            with pytest.raises(ValueError, match=rf"`{setting}` in config\.json must be a number from [01] to "):
                model_class.from_pretrained(folder)
            with pytest.raises(ValueError, match=rf"`{setting}` in config\.json must be a number"):
                model_class.from_pretrained(folder.parent, subfolder=folder.name)
            (folder / "config.json").write_text(whole)
        model_class.from_pretrained(folder)


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{", "3"])
@pytest.mark.parametrize("model", [MaskGITTransformer2DModel, MaskGITVQModel, MDLMTransformer, DigitClassifier])
def test_settings_that_are_none(model: type, content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json in '.*' must (be|hold)"):
        model.from_pretrained(tmp_path)


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    folder = copy_of(PIPELINES / "maskgit-mnist", tmp_path / "images")
    change_json(folder / "transformer" / "config.json", lambda before: before | {"dropout": "x"})
    with pytest.raises(ValueError, match=r"config\.json in '.*' must be well-formed, got TypeError"):
        MaskGITPipeline.from_pretrained(folder)


def test_the_tokenizer_of_a_pipeline(tmp_path: Path) -> None:
    folder = copy_of(PIPELINES / "mdlm-shakespeare", tmp_path / "text")
    for file, content in (("tokenizer.json", "[" * 100_000), ("tokenizer.json", "{}"), ("tokenizer_config.json", "[]")):
        whole = (folder / "tokenizer" / file).read_text()
        (folder / "tokenizer" / file).write_text(content)
        with pytest.raises(ValueError, match=r"the pipeline in '.*' must be well-formed, got .* Fetch its files again"):
            MDLMPipeline.from_pretrained(folder)
        (folder / "tokenizer" / file).write_text(whole)
    MDLMPipeline.from_pretrained(folder)
