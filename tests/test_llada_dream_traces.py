"""LLaDA and Dream: published weights under Llama's and Qwen2's names, their logits, and what their loops write.

All runs are replayed to the token, those with random order or random tokens with the draws that were recorded. Every
model and run in the golden folder is a case; names, sizes and settings are its own.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from golden_data import COMMITTED, GOLDEN, Model, cases, read, rows_left
from replay import as_recorded
from text_replay import Run, config_of, everywhere, number, open_pipeline, starts
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
from hf_maskdiff.published.families import LLADA_KEYS, llama_config
from hf_maskdiff.sampling import Marginals
from hf_maskdiff.schedulers import position_orders

# Everything where HF_MASKDIFF_GOLDEN names a folder, else the part that is kept with the tests.
FOLDER = GOLDEN or COMMITTED
MODELS = cases("llada/*/config.json", folder=FOLDER) + cases("dream/config.json", folder=FOLDER)
MEASURES = {"maskgit_plus": "confidence", "topk_margin": "margin", "entropy": "entropy"}


def is_dream(folder: Path) -> bool:
    return config_of(folder)["model_type"] == "Dream"


@pytest.mark.parametrize("config", MODELS)
def test_logits(config: Path, tmp_path: Path) -> None:
    folder = config.parent
    pipe = open_pipeline(folder)
    assert type(pipe.transformer) is (Qwen2ForCausalLM if is_dream(folder) else LlamaForCausalLM)
    given, expected = Model(folder).inputs, Model(folder).expected
    ids, mask = given["input_ids"], given["attention_mask"].bool()
    pipe.save_pretrained(tmp_path)
    for opened in (pipe, MaskedDiffusionTextPipeline.from_pretrained(tmp_path)):
        with torch.no_grad():
            full, padded = opened.denoiser(ids), opened.denoiser(ids, attention_mask=mask)
        if is_dream(folder):
            before = mask.clone()
            before[:, 1:] &= mask[:, :-1]  # a row that is predicted from padding means nothing
            wanted = expected["logits_padded"]
            wanted, real = torch.cat([wanted[:, :1], wanted[:, :-1]], 1), before
            torch.testing.assert_close(full, expected["logits_shifted"], atol=5e-5, rtol=5e-5)
        else:
            wanted, real = expected["logits_attn_masked"], mask
            torch.testing.assert_close(full, expected["logits"], atol=5e-5, rtol=5e-5)
        torch.testing.assert_close(padded[real], wanted[real], atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("path", cases("released_keys/llada/*.json"))
def test_every_released_weight_has_a_place(path: Path) -> None:
    """Names and shapes at the released sizes, without the weights."""
    published = json.loads((path.parents[2] / "llada" / "released_config.json").read_text())
    keys = json.loads(path.read_text())
    with torch.device("meta"):
        model = LlamaForCausalLM(llama_config(published))
    renamed = {}
    for name, shape in keys.items():
        (new,) = {re.sub(pattern, target, name) for pattern, target in LLADA_KEYS.items()} - {name}
        renamed[new] = shape[0] if isinstance(shape[0], list) else shape
    assert renamed == {name: list(weight.shape) for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("path", cases("llada/*/trace_*", folder=FOLDER))
def test_llada(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_recorded(lambda: replay_llada(path, monkeypatch), monkeypatch)


def replay_llada(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, settings = read(path)
    pipe = open_pipeline(path.parent)
    length, block, steps = (int(settings[name]) for name in ("gen_length", "block_length", "steps"))
    per_block, mask = steps * block // length, pipe.mask_token_id
    left = rows_left(trace["inputs"], mask)
    counts = planned_counts(torch.tensor([block]), per_block, "linear", "even").repeat(length // block, 1)
    assert torch.equal(left[:-1] - left[1:], counts[:-1].expand_as(left[1:]))

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

    if settings["remasking"] == "random" and float(settings["temperature"]):
        pytest.skip("random order of random tokens is no scheduler of ours: its draws are stored for each alone")
    if settings["remasking"] == "random":  # the order is noise, tokens are the most probable ones
        pipe.scheduler = UniformScheduler.from_config(config, top_k=1, choice_temperature=None)
        monkeypatch.setattr(position_orders, "uniform", lambda *_: now(trace["rand"]))
    elif float(settings["temperature"]):  # the order is how probable the token is that was drawn: MaskGIT's
        pipe.scheduler = MaskGITScheduler.from_config(config, choice_temperature=0.0)

        def draw_all(marginals: Marginals, wanted: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
            noise = -float(settings["temperature"]) * (-now(trace["rand_f64"]).log()).log()
            logits = everywhere(marginals, wanted.shape)
            tokens = (logits.double() + noise).argmax(-1)
            return tokens, logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0].double()

        monkeypatch.setattr(Marginals, "draw_all", draw_all)
    states = run(**call)
    assert torch.equal(states[:-1], trace["inputs"])
    assert torch.equal(states[-1], final)


@pytest.mark.parametrize("path", cases("dream/trace_*", folder=FOLDER))
def test_dream(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_recorded(lambda: replay_dream(path, monkeypatch), monkeypatch)


def replay_dream(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, settings = read(path)
    pipe = open_pipeline(path.parent)
    length, steps, mask = int(settings["max_new_tokens"]), int(settings["steps"]), pipe.mask_token_id
    greedy = not number(settings, "temperature") and not number(settings, "alg_temp")
    recorded = torch.cat([trace["inputs"], trace["final"][None]])
    assert torch.equal(recorded[1:], trace["history"])
    if settings["alg"] == "origin":  # each position by a coin of its own: no count is planned
        if not greedy:
            pytest.skip("the coins of this order are stored, the draws of its tokens are not")
        pipe.scheduler = AncestralScheduler(mask, top_k=1)
        coins = trace["rand_flat"].double().split(trace["rand_lens"].tolist())

        def uniform(context: StepContext, purpose: object) -> Tensor:
            noise = torch.ones(context.tokens.shape, dtype=torch.float64)
            return noise.masked_scatter_(context.masked, coins[context.step_index])

        monkeypatch.setattr(StepContext, "uniform", uniform)
    else:
        table = dream_counts(length, steps, float(settings["eps"]))
        left = rows_left(recorded, mask).unique_consecutive(dim=0)  # steps that reveal nothing are not in the table
        assert torch.equal(left, length - torch.tensor([0, *table])[:, None].expand_as(left))
        pipe.scheduler = ConfidenceScheduler(mask, None, table, measure=MEASURES[settings["alg"]], token_temperature=0)
        steps = len(table)
    rows = starts(trace, mask)
    if greedy and "attention_mask" in trace:
        for i, row in enumerate(rows):
            made = pipe(input_ids=row, num_inference_steps=steps).sequences[0]
            assert made[-length:].tolist() == trace["final"][i, -length:].tolist()
        return
    if greedy:
        states = Run(pipe, torch.cat(rows))(num_inference_steps=steps)
    else:
        states = drawn_states(pipe, torch.cat(rows), rows_left(recorded, mask)[:, 0], settings)
    assert torch.equal(states.unique_consecutive(dim=0), recorded.unique_consecutive(dim=0))


@torch.no_grad()
def drawn_states(pipe: MaskedDiffusionTextPipeline, ids: Tensor, left: Tensor, settings: dict[str, str]) -> Tensor:
    """A run whose draws are those of torch's global generator: first all tokens, then which of them are written.

    The nucleus is taken before the `top_k` most probable tokens, in our schedulers after them.
    """
    temperature, spread, top_p, top_k = (number(settings, key) for key in ("temperature", "alg_temp", "top_p", "top_k"))
    if torch.__version__ < (2, 13):
        pytest.skip("torch.multinomial draws other codes from a seed before torch 2.13")
    torch.manual_seed(int(settings["seed"]))
    states = [ids]
    for count in (left[:-1] - left[1:]).tolist():
        ids, masked = ids.clone(), ids == pipe.mask_token_id
        nucleus = Marginals(pipe.denoiser(ids), -1, temperature=temperature or 1.0, top_p=top_p or None)
        (rows,) = nucleus.reduce(lambda block: (block,), masked.flatten().nonzero()[:, 0])
        allowed = Marginals(rows[None], -1, top_k=int(top_k) or None)
        (rows,) = allowed.reduce(lambda block: (block,), torch.arange(len(rows)))
        probs = rows.softmax(-1)
        drawn = torch.multinomial(probs, 1, True)[:, 0] if temperature else probs.argmax(-1)
        certainty = torch.full(ids.shape, -torch.inf)
        certainty.masked_scatter_(masked, certainty_of(settings["alg"], rows, drawn))
        tokens = torch.zeros_like(ids).masked_scatter_(masked, drawn)
        drawn_order = torch.multinomial((certainty / spread).softmax(-1), count) if spread and count else None
        chosen = certainty.topk(count).indices if drawn_order is None else drawn_order
        ids.scatter_(1, chosen, tokens.gather(1, chosen))
        states.append(ids)
    return torch.stack(states)


def certainty_of(alg: str, rows: Tensor, drawn: Tensor) -> Tensor:
    """Of logits `(n, vocab_size)` and the tokens drawn from them, `(n,)`."""
    if alg == "entropy":
        return negative_entropy(rows.clone())
    probs = rows.softmax(-1)
    if alg == "maskgit_plus":
        return probs.gather(-1, drawn[:, None])[:, 0]
    first, second = probs.topk(2).values.T
    return first - second


@pytest.mark.parametrize("config", MODELS)
def test_repositories_bring_their_own_tokenizers(config: Path, tmp_path: Path) -> None:
    """LLaDA's is a file of tokenizers; Dream's is Qwen2's under a class of its own, whose code is not run."""
    opened, published = tmp_path / "opened", config_of(config.parent)
    shutil.copytree(config.parent, opened, ignore=shutil.ignore_patterns("trace_*", "expected*", "input*"))
    opened.chmod(0o755)
    end, free = published["eos_token_id"], list(range(published["vocab_size"]))
    for taken in (published["mask_token_id"], end):
        free.remove(taken)
    if is_dream(config.parent):
        settings = {"eos_token": "<|endoftext|>", "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer"]}}
        (opened / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "DreamTokenizer"}))
        names = [*sorted(ByteLevel.alphabet())[32:40], "<|endoftext|>", "<|im_end|>"]
        assert names[:2] == ["A", "B"]
        (opened / "vocab.json").write_text(json.dumps(dict(zip(names, free, strict=False))))
        (opened / "merges.txt").write_text("#version: 0.2\n")
        tokenizer, prompt, ends = Qwen2Tokenizer, "AB", sorted([end, *free[8:10]])
    else:
        words = WordLevel({f"w{i}": i for i in range(published["vocab_size"])}, unk_token="w0")
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token=f"w{end}").save_pretrained(opened)
        tokenizer, prompt, ends = PreTrainedTokenizerFast, f"w{free[7]}", [end]
    pipe = MaskedDiffusionTextPipeline.from_pretrained(opened)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.tokenizer, tokenizer)
    assert pipe.config.eos_token_ids == ends
    assert pipe(prompt, max_new_tokens=4, num_inference_steps=2).texts[0].startswith(prompt)
