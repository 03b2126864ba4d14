"""What the text loop is timed against: it is MDLM's own, token by token, and short."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest
import torch
from golden_data import cases, read

from hf_maskdiff import MDLMTransformer


@pytest.fixture
def text_loop(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("text_loop")


@torch.no_grad()
@pytest.mark.parametrize("path", cases("mdlm/trace_*_cache*"))
def test_the_published_loop_is_the_original_s(path: Path, text_loop: ModuleType) -> None:
    """From the seed of a stored run come its tokens, with as many model calls."""
    transformer, calls = MDLMTransformer.from_pretrained(path.parent), []
    transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    trace, arguments = read(path)
    if float(arguments["eps"]) != 1e-5:
        pytest.skip("the loop here ends at the original's default, 1e-5")
    final = trace["final"]
    mask_token_id = transformer.config.vocab_size - 1
    torch.manual_seed(int(arguments["seed"]))
    start = torch.full_like(final, mask_token_id)
    loop = text_loop.published_loop
    tokens = loop(lambda sample: transformer(sample).logits, start, mask_token_id, int(arguments["steps"]))
    assert torch.equal(tokens, final)
    assert len(calls) == trace["nfe"]


def test_the_published_loop_is_short(text_loop: ModuleType) -> None:
    assert len(inspect.getsource(text_loop.published_loop).splitlines()) <= 30
