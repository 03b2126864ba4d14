"""`AutoModelForMaskedLM` and MDLM: the published layout, our folders, saving, training, and what does not fit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import fresh
import pytest
import torch
from hub_server import LoopbackHub, Repository
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, Trainer, TrainingArguments, pipeline

from hf_maskdiff import MaskGITPipeline, MDLMConfig, MDLMForMaskedLM, MDLMPipeline, MDLMTransformer

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "pipelines" / "mdlm-shakespeare"
CONFIG = {"vocab_size": 12, "model_length": 16, "hidden_dim": 32, "cond_dim": 8, "n_blocks": 2, "n_heads": 4}
MASK = CONFIG["vocab_size"] - 1
PARITY = {"atol": 2e-5, "rtol": 2e-5}
# What a published config.json says of its own code, here code that must not run.
REMOTE = {"AutoConfig": "configuration_mdlm.MDLMConfig", "AutoModelForMaskedLM": "modeling_mdlm.MDLM"}
BOMB = "raise SystemExit('code of the repository was run')\n"


def make_transformer(**config: float) -> MDLMTransformer:
    torch.manual_seed(0)
    transformer = MDLMTransformer(**(CONFIG | config)).eval()
    for parameter in transformer.parameters():  # a new model's blocks are the identity
        torch.nn.init.normal_(parameter, std=0.3)
    return transformer


def make_ids(length: int = 10) -> torch.Tensor:
    return torch.randint(0, MASK + 1, (3, length), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder in the layout in which MDLM's authors publish, with the code that it names."""
    folder = tmp_path / "published"
    folder.mkdir()
    config = CONFIG | {"model_type": "mdlm", "architectures": ["MDLM"], "auto_map": REMOTE, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("configuration_mdlm.py", "modeling_mdlm.py"):
        (folder / name).write_text(BOMB)
    weights = {f"backbone.{key}": tensor for key, tensor in make_transformer().state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# --- what opens ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_parity_with_the_original(golden_folder: Path) -> None:
    golden = golden_folder / "mdlm"
    inputs, expected = (load_file(golden / f"{name}.safetensors") for name in ("input", "expected"))
    config = AutoConfig.from_pretrained(golden)
    assert type(config) is MDLMConfig
    model = AutoModelForMaskedLM.from_pretrained(golden)
    assert type(model) is MDLMForMaskedLM
    torch.testing.assert_close(model(inputs["input_ids"]).logits, expected["logits"], **PARITY)
    model = AutoModelForMaskedLM.from_pretrained(golden, time_conditioning=True)
    times = -torch.expm1(-inputs["sigma"].double()) / 0.999
    logits = model(inputs["input_ids"], timestep=times).logits
    torch.testing.assert_close(logits, expected["logits_sigma"], **PARITY)


@torch.no_grad()
@pytest.mark.parametrize("trust_remote_code", [None, False])
def test_the_published_layout_needs_and_runs_no_code_of_its_own(
    published: Path, trust_remote_code: bool | None
) -> None:
    model, info = AutoModelForMaskedLM.from_pretrained(
        published, trust_remote_code=trust_remote_code, output_loading_info=True
    )
    assert not any(info.values())
    assert not model.training
    torch.testing.assert_close(model(make_ids()).logits, make_transformer()(make_ids()).logits)
    inner = AutoModelForMaskedLM.from_pretrained(published.parent, subfolder="published", dtype=torch.bfloat16)
    assert inner.dtype == torch.bfloat16


ANOTHER_PROCESS = """
import sys
import hf_maskdiff
import torch
from transformers import AutoModelForMaskedLM
for name in sys.argv[1:]:
    model = AutoModelForMaskedLM.from_pretrained(name)
    print(type(model).__name__, model(torch.arange(5)[None]).logits.sum().item())
"""


def in_another_process(*names: str, **environment: str) -> str:
    environment = {"PYTHONPATH": str(ROOT / "src"), **environment}
    done = fresh.run(ANOTHER_PROCESS, *names, environment=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_by_id_in_another_process(hub: LoopbackHub, published: Path, tmp_path: Path) -> None:
    """The published layout, and a repository of ours."""
    repository = hub.repositories["me/mdlm"] = Repository()
    repository.commit({path.name: path.read_bytes() for path in published.iterdir()}, "as published")
    AutoModelForMaskedLM.from_pretrained("me/mdlm").push_to_hub("me/ours")
    logits = make_transformer()(torch.arange(5)[None]).logits
    printed = in_another_process("me/mdlm", "me/ours", **hub.environment(tmp_path / "home"))
    assert printed.splitlines() == [f"MDLMForMaskedLM {logits.sum().item()}"] * 2
    assert not [request for request in hub.requests if request.endswith(".py")]


@torch.no_grad()
def test_a_pipeline_s_folder_opens_too() -> None:
    """The shipped one, whose root `config.json` is what saving it writes."""
    pipe = MDLMPipeline.from_pretrained(SHIPPED)
    assert json.loads((SHIPPED / "config.json").read_text()) == pipe.transformers_config()
    model = AutoModelForMaskedLM.from_pretrained(SHIPPED, dtype=torch.float32)
    ids = torch.arange(30)[None]
    torch.testing.assert_close(model(ids).logits, pipe.transformer(ids).logits)


def test_a_pushed_pipeline_opens_too(
    hub: LoopbackHub, tmp_path: Path, make_pipeline: Callable[..., MaskGITPipeline]
) -> None:
    MDLMPipeline.from_pretrained(SHIPPED).push_to_hub("me/text")
    make_pipeline().push_to_hub("me/image")
    expected = MDLMPipeline.from_pretrained(SHIPPED).transformer(torch.arange(5)[None]).logits.sum().item()
    name, total = in_another_process("me/text", **hub.environment(tmp_path)).split()
    assert (name, float(total)) == ("MDLMForMaskedLM", pytest.approx(expected, rel=1e-5))
    with pytest.raises(ValueError, match=r"Unrecognized configuration class.*MaskedDiffusionPipelineConfig"):
        AutoModelForMaskedLM.from_pretrained("me/image")


def test_fill_mask_of_transformers(hub: LoopbackHub) -> None:
    """With the shipped model and its tokenizer, in whose vocabulary the mask is."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED, subfolder="tokenizer")
    fill = pipeline("fill-mask", model=str(SHIPPED), tokenizer=tokenizer, device="cpu", dtype=torch.float32)
    text = "My lord, I will not[MASK] the king."
    found = fill(text, top_k=3)
    ids = tokenizer(text, return_tensors="pt").input_ids
    (place,) = (ids[0] == tokenizer.mask_token_id).nonzero()[:, 0]
    expected = fill.model(ids).logits[0, place].softmax(-1).topk(3)
    assert [row["token"] for row in found] == expected.indices.tolist()
    assert [row["score"] for row in found] == pytest.approx(expected.values.tolist(), rel=1e-4)
    first, second = fill("the[MASK] of[MASK]", top_k=2)
    assert len(first) == len(second) == 2


# --- what it is ------------------------------------------------------------------------------------------------------


def test_it_is_the_same_module_and_not_a_copy() -> None:
    transformer = make_transformer(time_conditioning=True, dropout=0.3).to(torch.bfloat16)
    weights = {key: tensor.clone() for key, tensor in transformer.state_dict().items()}
    model = MDLMForMaskedLM.from_transformer(transformer)
    assert model.backbone is transformer
    assert all(torch.equal(tensor, weights[key]) for key, tensor in transformer.state_dict().items())
    assert model.num_parameters() == transformer.num_parameters()
    assert (model.config.time_conditioning, model.config.dropout, model.dtype) == (True, 0.3, torch.bfloat16)


def test_from_config_begins_as_a_new_transformer_does(published: Path) -> None:
    config = AutoConfig.from_pretrained(published)
    torch.manual_seed(5)
    model = AutoModelForMaskedLM.from_config(config)
    torch.manual_seed(5)
    new = MDLMTransformer(**CONFIG).state_dict()
    assert all(torch.equal(tensor, new[key]) for key, tensor in model.backbone.state_dict().items())
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 2, 4)
    assert config.max_position_embeddings == 16


def test_what_it_saves_is_the_published_layout(published: Path, tmp_path: Path) -> None:
    for number, folder in enumerate((published, SHIPPED)):
        model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)
        ids = torch.arange(10)[None]
        model.save_pretrained(tmp_path / str(number))
        config = json.loads((tmp_path / str(number) / "config.json").read_text())
        assert (config["model_type"], config["architectures"]) == ("mdlm", ["MDLMForMaskedLM"])
        assert not {"auto_map", "transformers_weights"} & config.keys()  # of files that are not there
        for cls in (AutoModelForMaskedLM, MDLMTransformer):
            again = cls.from_pretrained(tmp_path / str(number))
            torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_output_loss_and_padding() -> None:
    transformer, ids = make_transformer(), make_ids()
    model = MDLMForMaskedLM.from_transformer(transformer)
    labels = torch.where(torch.arange(10) < 4, make_ids().clamp(max=MASK - 1), -100)
    output = model(ids, labels=labels, token_type_ids=torch.zeros_like(ids))
    chosen = transformer(ids).logits[:, :4].log_softmax(-1).gather(-1, labels[:, :4, None])
    torch.testing.assert_close(output.loss, -chosen.mean())
    loss, logits = model(ids, labels=labels, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    assert torch.equal(model(ids, return_dict=False)[0], model(ids).logits)

    real = torch.arange(10) < torch.tensor([[4], [10], [7]])
    for mask in (real, real.long()):
        assert torch.equal(model(ids, mask).logits, transformer(ids, attention_mask=real).logits)
    with pytest.raises(ValueError, match="`timestep` must be given to a model with `time_conditioning`"):
        MDLMForMaskedLM.from_transformer(make_transformer(time_conditioning=True))(ids)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # so named in all releases we support
def test_the_trainer_trains_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MDLMForMaskedLM(MDLMConfig(**CONFIG))
    rows = [{"input_ids": [1, MASK, 3, MASK], "labels": [-100, 2, -100, 4]}] * 8
    settings = TrainingArguments(
        str(tmp_path),
        max_steps=40,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        gradient_checkpointing=True,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
    )
    trainer = Trainer(model=model, args=settings, train_dataset=rows)
    assert trainer.train().training_loss < 1
    assert model.backbone.gradient_checkpointing
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved")
    assert again(torch.tensor([[1, MASK, 3, MASK]])).logits.argmax(-1)[0, [1, 3]].tolist() == [2, 4]


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_weights_that_do_not_fit_are_one_clear_error(published: Path) -> None:
    weights = load_file(published / "model.safetensors")
    missing = {name: tensor for name, tensor in weights.items() if "blocks.1.norm1" not in name}
    for wrong, message in (
        (missing, r"must fit its config\.json, got \{'missing_keys': \['backbone\.blocks\.1\.norm1\.weight'\]"),
        (weights | {"backbone.extra": torch.zeros(1)}, r"\{'unexpected_keys': \['backbone\.extra'\]\}"),
    ):
        save_file(wrong, published / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            AutoModelForMaskedLM.from_pretrained(published)
    save_file(weights | {"backbone.blocks.0.norm1.weight": torch.zeros(3)}, published / "model.safetensors")
    for ignore in (False, True):
        with pytest.raises((ValueError, RuntimeError), match=r"mismatched|norm1"):
            AutoModelForMaskedLM.from_pretrained(published, ignore_mismatched_sizes=ignore)


def test_a_config_that_lacks_a_size_is_one_clear_error(published: Path) -> None:
    config = json.loads((published / "config.json").read_text())
    del config["cond_dim"]
    (published / "config.json").write_text(json.dumps(config))
    for build in (AutoModelForMaskedLM.from_pretrained, lambda path: MDLMForMaskedLM(AutoConfig.from_pretrained(path))):
        with pytest.raises(ValueError, match=r"must name its sizes, \['cond_dim'\] are not there\. Add them\."):
            build(published)


def test_a_pickle_is_not_opened(published: Path, tmp_path: Path) -> None:
    """A folder whose only weights are a pickle that holds an object: an error, and the object is not made."""

    class Bomb:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "executed"),)

    shutil.copytree(published, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save({"backbone.blocks.0.norm1.weight": Bomb()}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only|pickle|safetensors"):
        AutoModelForMaskedLM.from_pretrained(tmp_path / "pickled")
    assert not (tmp_path / "executed").exists()
