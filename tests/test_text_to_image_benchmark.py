"""The benchmark of aMUSEd's passes, on a tiny model."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import tiny_text_to_image
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("text_to_image_passes")


def test_partial_passes_multiply_less_and_a_filling_one_does_not(bench: Any) -> None:
    torch.manual_seed(0)
    model = tiny_text_to_image.transformer(sample_size=8, num_hidden_layers=4, hidden_size=32)
    found = {name: row["multiplications"] for name, row in bench.passes(model, 2, 1).items()}
    assert found["full"] == found["filling"] == 1
    shares = [found[name] for name in list(found)[2:]]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] < 1


def test_calls_of_the_pipeline_are_timed(bench: Any) -> None:
    found = bench.calls(tiny_text_to_image.transformer(), 2, 1, 2)
    assert list(found) == ["2 steps", "2 steps in 2 groups", "4 steps"]
    assert all(row["seconds"] > 0 for row in found.values())


def test_the_model_is_amused_s_but_for_its_weights(bench: Any) -> None:
    model = bench.transformer(64, "cpu", torch.float32, {"num_hidden_layers": 1, "hidden_size": 32})
    assert model.config.sample_size == 4
    assert not model.config.downsample
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    assert bench.transformer(512, "meta", torch.float32, {}).num_parameters() == pytest.approx(608e6, rel=0.01)
