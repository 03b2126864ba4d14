"""LLaDA and Dream: published weights under Llama's and Qwen2's names, their logits, and what their loops write.

All runs are replayed to the token, those with random order or random tokens with the draws that were recorded.
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

from hf_maskdiff import (
    AncestralScheduler,
    ConfidenceScheduler,
    MaskedDiffusionTextPipeline,
    MaskGITScheduler,
    StepContext,
    UniformScheduler,
)
from hf_maskdiff.conversion.text_models import dream_counts
from hf_maskdiff.masking import planned_counts
from hf_maskdiff.orders import negative_entropy
from hf_maskdiff.published.text_models import LLADA_KEYS, llama_config
from hf_maskdiff.sampling import Marginals
from hf_maskdiff.schedulers import position_orders

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


class Run:
    """A run of a pipeline: all that is written before each step and after the last one, each `(batch_size, length)`."""

    def __init__(self, pipe: MaskedDiffusionTextPipeline, ids: Tensor) -> None:
        self.pipe, self.states = pipe, [ids]

    def block(self, size: int, num_steps: int) -> slice:
        """Where the current block of `size` tokens stands, `num_steps` steps a block."""
        first = self.states[0]
        prompt_length = int((first[0] != self.pipe.mask_token_id).sum()) if size < first.shape[1] else 0
        start = prompt_length + (len(self.states) - 1) // num_steps * size
        return slice(start, start + size)

    def __call__(self, num_inference_steps: int, **call: Any) -> Tensor:
        def keep(pipe: object, step: int, timestep: object, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            state = self.states[-1].clone()
            size = tensors["sequences"].shape[1]
            state[:, self.block(size, num_inference_steps)] = tensors["sequences"]
            self.states.append(state)
            return tensors

        call |= {"callback_on_step_end": keep, "callback_on_step_end_tensor_inputs": ["sequences"]}
        self.pipe(input_ids=self.states[0], num_inference_steps=num_inference_steps, **call)
        return torch.stack(self.states)


@pytest.mark.parametrize("path", traces(*LLADA))
def test_llada(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, trace = read(path)
    pipe = open_pipeline(path.parent)
    length, block, steps = (int(settings[name]) for name in ("gen_length", "block_length", "steps"))
    per_block, mask = steps * block // length, pipe.mask_token_id
    masked = (trace["inputs"] == mask).sum(-1)
    counts = planned_counts(torch.tensor([block]), per_block, "linear", "even").flatten().tolist()
    assert (masked[:-1] - masked[1:]).tolist() == [[n, n] for n in (counts * (length // block))[:-1]]

    assert pipe.scheduler.config.token_temperature == 0
    rows, final = starts(trace, mask), trace["final"]
    call = {"num_inference_steps": per_block, "block_length": block, "guidance_scale": 1 + float(settings["cfg_scale"])}
    if "attention_mask" in trace:
        for i, row in enumerate(rows):
            output = pipe(input_ids=row, **call)
            assert output.sequences[0][-length:].tolist() == final[i, -length:].tolist()
            assert output.num_model_passes == [steps]
        return
    run, config = Run(pipe, torch.cat(rows)), pipe.scheduler.config

    def now(noise: Tensor) -> Tensor:  # of this step, at the current block
        return noise[len(run.states) - 1][:, run.block(block, per_block)]

    if settings["remasking"] == "random":  # the order is noise, tokens are the most probable ones
        pipe.scheduler = UniformScheduler.from_config(config, top_k=1, choice_temperature=None)
        monkeypatch.setattr(position_orders, "uniform", lambda *_: now(trace["rand"]))
    elif settings["temperature"] != "0.0":  # the order is how probable the token is that was drawn: MaskGIT's
        pipe.scheduler = MaskGITScheduler.from_config(config, choice_temperature=0.0)

        def draw_all(marginals: Marginals, wanted: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
            noise = -float(settings["temperature"]) * (-now(trace["rand_f64"]).log()).log()
            tokens = (marginals.logits.double() + noise).argmax(-1)
            return tokens, marginals.logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0].double()

        monkeypatch.setattr(Marginals, "draw_all", draw_all)
    states = run(**call)
    assert torch.equal(states[:-1], trace["inputs"])
    assert torch.equal(states[-1], final)


@pytest.mark.parametrize("path", traces(DREAM))
def test_dream(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, trace = read(path)
    pipe = open_pipeline(path.parent)
    length, steps, mask = int(settings["max_new_tokens"]), int(settings["steps"]), pipe.mask_token_id
    table = dream_counts(length, steps, float(settings["eps"]))
    rows, greedy = starts(trace, mask), settings["temperature"] == "0.0"
    masked = (trace["inputs"] == mask).sum(-1)
    if settings["alg"] == "origin":  # each position by a coin of its own: no count is planned
        pipe.scheduler = AncestralScheduler(mask, top_k=1)
        coins = trace["rand_flat"].double().split(trace["rand_lens"].tolist())

        def uniform(context: StepContext, purpose: object) -> Tensor:
            noise = torch.ones(context.tokens.shape, dtype=torch.float64)
            return noise.masked_scatter_(context.masked, coins[context.step_index])

        monkeypatch.setattr(StepContext, "uniform", uniform)
    else:
        assert masked.tolist() == [[length - done] * 2 for done in [0, *table[:-1]]]
        pipe.scheduler = ConfidenceScheduler(mask, None, table, measure=MEASURES[settings["alg"]], token_temperature=0)
    if greedy and "attention_mask" in trace:
        for i, row in enumerate(rows):
            made = pipe(input_ids=row, num_inference_steps=steps).sequences[0]
            assert made[-length:].tolist() == trace["final"][i, -length:].tolist()
        return
    if greedy:
        states = Run(pipe, torch.cat(rows))(num_inference_steps=steps)
    else:
        states = drawn_states(pipe, torch.cat(rows), table, settings)
    assert torch.equal(states[:-1], trace["inputs"])
    assert torch.equal(states[1:], trace["history"])
    assert torch.equal(states[-1], trace["final"])


@torch.no_grad()
def drawn_states(pipe: MaskedDiffusionTextPipeline, ids: Tensor, table: list[int], settings: dict[str, str]) -> Tensor:
    """A run whose draws are those of torch's global generator: first all tokens, then which of them are written.

    The nucleus is taken before the `top_k` most probable tokens, in our schedulers after them.
    """
    mask, temperature = pipe.mask_token_id, float(settings["temperature"])
    if torch.__version__ < (2, 13):
        pytest.skip("torch.multinomial draws other codes from a seed before torch 2.13")
    torch.manual_seed(int(settings["seed"]))
    states = [ids]
    for count in torch.tensor([0, *table]).diff().tolist():
        ids, masked = ids.clone(), ids == mask
        nucleus = Marginals(pipe.denoiser(ids), -1, temperature=temperature, top_p=float(settings["top_p"]))
        (rows,) = nucleus.reduce(lambda block: (block,), masked.flatten().nonzero()[:, 0])
        allowed = Marginals(rows[None], -1, top_k=int(settings["top_k"]))
        (rows,) = allowed.reduce(lambda block: (block,), torch.arange(len(rows)))
        certainty = torch.full(ids.shape, -torch.inf).masked_scatter_(masked, negative_entropy(rows.clone()))
        tokens = torch.zeros_like(ids).masked_scatter_(masked, torch.multinomial(rows.softmax(-1), 1, True)[:, 0])
        chosen = torch.multinomial((certainty / float(settings["alg_temp"])).softmax(-1), count)
        ids.scatter_(1, chosen, tokens.gather(1, chosen))
        states.append(ids)
    return torch.stack(states)


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
