"""MDLM as a model of transformers: the published files open by their type, and nothing of their code is run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForMaskedLM

from hf_maskdiff import MDLMConfig, MDLMForMaskedLM, MDLMTransformer

SIZES = {"vocab_size": 12, "model_length": 16, "hidden_dim": 32, "cond_dim": 8, "n_blocks": 2, "n_heads": 4}


@pytest.fixture
def transformer() -> MDLMTransformer:
    torch.manual_seed(0)
    model = MDLMTransformer(**SIZES).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@torch.no_grad()
def test_the_published_layout_opens_and_its_code_is_not_run(golden_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(golden_folder / "mdlm", tmp_path / "mdlm", copy_function=shutil.copyfile)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "configuration_mdlm.MDLMConfig", "AutoModelForMaskedLM": "modeling_mdlm.MDLM"}
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": names, "architectures": ["MDLM"]}))
    for name in ("configuration_mdlm.py", "modeling_mdlm.py"):
        (folder / name).write_text("raise SystemExit('remote code was run')")
    model = AutoModelForMaskedLM.from_pretrained(folder)
    assert isinstance(model, MDLMForMaskedLM)
    inputs, expected = (load_file(folder / f"{name}.safetensors") for name in ("input", "expected"))
    torch.testing.assert_close(model(inputs["input_ids"]).logits, expected["logits"], atol=2e-5, rtol=2e-5)
    assert isinstance(AutoConfig.from_pretrained(folder), MDLMConfig)


@torch.no_grad()
def test_what_it_saves_both_classes_open(transformer: MDLMTransformer, tmp_path: Path) -> None:
    MDLMForMaskedLM.from_transformer(transformer).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mdlm"
    assert all(key.startswith("backbone.") for key in load_file(tmp_path / "model.safetensors"))
    ids = torch.randint(0, 12, (2, 16), generator=torch.Generator().manual_seed(1))
    logits = transformer(ids).logits
    for opened in (AutoModelForMaskedLM.from_pretrained(tmp_path), MDLMTransformer.from_pretrained(tmp_path)):
        torch.testing.assert_close(opened(ids).logits, logits, atol=1e-6, rtol=1e-6)
    half = AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half(ids).logits.dtype == torch.bfloat16


def test_it_wraps_and_does_not_copy(transformer: MDLMTransformer) -> None:
    model = MDLMForMaskedLM.from_transformer(transformer)
    assert model.backbone is transformer
    assert model.num_parameters() == transformer.num_parameters()
    assert {name: getattr(model.config, name) for name in SIZES} == SIZES


def test_a_new_model_begins_as_the_transformer_does() -> None:
    torch.manual_seed(3)
    model = AutoModelForMaskedLM.from_config(MDLMConfig(**SIZES))
    torch.manual_seed(3)
    state = MDLMTransformer(**SIZES).state_dict()
    assert all(torch.equal(model.backbone.state_dict()[name], value) for name, value in state.items())


@torch.no_grad()
def test_forward(transformer: MDLMTransformer) -> None:
    model = MDLMForMaskedLM.from_transformer(transformer)
    ids = torch.tensor([[1, 11, 3, 0], [11, 5, 6, 7]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    logits = model(ids, mask).logits
    torch.testing.assert_close(logits[:1, :3], model(ids[:1, :3]).logits, atol=1e-6, rtol=1e-6)  # padding is not seen
    labels = torch.tensor([[-100, 2, -100, -100], [4, -100, -100, -100]])
    loss = model(ids, mask, labels=labels, token_type_ids=torch.zeros_like(ids)).loss
    log_probs = logits.log_softmax(-1)
    assert loss.item() == pytest.approx(-(log_probs[0, 1, 2] + log_probs[1, 0, 4]).item() / 2)
    as_tuple = model(ids, mask, labels=labels, return_dict=False)
    assert torch.equal(as_tuple[0], loss)
    assert torch.equal(as_tuple[1], logits)


def test_time_reaches_a_model_that_is_told_it(transformer: MDLMTransformer) -> None:
    told = MDLMForMaskedLM(MDLMConfig(**SIZES, time_conditioning=True))
    told.backbone.load_state_dict(transformer.state_dict())
    ids = torch.tensor([[1, 11, 3]])
    early, late = (told(ids, timestep=torch.tensor([t])).logits for t in (0.9, 0.1))
    assert not torch.equal(early, late)
