"""The benchmark of the text loop: its plain loop is MDLM's, token by token, and short; ours costs less beside it."""

from __future__ import annotations

import ast
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open

from hf_maskdiff import MDLMTransformer

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def text_loop(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("text_loop")


@pytest.mark.parametrize("trace", ["trace_ddpm_cache", "trace_ddpm_cache_60"])
def test_the_plain_loop_is_the_original_s(golden_folder: Path, text_loop: ModuleType, trace: str) -> None:
    """From the seed of a stored run come its tokens, with as many model calls."""
    model, calls = MDLMTransformer.from_pretrained(golden_folder / "mdlm"), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    with safe_open(golden_folder / "mdlm" / f"{trace}.safetensors", "pt") as file:
        final, passes, arguments = file.get_tensor("final"), file.get_tensor("nfe"), file.metadata()
    mask_token_id = model.config.vocab_size - 1
    torch.manual_seed(int(arguments["seed"]))
    start = torch.full_like(final, mask_token_id)
    assert torch.equal(text_loop.plain_loop(model, start, int(arguments["steps"]), mask_token_id), final)
    assert len(calls) == passes


def test_the_plain_loop_is_short() -> None:
    functions = ast.parse((BENCHMARKS / "text_loop.py").read_text()).body
    lines = {f.name: f.end_lineno - f.lineno + 1 for f in functions if isinstance(f, ast.FunctionDef)}
    assert lines["plain_loop"] + lines["subs_log_probs_"] <= 30


def test_the_table(text_loop: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--length", "64", "--vocab_size", "4000", "--n_blocks", "1", "--num_inference_steps", "4"]
    rows = text_loop.main([*arguments, "--repeats", "1", "--output_dir", str(tmp_path)])
    assert json.loads((tmp_path / "text_loop.json").read_text()) == rows
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[2:]] == ["plain loop", "MDLMPipeline", "ratio"]
    assert rows["plain loop"]["calls"] == 5
    assert rows["MDLMPipeline"]["calls"] <= 4
    # What the plain loop holds at once beside the logits: weights and noise, each of their size.
    logits = 64 * 4000 * 4
    assert 2 * logits < rows["plain loop"]["bytes"] < 2.5 * logits
    assert rows["MDLMPipeline"]["bytes"] < logits


def test_memory_inside_the_model_is_left_out(text_loop: ModuleType) -> None:
    class Model(torch.nn.Module):
        def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor]:
            return (inputs.repeat(100)[:10].clone(),)

    model = Model()

    def work(later: int) -> Callable[[], object]:
        return lambda: [model(torch.ones(1000)), torch.ones(later)]  # the input goes when the model returns

    for later in (500, 2000):
        assert text_loop.MemoryOutside(model).measure(work(later)) == 4 * (10 + max(1000, later))
