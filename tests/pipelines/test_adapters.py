"""Models with LoRA adapters, and models of 8 bits: what people load is what is run."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging import version
from safetensors.torch import load_file, save_file
from tiny_weights import draw_weights
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

from hf_maskdiff import MaskedDiffusionTextPipeline, PartialCacheConfig
from hf_maskdiff.denoisers import TransformersDenoiser, transformers_pass

VOCAB, MASK = 24, 23
IS_OLD = version.parse(transformers.__version__) < version.parse("5.1")


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(VOCAB - 1)} | {"[M]": MASK}
    core = Tokenizer(WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, mask_token="[M]", unk_token="w0")


def model_of(name: str, width: int = 32, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 2 * width}
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "mask_token_id": MASK}
    config = AutoConfig.for_model(name, vocab_size=VOCAB, max_position_embeddings=64, **sizes, **special)
    auto = AutoModelForMaskedLM if name == "bert" else AutoModelForCausalLM
    model = auto.from_config(config).eval()
    draw_weights(model, bias=0.1)
    return model


def texts(pipe: MaskedDiffusionTextPipeline) -> list[list[int]]:
    pipe.set_progress_bar_config(disable=True)
    call = {"max_new_tokens": 8, "num_inference_steps": 4, "stop_at_eos": False}
    return [ids.tolist() for ids in pipe(["w3 w4", "w5 [MASK:2] w6"], **call).sequences]


@pytest.fixture(params=["bert", "llama"])
def adapted(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any, Path, Path]:
    """A PeftModel, the same with its adapter merged, and the folders of the base and of the adapter."""
    peft = pytest.importorskip("peft", reason='peft is not installed: pip install -e ".[test]"')
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model_of(request.param).save_pretrained(base)
    tokenizer().save_pretrained(base)
    auto = AutoModelForMaskedLM if request.param == "bert" else AutoModelForCausalLM
    layers = ["query", "value"] if request.param == "bert" else ["q_proj", "v_proj"]

    def tuned() -> Any:
        torch.manual_seed(1)
        config = peft.LoraConfig(r=4, lora_alpha=400, target_modules=layers, init_lora_weights=False)
        return peft.get_peft_model(auto.from_pretrained(base), config).eval()

    tuned().save_pretrained(adapter)
    return tuned(), tuned().merge_and_unload(), base, adapter


@pytest.mark.skipif(IS_OLD, reason="transformers 5.0 finds no place for the adapters of BERT, and they are refused")
def test_an_adapter_writes_what_the_merged_model_writes(adapted: tuple[Any, Any, Path, Path]) -> None:
    model, merged, base, adapter = adapted
    plain = texts(MaskedDiffusionTextPipeline.from_pretrained(base))
    expected = texts(MaskedDiffusionTextPipeline.from_model(merged, tokenizer()))
    assert expected != plain
    assert texts(MaskedDiffusionTextPipeline.from_model(model, tokenizer())) == expected
    assert texts(MaskedDiffusionTextPipeline.from_pretrained(adapter)) == expected
    late = MaskedDiffusionTextPipeline.from_pretrained(base)
    late.transformer.load_adapter(str(adapter))
    assert texts(late) == expected
    late.transformer.disable_adapters()
    assert texts(late) == plain


@pytest.mark.parametrize("names", ["model.transformer.blocks", "model.nothing"])
def test_an_adapter_for_other_layers_is_refused(adapted: tuple[Any, Any, Path, Path], names: str) -> None:
    """As one that was trained on LLaDA's own code: its layers have the same last names, and its weights no place."""
    _, _, _, adapter = adapted
    weights = load_file(adapter / "adapter_model.safetensors")
    other = {re.sub(r"base_model\.model\.(\w+)\.\w+", rf"base_model.model.{names}", k): v for k, v in weights.items()}
    assert not other.keys() & weights.keys()
    save_file(other, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"the adapter .* must fit .*, got one for other layers.*without a place"):
        MaskedDiffusionTextPipeline.from_pretrained(adapter)


