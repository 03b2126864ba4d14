"""The benchmark of text samplers: batches do not matter, real text lies where text should, tables are complete."""

from __future__ import annotations

import importlib
from pathlib import Path
from time import process_time

import pytest
import torch
from test_partial_caching_benchmark import corpus

__all__ = ["corpus"]  # a fixture

ROOT = Path(__file__).parents[1]


def test_the_benchmark_of_text(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    text = importlib.import_module("text")
    arguments = ["--data_dir", str(corpus), "--pipeline", str(ROOT / "pipelines" / "mdlm-shakespeare")]
    arguments += ["--steps", "2", "--choice_temperatures", "4", "--num_sequences", "3", "--num_seeds", "2"]
    arguments += ["--num_substeps", "1", "3"]
    results = text.main([*arguments, "--output_dir", str(tmp_path / "one"), "--batch_size", "3"])
    mixed = text.main(
        [
            *arguments,
            "--output_dir",
            str(tmp_path / "one"),
            "--batch_size",
            "3",
            "--resume",
            "--tempered",
            *text.MIXTURES,
        ]
    )
    one_seed = [*arguments, "--num_seeds", "1"]
    again = text.main([*one_seed, "--output_dir", str(tmp_path / "two"), "--batch_size", "2"])

    cells = {(cell["sampler"], cell["seed"]): cell for cell in results["cells"]}
    samplers = ["uniform", "halton", "uniform 4", "maskgit 4", "moment 4", "hybrid 4", "halton 4"]
    samplers += [f"{name}, 3 groups" for name in samplers if name != "maskgit 4"]
    assert list(cells) == [(name, seed) for seed in range(2) for name in [text.REFERENCE, *samplers]]
    same = ("nats", "entropy", "distinct-1", "distinct-2", "distinct-4", "passes")
    for cell, other in zip(results["cells"][: 1 + len(samplers)], again["cells"], strict=True):
        assert {name: cell[name] for name in same} == {name: other[name] for name in same}
    for cell in results["cells"]:
        assert 0 < cell["distinct-1"] < cell["distinct-2"] < cell["distinct-4"] <= 1
        assert cell["passes"] == cell["steps"]
    for seed in range(2):
        real = cells[text.REFERENCE, seed]["nats"]
        assert all(real + 1 < cells[name, seed]["nats"] for name in samplers)  # two steps, and of another play
    new = {cell["sampler"] for cell in mixed["cells"]} - {name for name, _ in cells}
    assert {name for name in new if "groups" not in name} == {f"{name} 4" for name in text.MIXTURES}
    assert mixed["cells"][: len(results["cells"])] == results["cells"]
    assert len(capsys.readouterr().out.splitlines()) == 2 * (2 + 14) + 2 + 22
    assert (tmp_path / "one" / "text.png").stat().st_size > 5_000


def test_the_benchmark_of_the_loop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    arguments = {"vocab_size": 3000, "model_length": 100, "hidden_dim": 32, "cond_dim": 8, "n_heads": 4}
    arguments |= {"num_inference_steps": 20, "repeats": 1}
    text_loop = importlib.import_module("text_loop")
    for module in (text_loop, importlib.import_module("timing")):
        monkeypatch.setattr(module, "now", process_time)  # other programs do not count
    results = text_loop.main([f"--{name}={value}" for name, value in arguments.items()])
    published, ours = results.values()
    assert published["calls"] == 21  # and one for what is left
    assert ours["calls"] == 20
    assert ours["outside"] < published["outside"]
    assert 0 < ours["memory"] < published["memory"] / 4
    assert capsys.readouterr().out.splitlines()[-1].startswith("ours over the published: 0.")


def test_the_published_loop_asks_the_model_again_only_after_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    published_loop, calls = importlib.import_module("text_loop").published_loop, []

    def model(sample):
        calls.append(sample)
        return torch.zeros(*sample.shape, 6)

    torch.manual_seed(0)
    sample = torch.tensor([[5, 1, 5, 5]])
    sample = published_loop(model, sample, mask_token_id=5, num_steps=50)
    assert sample[0, 1] == 1
    assert (sample < 5).all()
    assert len(calls) <= 1 + 3 + 1
