"""The benchmark of text samplers: batches do not matter, real text lies where text should, tables are complete."""

from __future__ import annotations

import importlib
import random
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Words of a small grammar, many times over."""
    rng, folder = random.Random(0), tmp_path / "corpus"
    folder.mkdir()
    words = ["the king", "my lord", "a sword", "speaks", "sleeps", "and", "no more", "ROMEO:\n"]
    (folder / "plays.txt").write_text(" ".join(rng.choices(words, k=3000)))
    return folder


def test_the_benchmark_of_text(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    text = importlib.import_module("text")
    arguments = ["--data_dir", str(corpus), "--pipeline", str(ROOT / "pipelines" / "mdlm-shakespeare")]
    arguments += ["--steps", "2", "--choice_temperatures", "4", "--num_sequences", "3", "--num_seeds", "2"]
    results = text.main([*arguments, "--output_dir", str(tmp_path / "one"), "--batch_size", "3"])
    again = text.main([*arguments, "--output_dir", str(tmp_path / "two"), "--batch_size", "2"])

    cells = {(cell["sampler"], cell["seed"]): cell for cell in results["cells"]}
    samplers = ["uniform", "halton", "uniform 4", "maskgit 4", "moment 4", "hybrid 4"]
    assert list(cells) == [(name, seed) for seed in range(2) for name in [text.REFERENCE, *samplers]]
    same = ("nats", "entropy", "distinct-1", "distinct-2", "distinct-4", "passes")
    for cell, other in zip(results["cells"], again["cells"], strict=True):
        assert {name: cell[name] for name in same} == {name: other[name] for name in same}
        assert 0 < cell["distinct-1"] < cell["distinct-2"] < cell["distinct-4"] <= 1
        assert cell["passes"] == cell["steps"]
    for seed in range(2):
        real = cells[text.REFERENCE, seed]["nats"]
        assert all(real + 1 < cells[name, seed]["nats"] for name in samplers)  # two steps, and of another play
    assert len(capsys.readouterr().out.splitlines()) == 2 * (2 + 7)
    assert (tmp_path / "one" / "text.png").stat().st_size > 5_000
