"""Code of a repository is never run, and nobody is asked whether to: in no call of ours, and whatever a file says."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from block_models import FAMILIES
from small_models import change_json, save_a2d, save_bert, save_tokenizer

from hf_maskdiff import MaskedDiffusionTextPipeline, MaskGITPipeline, MDLMPipeline
from hf_maskdiff.cli import main
from hf_maskdiff.evaluation.image_features import ClassifierNetwork
from hf_maskdiff.evaluation.judges import load_judge
from hf_maskdiff.published import load_published_text

ROOT = Path(__file__).parents[1]
# Classes that open no repository's code whatever they are told, by how they are called in the sources. Their own
# `from_pretrained` is among the calls that are looked at.
OWN = {"MaskGITPipeline", "MDLMPipeline", "MaskedDiffusionTextPipeline", "MDLMTransformer"}
OWN |= {"DigitClassifier", "WordClassifier"}
SAFE = OWN | {"VQModel", "cls", "super()"}
# Models of diffusers: read from safetensors, never from pickles.
MODELS = {"DigitClassifier", "WordClassifier", "VQModel"}


def calls(source: str) -> Iterator[tuple[str, str, dict[str, object]]]:
    """What is called on what, and the keywords whose values are written there."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            keywords = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
            if isinstance(node.func, ast.Attribute):
                yield ast.unparse(node.func.value).split(".")[-1], node.func.attr, keywords
            elif isinstance(node.func, ast.Name):
                yield "", node.func.id, keywords


def faults(source: str) -> list[str]:
    """Calls that could run a repository's code, or unpickle what is in it."""
    found = []
    for owner, name, keywords in calls(source):
        opens = name == "from_pretrained" and owner not in SAFE
        opens |= name == "load_dataset" or (name == "pipeline" and owner in ("", "transformers"))
        opens |= name == "from_config" and owner.startswith(("Auto", "auto"))
        if opens and keywords.get("trust_remote_code") is not False:
            found.append(f"{owner}.{name} without trust_remote_code=False")
        if name == "from_pretrained" and owner in MODELS and keywords.get("use_safetensors") is not True:
            found.append(f"{owner}.{name} without use_safetensors=True")
    return found