def test_partial_caching_sees_the_adapter(adapted: tuple[Any, Any, Path, Path]) -> None:
    model, merged, _, _ = adapted
    ids, at = torch.randint(3, 20, (2, 12)), torch.tensor([[1, 5, 7], [0, 2, 11]])
    logits = []
    for one in (model.get_base_model(), merged):
        denoiser = TransformersDenoiser(one)
        cache = denoiser.new_cache()
        with torch.no_grad():
            denoiser(ids, cache=cache)
            logits.append(denoiser(ids.gather(1, at).flip(1), positions=at, cache=cache))
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


def test_a_folder_cannot_hold_an_adapter(adapted: tuple[Any, Any, Path, Path], tmp_path: Path) -> None:
    model, merged, _, _ = adapted
    with pytest.raises(ValueError, match=r"a pipeline must be saved without adapters.*merge_and_unload"):
        MaskedDiffusionTextPipeline.from_model(model, tokenizer()).save_pretrained(tmp_path / "pipe")
    pipe = MaskedDiffusionTextPipeline.from_model(merged, tokenizer())
    pipe.save_pretrained(tmp_path / "merged")
    assert texts(MaskedDiffusionTextPipeline.from_pretrained(tmp_path / "merged")) == texts(pipe)


# --- 8 bits -----------------------------------------------------------------------------------------------------------


class RoundedByBatch(torch.nn.Module):
    """A linear layer as 8-bit kernels compute it: input rounded to 2047 steps of the batch's largest number."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.linear, self.weight, self.bias = linear, linear.weight, linear.bias

    def forward(self, states: Tensor) -> Tensor:
        step = states.abs().amax().clamp(min=1e-8) / 2047
        return self.linear((states / step).round() * step)


def rounded(model: Any) -> Any:
    """The model with its layers of `torch.nn.Linear` so, the head aside."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear) and child is not model.get_output_embeddings():
                setattr(module, name, RoundedByBatch(child))
    return model


@pytest.mark.parametrize("name", ["bert", "llama"])
@torch.no_grad()
def test_models_whose_rows_are_not_quite_independent_are_taken(name: str) -> None:
    """They were refused as not bidirectional: a padded token moved logits a little, a real one a lot."""
    denoiser = TransformersDenoiser(rounded(model_of(name)))
    ids = torch.randint(3, 20, (3, 12), generator=torch.Generator().manual_seed(0))
    cache = denoiser.new_cache()
    exact = TransformersDenoiser(model_of(name))(ids)
    logits = denoiser(ids, cache=cache)
    assert 0 < denoiser._abilities.noise < 0.1
    assert (logits - exact).norm() < 0.05 * exact.norm()
    again = denoiser(ids[:, :4], positions=torch.arange(4).expand(3, -1), cache=cache)
    assert (again - logits[:, :4]).norm() < 0.05 * logits.norm()


@torch.no_grad()
def test_dynamically_quantized_models_are_taken() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(model_of("llama", 64), {torch.nn.Linear}, dtype=torch.qint8)
        pipe = MaskedDiffusionTextPipeline.from_model(model, tokenizer())
        pipe.enable_cache(PartialCacheConfig())
        assert len(texts(pipe)) == 2


@pytest.mark.parametrize("seed", [1, 2])
@torch.no_grad()
def test_noise_does_not_make_a_causal_model_bidirectional(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise, in a decoder that no argument makes bidirectional: still refused.

    In these two a token does move what stands before it, by rounding alone.
    """
    model = rounded(model_of("llama", seed=seed))
    forward = type(model).forward

    def stubborn(self: Any, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False) -> Any:
        mask = None if attention_mask is None or attention_mask.ndim > 2 else attention_mask
        return forward(self, input_ids=input_ids, attention_mask=mask, use_cache=False)

    monkeypatch.setattr(type(model), "forward", stubborn)
    transformers_pass._arguments_of.cache_clear()
    with pytest.raises(ValueError, match="a denoiser must be bidirectional, got LlamaForCausalLM"):
        TransformersDenoiser(model)(torch.randint(3, 20, (2, 8)))
    transformers_pass._arguments_of.cache_clear()
