"""What the text loop is timed against: it is MDLM's own, token by token, and short."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open

from hf_maskdiff import MDLMTransformer


@pytest.fixture
def text_loop(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("text_loop")


@torch.no_grad()
@pytest.mark.parametrize("trace", ["trace_ddpm_cache", "trace_ddpm_cache_60"])
def test_the_published_loop_is_the_original_s(golden_folder: Path, text_loop: ModuleType, trace: str) -> None:
    """From the seed of a stored run come its tokens, with as many model calls."""
    transformer, calls = MDLMTransformer.from_pretrained(golden_folder / "mdlm"), []
    transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    with safe_open(golden_folder / "mdlm" / f"{trace}.safetensors", "pt") as file:
        final, passes, arguments = file.get_tensor("final"), file.get_tensor("nfe"), file.metadata()
    mask_token_id = transformer.config.vocab_size - 1
    torch.manual_seed(int(arguments["seed"]))
    start = torch.full_like(final, mask_token_id)
    loop = text_loop.published_loop
    tokens = loop(lambda sample: transformer(sample).logits, start, mask_token_id, int(arguments["steps"]))
    assert torch.equal(tokens, final)
    assert len(calls) == passes


def test_the_published_loop_is_short(text_loop: ModuleType) -> None:
    assert len(inspect.getsource(text_loop.published_loop).splitlines()) <= 30