def sources() -> list[Path]:
    return [path for folder in ("src", "examples", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


def test_every_call_of_ours_says_so() -> None:
    assert len(sources()) > 80
    assert {str(path.relative_to(ROOT)): found for path in sources() if (found := faults(path.read_text()))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "AutoModel.from_pretrained(name)",
        "transformers.AutoConfig.from_pretrained(name)",
        "auto.from_pretrained(name, **kwargs)",
        "AutoTokenizer.from_pretrained(name, trust_remote_code=None)",
        "AutoTokenizer.from_pretrained(name, trust_remote_code=trust)",
        "AutoProcessor.from_pretrained(name, trust_remote_code=True)",
        "DiffusionPipeline.from_pretrained(name)",
        "tokenizer_class.from_pretrained(name)",
        "AutoModel.from_config(config)",
        "datasets.load_dataset(name)",
        "load_dataset(name, split='train')",
        "transformers.pipeline('text-generation')",
        "pipeline('text-generation')",
        "DigitClassifier.from_pretrained(folder)",
        "VQModel.from_pretrained(folder, use_safetensors=False)",
    ],
)
def test_calls_that_do_not_are_seen(line: str) -> None:
    assert len(faults(line)) == 1


# --- files that name code ---------------------------------------------------------------------------------------------


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is there to answer."""

    def asked(question: str = "") -> str:
        pytest.fail(f"somebody was asked: {question}")

    monkeypatch.setattr("builtins.input", asked)


def with_code(folder: Path, file: str, settings: dict[str, object]) -> Path:
    """A file that names a class in evil.py beside it, which leaves a trace when it is imported."""
    (folder / "evil.py").write_text(f"open({str(folder.parent / 'pwned')!r}, 'w')\nclass Evil: pass\n")
    classes = ("AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoTokenizer")
    code = {name: ["evil.Evil", None] if name == "AutoTokenizer" else "evil.Evil" for name in classes}
    change_json(folder / file, lambda before: before | {"auto_map": code} | settings)
    return folder


@pytest.mark.parametrize("model_type", ["sdar2", "no such model", "vit", ""])
def test_an_unknown_type_names_the_families(model_type: str, silent: None, tmp_path: Path) -> None:
    folder = with_code(save_bert(tmp_path / "model"), "config.json", {"model_type": model_type})
    message = r"must hold a LLaDA, a LLaDA2, a Dream, an SDAR, .* Code of a repository is never run: load .*from_model"
    for kwargs in ({}, {"trust_remote_code": False}, {"trust_remote_code": None}):
        with pytest.raises(ValueError, match=message):
            MaskedDiffusionTextPipeline.from_pretrained(folder, **kwargs)
    with pytest.raises(ValueError, match="`trust_remote_code` must be left out, got True: code of a repo"):
        MaskedDiffusionTextPipeline.from_pretrained(folder, trust_remote_code=True)
    assert not (tmp_path / "pwned").exists()


def test_a_known_type_is_opened_as_what_it_is(silent: None, tmp_path: Path) -> None:
    bert = with_code(save_bert(tmp_path / "bert"), "config.json", {})
    assert type(load_published_text(bert).model).__name__ == "BertForMaskedLM"
    for name, (save, needed) in FAMILIES.items():
        words = {"tokenizer": str(save_tokenizer(tmp_path / "words", 39))} if name == "bd3lm" else {}
        MaskedDiffusionTextPipeline.from_pretrained(
            with_code(save(tmp_path / name), "config.json", {}), **needed, **words
        )
    a2d = with_code(save_a2d(tmp_path / "a2d"), "config.json", {})
    assert type(load_published_text(a2d, attention="full").model).__name__ == "Qwen3ForCausalLM"
    assert not (tmp_path / "pwned").exists()


def test_code_of_a_tokenizer(silent: None, tmp_path: Path) -> None:
    folder = with_code(save_tokenizer(tmp_path / "tokenizer"), "tokenizer_config.json", {"tokenizer_class": "Evil"})
    model = save_bert(tmp_path / "model")
    with pytest.raises(ValueError, match=r"custom code|does not exist|must be"):
        load_published_text(model, str(folder))
    with pytest.raises(ValueError, match=r"--judge must name a causal language model"):
        load_judge(str(with_code(model, "config.json", {"model_type": "evil"})), None, "cpu")
    assert not (tmp_path / "pwned").exists()


def test_code_named_in_a_saved_pipeline(silent: None, tmp_path: Path) -> None:
    shipped = {MaskGITPipeline: "maskgit-mnist", MDLMPipeline: "mdlm-shakespeare"}
    for pipeline_class, name in shipped.items():
        folder = tmp_path / name
        shutil.copytree(ROOT / "pipelines" / name, folder)
        (folder / "transformer" / "evil.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\nclass Evil: pass\n")
        (folder / "evil.py").write_text((folder / "transformer" / "evil.py").read_text())
        index = json.loads((folder / "model_index.json").read_text())
        for stated in (["evil", "Evil"], ["transformers", "AutoModel"], ["os", "system"]):
            (folder / "model_index.json").write_text(json.dumps(index | {"transformer": stated}))
            with pytest.raises(Exception, match=r"evil|AutoModel|system"):
                pipeline_class.from_pretrained(folder)
            assert main(["convert", str(folder), str(tmp_path / "out")]) == 1
    assert not (tmp_path / "pwned").exists()


def test_the_judge_of_digits_looks_for_no_pickle(tmp_path: Path) -> None:
    folder = tmp_path / "classifier"
    shutil.copytree(ROOT / "pipelines" / "maskgit-mnist" / "digit_classifier", folder)
    assert ClassifierNetwork(folder).mode == "L"
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"no file named .*\.safetensors"):
        ClassifierNetwork(folder)
    weights.with_suffix(".bin").rename(weights)
    change_json(folder / "config.json", lambda settings: settings | {"in_channels": 2})
    with pytest.raises((ValueError, RuntimeError), match=r"a classifier of images, grey or RGB|size|shape"):
        ClassifierNetwork(folder)
