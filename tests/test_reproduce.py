"""docs/reproduce.md to the letter: its commands run on stand-ins for the released files."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
from collections.abc import Callable
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_data import Model, image_tokenizer, sampled_model
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hf_maskdiff.cli import main
from hf_maskdiff.evaluation.digit_classifier import DigitClassifier

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reproduce.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def random(model: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def words(folder: Path, count: int) -> Path:
    vocabulary = Tokenizer(models.WordLevel({f"w{i}": i for i in range(count)}, unk_token="w0"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=vocabulary, eos_token=f"w{count - 1}").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(golden_folder: Path) -> dict[str, Any]:
    """The configuration of the small MDLM: its last token is the mask, the one before ends a text."""
    return Model(golden_folder / "mdlm").config


@pytest.fixture(scope="module")
def stand_ins(text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small things of each kind that the page asks for, beside the checkpoints."""
    num_words, length = text["vocab_size"] - 1, text["model_length"]
    folder = tmp_path_factory.mktemp("stand_ins")
    network = DigitClassifier(in_channels=3, sample_size=8, feature_size=6, block_out_channels=(4, 8))
    sizes = {"n_positions": 1024, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = GPT2Config(vocab_size=num_words, eos_token_id=num_words - 1, **sizes)
    random(GPT2LMHeadModel(config), words(folder / "judge", num_words))
    rng = np.random.default_rng(0)
    for name in ("images", "texts"):
        (folder / name).mkdir()
    for i in range(20):
        side = rng.integers(257, 300)
        pixels = np.kron(rng.integers(0, 256, (10, 10, 3)), np.ones((26, 30, 1))).astype(np.uint8)
        Image.fromarray(pixels).resize((side, 256 + i)).save(folder / "images" / f"{i}.jpg")
        (folder / "texts" / f"{i}.txt").write_text(" ".join(f"w{j}" for j in rng.integers(0, num_words - 1, length)))
    return {
        "NETWORK": str(random(network, folder / "network")),
        "JUDGE": str(folder / "judge"),
        "TOKENIZER": str(words(folder / "tokenizer", num_words)),
        "IMAGENET_VAL": str(folder / "images"),
        "OPENWEBTEXT": str(folder / "texts"),
        "LAUNCH": "hf-maskdiff",
        "IMAGES": "12",
        "TEXTS": "20",
        "BATCH": "8",
        "SEEDS": "0",
        "DTYPE": "float32",
    }


def run(blocks: list[str], environment: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks, unfolded by a shell and then run one by one in this process, which imports everything only once."""
    told = "hf-maskdiff() { printf '%s\\0' \"$@\"; printf '\\n\\0'; }\nset -eu\n"
    everything = {**os.environ, **environment}
    command = ["bash", "-c", told + "\n".join(blocks)]
    printed = subprocess.run(command, cwd=folder, env=everything, capture_output=True, text=True, check=True).stdout
    monkeypatch.chdir(folder)
    for line in printed.removesuffix("\n\0").split("\n\0"):
        words = line.removesuffix("\0").split("\0")
        assert main([path for word in words for path in (sorted(glob(word)) if "*" in word else [word])]) == 0


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Rows of a report by the folder of their first set; each has its passes and seconds."""
    assert {path.name for path in folder.iterdir()} == {"report.md", "report.json", "report.png"}
    rows = json.loads((folder / "report.json").read_text())["records"]
    assert all(row["passes"] >= 2 and row["seconds"] > 0 for row in rows)
    return {Path(row["source"]).name: row["measures"] for row in rows}


def test_the_page_has_a_block_for_every_table() -> None:
    assert len(BLOCKS) == 5  # the last is of tests/test_reproduce_all.py
    assert PAGE.count("not run |") > 40


def test_mage(stand_ins: dict[str, str], golden_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Model(golden_folder / "mage")
    heads = f"{golden.config['num_heads']} {golden.config['decoder_num_heads']}"
    mage = f"--num_attention_heads {heads} -- {golden.checkpoint}"
    run([BLOCKS[0], BLOCKS[1]], {**stand_ins, "MAGE": mage, "IMAGE_STEPS": "2"}, tmp_path, monkeypatch)
    rows = rows_of(tmp_path / "out" / "mage-report")
    samplers = ["Halton", "Hybrid", "Hybrid-R2", "MaskGIT", "Moment", "Moment-R2", "uniform"]
    assert list(rows) == [f"{name}-2-0" for name in samplers]
    assert all(row["Frechet distance"]["value"] > 0 and row["Inception score"]["value"] >= 1 for row in rows.values())


def test_mdlm(
    stand_ins: dict[str, str],
    text: dict[str, Any],
    golden_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mdlm = f"--tokenizer {stand_ins['TOKENIZER']} -- {golden_folder / 'mdlm'}"
    run([BLOCKS[0], BLOCKS[2]], {**stand_ins, "MDLM": mdlm, "TEXT_STEPS": "2"}, tmp_path, monkeypatch)
    rows = rows_of(tmp_path / "out" / "mdlm-report")
    assert len(rows) == 1 + 2 * 5
    for row in rows.values():
        assert row["perplexity"]["value"] > 1
        assert 0 < row["entropy"]["value"] < np.log(text["model_length"])
        assert 0 < row["MAUVE"]["value"] <= 1


def test_halton(
    stand_ins: dict[str, str], golden_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = golden_folder / "halton_maskgit"
    golden = sampled_model(source)
    environment = {
        "HALTON": f"--num_attention_heads {golden.config['heads']} -- {golden.checkpoint}",
        "LLAMAGEN": str(image_tokenizer(source).checkpoint),
        "CLASS_STEPS": "2",
        "ADM_STATISTICS": str(tmp_path / "statistics.npz"),
    }
    rng = np.random.default_rng(1).normal(size=(20, 6))
    np.savez(tmp_path / "statistics.npz", mu=rng.mean(0), sigma=np.cov(rng, rowvar=False))
    run([BLOCKS[0], BLOCKS[3]], {**stand_ins, **environment}, tmp_path, monkeypatch)
    rows = rows_of(tmp_path / "out" / "halton-report")
    assert list(rows) == [f"{name}-2-0" for name in ("Hybrid", "Hybrid-R2", "MaskGIT", "Moment", "published")]


def test_what_it_costs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The table is what the command prints, and the models have the sizes of the released weights."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    budget: Callable[..., Any] = importlib.import_module("budget").main
    results = {row["name"]: row for row in budget([])}
    assert capsys.readouterr().out.strip() in PAGE
    assert results["mdlm-owt"]["parameters"] == pytest.approx(169.6e6, rel=1e-3)
    assert results["Halton-MaskGIT base, 256"]["parameters"] == pytest.approx(142.2e6, rel=1e-3)
    assert results["Halton-MaskGIT large, 384"]["parameters"] == pytest.approx(480.0e6, rel=1e-3)
    # Two operations a weight and token, and more for attention and, here, for the head that reads all 257 tokens.
    mage = results["MAGE ViT-B"]
    assert 1 < mage["pass"] / (2 * 257 * mage["parameters"]) < 1.2
    plain, groups = mage["operations"][20]
    assert groups - plain == 50_000 * mage["pass"]  # R = 2: every position once more
