"""The benchmark of what caches change in the law: its laws are laws, and those that the pipeline draws from."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_maskdiff import DelayedCacheConfig, DualCacheConfig, HaltonScheduler, MDLMPipeline, MDLMTransformer

Program = Callable[[str], Any]
ROOT = Path(__file__).parents[1]
LENGTH = 4


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def laws(program: Program) -> Any:
    """All 16 sequences of two tokens, and a model whose keys go stale."""
    bench = program("cache_bias")
    torch.manual_seed(0)
    model = MDLMTransformer(3, LENGTH, hidden_dim=16, cond_dim=8, n_blocks=2, n_heads=2).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1 if name.startswith("output_layer.linear") else 0.5)
    return bench.Enumeration(bench.stationary(LENGTH, 2, 2.0, 0), model)


@pytest.mark.parametrize("order", ["bit-reversed", "surest first"])
def test_laws_are_laws_and_caches_change_them(program: Program, order: str) -> None:
    bench, found = program("cache_bias"), laws(program)
    plain, positions = found.log_law(order, None, 2, 2)
    assert positions == 4
    for cache, computed in ((None, 4), (DualCacheConfig(), 3), (DelayedCacheConfig(), 4)):
        law, positions = found.log_law(order, cache, 2, 2)
        assert math.isclose(float(law.exp().sum()), 1, abs_tol=1e-9)
        assert positions == computed
        assert (bench.kl(plain, law) > 1e-4) == (computed < 4)
    same, _ = found.log_law(order, DualCacheConfig(refresh_every=1), 2, 2)
    assert torch.equal(same, plain)
    stale, _ = found.log_law(order, DelayedCacheConfig(), LENGTH, LENGTH)
    assert math.isclose(float(stale.exp().sum()), 1, abs_tol=1e-9)
    assert bench.kl(found.log_law(order, None, LENGTH, LENGTH)[0], stale) > 1e-4


def test_a_law_is_what_the_pipeline_draws_from(program: Program) -> None:
    found, number = laws(program), 3000
    law, _ = found.log_law("bit-reversed", DualCacheConfig(), 2, 2)
    pipe = MDLMPipeline(found.tokenizer, found.model, HaltonScheduler(2, masking_schedule="linear"))
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_cache(DualCacheConfig())
    masks = torch.full((number, LENGTH), 2)
    call = {"num_inference_steps": 2, "block_length": 2, "max_new_tokens": None, "output_type": "ids"}
    drawn = pipe(input_ids=masks, mask=masks == 2, generator=torch.Generator().manual_seed(0), **call).sequences
    numbers = (torch.stack(drawn) * (2 ** torch.arange(LENGTH - 1, -1, -1))).sum(-1)
    counts, expected = torch.bincount(numbers, minlength=2**LENGTH).double(), number * law.exp()
    assert float(((counts - expected) ** 2 / expected).sum()) < 45  # 15 degrees of freedom: once in 10,000 times
    plain = number * found.log_law("bit-reversed", None, 2, 2)[0].exp()
    assert float(((counts - plain) ** 2 / plain).sum()) > 100  # and it is not the law without a cache


def test_it_trains_reports_and_draws(program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = f"--length {LENGTH} --num_states 2 --steps 4 --num_seeds 1 --train_steps 10 --width 16 --num_layers 2"
    results = program("cache_bias").main([*arguments.split(), "--output_dir", str(tmp_path)])
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (tmp_path / "cache_bias.png").stat().st_size > 10_000
    rows = {(row["order"], row["blocks"], row["cache"]): row for row in results["rows"]}
    assert rows["bit-reversed", "half", "none"]["bias"] == 0
    assert rows["bit-reversed", "half", "dual"]["positions"] == 3
    assert ("surest first", "half", "greedy, window 1") not in rows
    assert ("surest first", "whole", "dual") not in rows
    assert all(math.isclose(row["mass"], 1, abs_tol=1e-9) for row in rows.values())
    assert "| bit-reversed | half | 4 | dual | 3.00 |" in capsys.readouterr().out
