"""LLaDA and Dream: published weights under Llama's and Qwen2's names, their logits, and what their loops write.

Greedy runs are replayed to the token. Of runs with random order or random tokens the counts of every step are compared,
and the first step with the draws that were recorded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2ForCausalLM, Qwen2Tokenizer

from hf_maskdiff import ConfidenceScheduler, MaskedDiffusionTextPipeline
from hf_maskdiff.conversion.text_models import dream_counts
from hf_maskdiff.masking import planned_counts
from hf_maskdiff.models.published_text import LLADA_KEYS, llama_config

# Everything where HF_MASKDIFF_GOLDEN names a folder, else the part that is kept with the tests.
GOLDEN = Path(os.environ.get("HF_MASKDIFF_GOLDEN", Path(__file__).parent / "golden"))
LLADA, DREAM = tuple(name for name in ("llada/base", "llada/gqa_tied") if (GOLDEN / name).is_dir()), "dream"
MEASURES = {"maskgit_plus": "confidence", "topk_margin": "margin", "entropy": "entropy"}


def traces(*folders: str) -> list[Any]:
    return [
        pytest.param(path, id=f"{path.parent.name}-{path.stem}")
        for folder in folders
        for path in sorted((GOLDEN / folder).glob("trace_*.safetensors"))
    ]


def read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        return file.metadata(), load_file(path)


def open_pipeline(folder: Path) -> MaskedDiffusionTextPipeline:
    words = WordLevel({f"w{i}": i for i in range(60)}, unk_token="w0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))
    pipe = MaskedDiffusionTextPipeline.from_pretrained(folder, tokenizer=tokenizer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def starts(trace: dict[str, Tensor], mask_token_id: int) -> list[Tensor]:
    """Each row without its padding, int64 `(1, length)`."""
    real = trace.get("attention_mask", torch.ones_like(trace["prompt"])).bool()
    new = trace["final"].shape[1] - trace["prompt"].shape[1]
    masks = torch.full((new,), mask_token_id)
    return [torch.cat([ids[row], masks])[None] for ids, row in zip(trace["prompt"], real, strict=True)]


@pytest.mark.parametrize("folder", [*LLADA, DREAM])
def test_logits(folder: str, tmp_path: Path) -> None:
    pipe = open_pipeline(GOLDEN / folder)
    assert type(pipe.transformer) is (Qwen2ForCausalLM if folder == DREAM else LlamaForCausalLM)
    given, expected = (
        load_file(GOLDEN / folder / "input.safetensors"),
        load_file(GOLDEN / folder / "expected.safetensors"),
    )
    ids, mask = given["input_ids"], given["attention_mask"].bool()
    pipe.save_pretrained(tmp_path)
    for opened in (pipe, MaskedDiffusionTextPipeline.from_pretrained(tmp_path)):
        with torch.no_grad():
            full, padded = opened.denoiser(ids), opened.denoiser(ids, attention_mask=mask)
        if folder == DREAM:
            before = mask.clone()
            before[:, 1:] &= mask[:, :-1]  # a row that is predicted from padding means nothing
            wanted = expected["logits_padded"]
            wanted, real = torch.cat([wanted[:, :1], wanted[:, :-1]], 1), before
            torch.testing.assert_close(full, expected["logits_shifted"], atol=5e-5, rtol=5e-5)
        else:
            wanted, real = expected["logits_attn_masked"], mask
            torch.testing.assert_close(full, expected["logits"], atol=5e-5, rtol=5e-5)
        torch.testing.assert_close(padded[real], wanted[real], atol=5e-5, rtol=5e-5)


@pytest.mark.skipif(not (GOLDEN / "released_keys").is_dir(), reason="HF_MASKDIFF_GOLDEN is not set: it has the names")
def test_every_released_weight_has_a_place() -> None:
    """Names and shapes at the released sizes, without the weights."""
    published = json.loads((GOLDEN / "llada" / "released_config.json").read_text())
    keys = json.loads((GOLDEN / "released_keys" / "llada" / "released_keys_LLaDA-8B.json").read_text())
    with torch.device("meta"):
        model = LlamaForCausalLM(llama_config(published))
    renamed = {}
    for name, shape in keys.items():
        (new,) = {re.sub(pattern, target, name) for pattern, target in LLADA_KEYS.items()} - {name}
        renamed[new] = shape[0] if isinstance(shape[0], list) else shape
    assert renamed == {name: list(weight.shape) for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("path", traces(*LLADA))
def test_llada(path: Path) -> None:
    settings, trace = read(path)
    pipe = open_pipeline(path.parent)
    length, block, steps = (int(settings[name]) for name in ("gen_length", "block_length", "steps"))
    per_block, mask = steps * block // length, pipe.mask_token_id
    masked = (trace["inputs"] == mask).sum(-1)
    counts = planned_counts(torch.tensor([block]), per_block, "linear", "even").flatten().tolist()
    assert (masked[:-1] - masked[1:]).tolist() == [[n, n] for n in (counts * (length // block))[:-1]]

    greedy = settings["temperature"] == "0.0" and settings["remasking"] == "low_confidence"
    assert pipe.scheduler.config.token_temperature == 0
    rows, final = starts(trace, mask), trace["final"]
    call = {"num_inference_steps": per_block, "block_length": block, "guidance_scale": 1 + float(settings["cfg_scale"])}
    if greedy:
        for i, row in enumerate(rows):
            output = pipe(input_ids=row, **call)
            assert output.sequences[0][-length:].tolist() == final[i, -length:].tolist()
            assert output.num_model_passes == [steps]
        return
    first, second = trace["inputs"][:2]
    with torch.no_grad():
        logits = pipe.denoiser(first)
    new = first != second
    if settings["remasking"] == "random":
        order = torch.where(first == mask, trace["rand"][0].double(), -1.0)
        drawn = logits.argmax(-1)
    else:
        noise = -float(settings["temperature"]) * torch.log(-torch.log(trace["rand_f64"][0]))
        drawn = (logits.double() + noise).argmax(-1)
        order = torch.where(first == mask, logits.softmax(-1).gather(-1, drawn[..., None])[..., 0].double(), -1.0)
    order[:, first.shape[1] - length + block :] = -1
    chosen = torch.zeros_like(new).scatter(1, order.topk(counts[0]).indices, True)
    assert torch.equal(new, chosen)
    assert torch.equal(second[new], drawn[new])


@pytest.mark.parametrize("path", traces(DREAM))
def test_dream(path: Path) -> None:
    settings, trace = read(path)
    pipe = open_pipeline(path.parent)
    length, steps, mask = int(settings["max_new_tokens"]), int(settings["steps"]), pipe.mask_token_id
    table = dream_counts(length, steps, float(settings["eps"]))

    first, second = trace["inputs"][:2]
    with torch.no_grad():
        logits = pipe.denoiser(first, attention_mask=None)
    new = first != second
    if settings["alg"] == "origin":  # each position by a coin of its own: no count is planned
        coins = trace["rand_flat"][: int(trace["rand_lens"][0])]
        assert torch.equal(new[first == mask], coins < (1 - float(settings["eps"])) / steps)
        assert torch.equal(second[new], logits.argmax(-1)[new])
        return
    masked = (trace["inputs"] == mask).sum(-1)
    assert masked.tolist() == [[length - done] * 2 for done in [0, *table[:-1]]]
    if settings["temperature"] == "0.0":
        pipe.scheduler = ConfidenceScheduler(mask, None, table, measure=MEASURES[settings["alg"]], token_temperature=0)
        for i, row in enumerate(starts(trace, mask)):
            made = pipe(input_ids=row, num_inference_steps=steps).sequences[0]
            assert made[-length:].tolist() == trace["final"][i, -length:].tolist()
        return
    allowed = logits / float(settings["temperature"])
    best = allowed.topk(int(settings["top_k"])).indices
    assert bool((best[new] == second[new][:, None]).any(-1).all())


def test_repositories_bring_their_own_tokenizers(tmp_path: Path) -> None:
    """LLaDA's is a file of tokenizers; Dream's is Qwen2's under a class of its own, whose code is not run."""
    words = {f"w{i}": i for i in range(60)}
    llada = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), eos_token="w3")
    for folder in (LLADA[-1], DREAM):
        opened = tmp_path / Path(folder).name
        shutil.copytree(GOLDEN / folder, opened, ignore=shutil.ignore_patterns("trace_*", "expected*", "input*"))
        opened.chmod(0o755)
        if folder != DREAM:
            llada.save_pretrained(opened)
            continue
        settings = {"eos_token": "<|endoftext|>", "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer"]}}
        (opened / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "DreamTokenizer"}))
        letters = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet())[:50])}
        (opened / "vocab.json").write_text(json.dumps(letters | {"<|endoftext|>": 50, "<|im_end|>": 51}))
        (opened / "merges.txt").write_text("#version: 0.2\n")
    for folder, tokenizer, prompt, ends in (
        (LLADA[-1], PreTrainedTokenizerFast, "w7", [3]),
        (DREAM, Qwen2Tokenizer, "AB", [1, 50, 51]),
    ):
        pipe = MaskedDiffusionTextPipeline.from_pretrained(tmp_path / Path(folder).name)
        pipe.set_progress_bar_config(disable=True)
        assert isinstance(pipe.tokenizer, tokenizer)
        assert pipe.config.eos_token_ids == ends
        assert pipe(prompt, max_new_tokens=4, num_inference_steps=2).texts[0].startswith(prompt)
