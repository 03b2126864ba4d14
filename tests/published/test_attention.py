"""Models whose type does not tell what they were trained to see are opened only where somebody says it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_models import save_a2d, save_bert, save_tokenizer
from transformers import Qwen3ForCausalLM

from hf_maskdiff import MaskedDiffusionTextPipeline
from hf_maskdiff.cli import main
from hf_maskdiff.published.attention import attention_unknown

UNKNOWN = r"share with its BD3LM models \(blocks from left to right\).* 'block_causal' and .* 'full' for an MDLM"


@pytest.mark.parametrize(
    "name",
    [
        "dllm-hub/Qwen3-0.6B-diffusion-mdlm-v0.1",
        "dllm-hub/Qwen2.5-Coder-0.5B-Instruct-diffusion-mdlm-v0.1",
        "cache/models--dllm-hub--Qwen3-0.6B-diffusion-mdlm-v0.1/snapshots/0a1b2c",
        "my/MDLM_qwen",
    ],
)
def test_a_repository_that_is_called_an_mdlm_is_one(name: str) -> None:
    assert attention_unknown("a2d-qwen3", name, None) is None


@pytest.mark.parametrize(
    "name",
    [
        "dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1",
        "cache/models--dllm-hub--Qwen3-0.6B-diffusion-bd3lm-v0.1/snapshots/0a1b2c",
        "me/bd3lm-from-mdlm",
        "divelab/Qwen3-4B-a2d-init",
        "models/a2d/Qwen3-0.6B/mdlm/alpaca/checkpoint-final",  # where dLLM's own program writes a BD3LM
        "mdlm/Qwen3",
        "me/notmdlmatall",
    ],
)
@pytest.mark.parametrize("model_type", ["a2d-qwen2", "a2d-qwen3", "a2d-llama"])
def test_of_any_other_somebody_must_say_it(name: str, model_type: str) -> None:
    assert "share with its BD3LM models" in str(attention_unknown(model_type, name, None))
    assert attention_unknown(model_type, name, "full") is None
    for known in ("llada", "Dream", "bert"):
        assert attention_unknown(known, name, None) is None


def test_loading(tmp_path: Path) -> None:
    folder = save_a2d(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"`attention` must be given: .*'a2d-qwen3'.*{UNKNOWN}, as `attention='full"):
        MaskedDiffusionTextPipeline.from_pretrained(folder)
    with pytest.raises(
        ValueError, match=r"`block_size` must be given: .* config.json does not say how large they were"
    ):
        MaskedDiffusionTextPipeline.from_pretrained(folder, attention="block_causal")
    with pytest.raises(ValueError, match=r"`attention` must be 'full' or 'block_causal', got 'causal'"):
        MaskedDiffusionTextPipeline.from_pretrained(folder, attention="causal")
    with pytest.raises(ValueError, match=r"`block_size` must come with `attention='block_causal'`, got 4 with 'full'"):
        MaskedDiffusionTextPipeline.from_pretrained(folder, attention="full", block_size=4)
    said = MaskedDiffusionTextPipeline.from_pretrained(folder, attention="full", dtype=torch.float32)
    assert isinstance(said.transformer, Qwen3ForCausalLM)
    folder.rename(tmp_path / "qwen3-mdlm")
    named = MaskedDiffusionTextPipeline.from_pretrained(tmp_path / "qwen3-mdlm", dtype=torch.float32)
    ids = torch.arange(5, 12)[None]
    with torch.no_grad():
        assert torch.equal(named.denoiser(ids), said.denoiser(ids))
    # Of a model that sees everything in any case it may be said, too.
    MaskedDiffusionTextPipeline.from_pretrained(save_bert(tmp_path / "bert"), attention="full")


def test_converting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The pipeline folder says no more what it was: it opens as what it is."""
    folder = save_a2d(tmp_path / "model")
    assert main(["convert", str(folder), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("hf-maskdiff convert: 1 missing. `--attention`: ")
    assert not (tmp_path / "out").exists()
    assert main(["convert", str(folder), str(tmp_path / "out"), "--attention", "full"]) == 0
    assert json.loads((tmp_path / "out" / "transformer" / "config.json").read_text())["model_type"] == "qwen3"
    assert isinstance(MaskedDiffusionTextPipeline.from_pretrained(tmp_path / "out").transformer, Qwen3ForCausalLM)


@pytest.mark.skipif("HF_MASKDIFF_GOLDEN2" not in os.environ, reason="HF_MASKDIFF_GOLDEN2 is not set")
def test_the_golden_bd3lm(tmp_path: Path) -> None:
    """It runs with full attention only where that is what its samples were made with."""
    folder = Path(os.environ["HF_MASKDIFF_GOLDEN2"], "dllm_bd3lm")
    words = save_tokenizer(tmp_path / "tokenizer", 60)
    with pytest.raises(ValueError, match=UNKNOWN):
        MaskedDiffusionTextPipeline.from_pretrained(folder, tokenizer=str(words))
    pipe = MaskedDiffusionTextPipeline.from_pretrained(folder, tokenizer=str(words), attention="full")
    given, expected = (load_file(folder / f"{name}.safetensors") for name in ("input", "expected"))
    with torch.no_grad():
        logits = pipe.denoiser(given["input_ids"])
    torch.testing.assert_close(logits, expected["logits"], atol=5e-5, rtol=5e-5)
    assert not torch.allclose(expected["logits_block_causal"], expected["logits"], atol=1e-2)
