"""Every folder under `pipelines/` and `schedulers/` opens, says what it is, and works."""

from __future__ import annotations

import json
import re
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline

import hf_maskdiff

ROOT = Path(__file__).parents[1]
PIPELINES = sorted(path.parent for path in ROOT.glob("pipelines/*/model_index.json"))
SCHEDULERS = sorted(path.parent for path in ROOT.glob("schedulers/*/scheduler_config.json"))


def name(folder: Path) -> str:
    return folder.name


def test_there_are_folders() -> None:
    assert PIPELINES
    assert SCHEDULERS


@pytest.mark.parametrize("folder", SCHEDULERS, ids=name)
def test_a_preset_loads_saves_and_runs(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "scheduler_config.json").read_text())
    scheduler = getattr(hf_maskdiff, config["_class_name"]).from_pretrained(folder)
    assert {key: value for key, value in scheduler.config.items() if not key.startswith("_")} == {
        key: value for key, value in config.items() if not key.startswith("_")
    }
    scheduler.save_pretrained(tmp_path)
    assert type(scheduler).from_pretrained(tmp_path).config == scheduler.config

    other = type(scheduler).from_pretrained(folder, mask_token_id=30, codebook_size=30)
    other.set_timesteps(4)
    sample = torch.full((2, 6, 6), 30)
    for t in other.timesteps:
        sample = other.step(torch.randn(2, 36, 31), t, sample).prev_sample
    assert int(sample.max()) < 30


@pytest.mark.parametrize("folder", [*PIPELINES, *SCHEDULERS], ids=name)
def test_the_card_says_library_licence_and_how_to_load(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    header = card.split("---")[1]
    assert "library_name: hf-maskdiff" in header
    assert "license:" in header
    assert f"{folder.parent.name}/{folder.name}" in card
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert snippet is not None
    compile(snippet[1], folder.name, "exec")


@pytest.mark.parametrize("folder", PIPELINES, ids=name)
def test_a_pipeline_opens_by_both_doors(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    cls = getattr(hf_maskdiff, index["_class_name"])
    for component, (library, class_name) in ((k, v) for k, v in index.items() if not k.startswith("_")):
        assert library in ("hf_maskdiff", "diffusers", "transformers"), component
        assert hasattr(hf_maskdiff if library == "hf_maskdiff" else diffusers, class_name)
    pipe = cls.from_pretrained(folder)
    stock = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
    assert type(stock) is cls
    ours, theirs = (
        p(class_labels=[3], num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").images
        for p in (pipe, stock)
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("folder", PIPELINES, ids=name)
def test_a_pipeline_folder_is_small_and_holds_no_pickles(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
