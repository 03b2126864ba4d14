"""Recorded runs of models that see blocks from left to right: the same tokens, with no more passes and positions.

dLLM's BD3LM, SDAR, LLaDA2's pipeline and BD3-LM. Each run in the golden folder is a case; names, sizes and settings are
its own. What an original draws is fed to ours.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_data import later_cases, read, settings_of
from small_models import change_json, save_tokenizer
from torch import Tensor

from hf_maskdiff import (
    AncestralScheduler,
    ConfidenceScheduler,
    FirstHittingScheduler,
    MaskedDiffusionTextPipeline,
    StepContext,
    ThresholdScheduler,
)
from hf_maskdiff.pipelines import pipeline_masked_diffusion_text
from hf_maskdiff.pipelines.text_windows import BlockGrid
from hf_maskdiff.sampling import Marginals

NOTHING = 1.0  # a threshold that no probability exceeds


def opened(folder: Path, tmp_path: Path, config: dict[str, Any], **said: Any) -> MaskedDiffusionTextPipeline:
    """A golden model whose `config.json` says `config` besides."""
    settings = json.loads((folder / "config.json").read_text())
    copy = tmp_path / "model"
    shutil.copytree(folder, copy, ignore=lambda _, names: [name for name in names if name.split(".")[0] != "model"])
    copy.chmod(0o755)
    shutil.copy(folder / "config.json", copy)
    (copy / "config.json").chmod(0o644)
    change_json(copy / "config.json", lambda settings: settings | config)
    words = save_tokenizer(tmp_path / "words", settings["vocab_size"] - (settings["model_type"] == "bd3lm"))
    pipe = MaskedDiffusionTextPipeline.from_pretrained(copy, tokenizer=str(words), **said)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def thinned(found: list[Any]) -> list[Any]:
    """Every third of these cases in each run of the tests, the others in exhaustive ones."""
    exhaustive = (pytest.mark.exhaustive,)
    return [
        pytest.param(*case.values, id=case.id, marks=(*case.marks, *(exhaustive if i % 3 else ())))
        for i, case in enumerate(found)
    ]


class Passes:
    """Counts the passes of a model and the positions that they compute in each row."""

    def __init__(self, pipe: MaskedDiffusionTextPipeline) -> None:
        self.count = self.positions = 0
        ids = torch.zeros(1, 4, dtype=torch.int64)  # so that the probe's passes are not counted
        pipe.denoiser(ids, cache=pipe.denoiser.new_cache())
        model = pipe.transformer
        embedding = getattr(model, "get_input_embeddings", lambda: model)()  # a hook there leaves passes direct
        embedding.register_forward_pre_hook(self._look)

    def _look(self, embedding: object, args: tuple[Tensor]) -> None:
        self.count, self.positions = self.count + 1, self.positions + args[0].shape[1]


def even(total: int, num_steps: int) -> list[int]:
    """How many of `total` each step takes, the first ones more."""
    return [total // num_steps + (step < total % num_steps) for step in range(num_steps)]


def cumulative(counts: list[int]) -> list[int]:
    return [sum(counts[: i + 1]) for i in range(len(counts))]


class OfWholeBlocks(ThresholdScheduler):
    """Reveals in each step at least as many as the originals, whose counts are of whole blocks."""

    def with_counts(self, counts: list[int]) -> OfWholeBlocks:
        self.counts = counts
        return self

    def share_of_step(self, context: StepContext) -> Tensor:
        return torch.full_like(context.remaining, self.counts[min(context.step_index, len(self.counts) - 1)])


class LeftToRight(OfWholeBlocks):
    """The next ones, whatever the model is sure of."""

    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        scores = super().score_positions(marginals, context)
        return -1 - torch.arange(scores.shape[1], dtype=scores.dtype).expand_as(scores)


class Draws:
    """Tokens as they were drawn in a race with recorded exponentials, one pass after the other.

    Args:
        noise: of all positions of the block in each pass, `(passes, block, V)`.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, noise: Tensor) -> None:
        self.noise, self.tokens = iter(noise), Tensor()
        monkeypatch.setattr(Marginals, "draw_all", lambda *given: self.draw_all(*given))
        monkeypatch.setattr(Marginals, "draw", lambda marginals, rows, *given: self.tokens.flatten()[rows])

    def draw_all(self, marginals: Marginals, wanted: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        noise = next(self.noise)[-wanted.shape[1] :][wanted[0]]
        rows = wanted.flatten().nonzero()[:, 0]
        (probs,) = marginals.reduce(lambda block: (block.softmax(-1),), rows)
        drawn = (probs / noise[:, : probs.shape[1]]).argmax(-1)
        self.tokens, scores = torch.zeros(wanted.shape, dtype=torch.int64), torch.zeros(wanted.shape)
        self.tokens[wanted], scores[wanted] = drawn, probs.gather(1, drawn[:, None])[:, 0].log()
        return self.tokens, scores


# --- dLLM -------------------------------------------------------------------------------------------------------------


def is_greedy(path: Path) -> bool:
    settings = settings_of(path)
    return float(settings["temperature"]) == 0 and settings.get("remasking") != "random"


def dllm_counts(block_size: int, num_steps: int) -> list[int]:
    """How many of a whole block each step reveals; steps that reveal nothing are left out."""
    counts = []
    for left in range(num_steps, 0, -1):
        counts.append(round((block_size - sum(counts)) / left))
    return [count for count in counts if count]


@pytest.mark.parametrize("path", thinned(later_cases("dllm_bd3lm/trace_bd3lm_*", is_greedy)))
def test_dllm(path: Path, tmp_path: Path) -> None:
    trace, settings = read(path)
    size, new = int(settings["block_size"]), int(settings["max_new_tokens"])
    num_blocks = -(-new // size)
    steps = int(settings.get("steps_per_block", 0)) or -(-int(settings["steps"]) // num_blocks)
    said = {"attention": "block_causal", "block_size": size, "blocks_from": "prompt"}
    config = {"mask_token_id": int(settings["mask_token_id"])}
    pipe = opened(path.parent, tmp_path, config, **said)
    pipe.register_to_config(shift_logits=settings.get("right_shift_logits") == "true")
    counts, end = dllm_counts(size, steps), int(settings["eos_token_id"])
    pipe.scheduler = ConfidenceScheduler(
        config["mask_token_id"], masking_schedule=cumulative(counts), token_temperature=0
    )
    pipe.register_to_config(eos_token_ids=[end])
    prompts = [trace[f"input_{i}"] for i in range(len(trace["final"]))]
    passes = Passes(pipe)
    output = pipe(
        input_ids=[ids.tolist() for ids in prompts],
        num_inference_steps=len(counts),
        max_new_tokens=new,
        guidance_scale=float(settings.get("cfg_scale", 0)) + 1,
        stop_at_eos=True,
        output_type="ids",
    )
    for ids, final, prompt in zip(output.sequences, trace["final"], prompts, strict=True):
        expected = final[int((final != int(settings["pad_token_id"])).long().argmax()) :]
        assert torch.equal(ids, expected[: len(ids)])
        ended = (expected[len(prompt) :] == end).nonzero()
        assert len(ids) == (len(prompt) + int(ended[0]) + 1 if len(ended) else len(expected))
    # The original computes all that stands before a block once more, in a pass of its own.
    guided = 2 if "cfg_scale" in settings and float(settings["cfg_scale"]) else 1
    num_parts = len({*trace["past_len"].tolist()} - {0})
    assert passes.count <= int(settings["n_calls"]) - guided * num_parts
    assert passes.positions <= int(settings["n_positions"])


# --- SDAR -------------------------------------------------------------------------------------------------------------


def changes_nothing_known(path: Path) -> bool:
    """Where fewer masks are left than it wants to reveal, the original writes over known tokens; ours never does."""
    trace, settings = read(path)
    states = torch.cat([trace["canvas"][:, 0], trace["final"]])
    written = states[:-1] != int(settings["mask_id"])
    return bool((states[1:] == states[:-1])[written].all()) and settings.get("top_k") != "1"


@pytest.mark.parametrize("path", thinned(later_cases("sdar/trace_*", changes_nothing_known)))
def test_sdar(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its confidence is that of the token drawn; with `top_k=1` all are the same, so that their order is not ours."""
    trace, settings = read(path)
    size, steps = int(settings["block_length"]), int(settings["denoising_steps"])
    pipe = opened(path.parent, tmp_path, {"block_size": size})
    strategy = settings["remasking_strategy"]
    stops = json.loads(settings["stopping_criteria_idx"])
    pipe.scheduler = (LeftToRight if strategy == "sequential" else OfWholeBlocks)(
        int(settings["mask_id"]),
        temperature=float(settings["temperature"]),
        top_k=int(settings["top_k"]) if int(settings.get("top_k", 0)) else None,
        top_p=float(settings.get("top_p", 1)),
        threshold=float(settings["confidence_threshold"]) if strategy == "low_confidence_dynamic" else NOTHING,
        follow_schedule=True,
        measure="drawn",
    ).with_counts(even(size, steps))
    if stops:
        pipe.register_to_config(eos_token_ids=stops)
    prompt, final = trace["prompt"], trace["final"][0]
    passes = Passes(pipe)
    Draws(monkeypatch, trace["draw_exp"])
    (ids,) = pipe(
        input_ids=prompt,
        max_new_tokens=len(final) - prompt.shape[1],
        num_inference_steps=size + 1,  # a last step would reveal whatever is left
        stop_at_eos=bool(stops),
        output_type="ids",
    ).sequences
    assert torch.equal(ids, final[: len(ids)])
    assert len(ids) == len(final) or int(ids[-1]) in stops
    denoising = trace["kind"] == 2  # the other passes store what is finished; here none does nothing else
    assert passes.count <= int(denoising.sum())
    assert passes.count == int(denoising.sum()) or stops
    assert passes.positions <= int(trace["call_len"].sum())


# --- LLaDA2 -----------------------------------------------------------------------------------------------------------


def edits_nothing(path: Path) -> bool:
    return settings_of(path)["editing_threshold"] in ("null", "None")


@pytest.mark.parametrize("path", thinned(later_cases("llada2/trace_*", edits_nothing)))
def test_llada2(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loop, whose blocks begin with the padding of each row; a row is run alone, and without padding."""
    trace, settings = read(path)
    size, length = int(settings["block_length"]), int(settings["gen_length"])
    steps = int(settings["num_inference_steps"])
    if "minimal_topk" in settings:
        steps = min(steps, length // int(settings["minimal_topk"]))
    config = {"mask_token_id": int(settings["mask_token_id"])}
    pipe = opened(path.parent, tmp_path, config, attention="block_causal", block_size=size)
    temperature, stops = float(settings["temperature"]), settings["eos_early_stop"] == "true"
    pipe.scheduler = OfWholeBlocks(
        config["mask_token_id"],
        threshold=float(settings["threshold"]),
        follow_schedule=True,
        temperature=temperature or 1.0,
        top_k=int(settings.get("top_k", 0)) or None,
        top_p=float(settings.get("top_p", 1)),
        **({"measure": "drawn"} if temperature else {"token_temperature": 0}),
    ).with_counts(even(size, steps))
    pipe.register_to_config(eos_token_ids=[int(settings["eos_token_id"])])
    passes = Passes(pipe)
    if "draw_exp" in trace:
        Draws(monkeypatch, trace["draw_exp"][trace["transfer"].flatten(1).any(1)])
    for row, (prompt, real) in enumerate(zip(trace["prompt"], trace["attention_mask"].bool(), strict=True)):
        padding = int((~real).sum())
        monkeypatch.setattr(
            pipeline_masked_diffusion_text, "grid_of", lambda *_, pad=padding: lambda _: BlockGrid(size, pad % size)
        )
        passes.count = passes.positions = 0
        call = {"input_ids": prompt[real][None], "max_new_tokens": length, "num_inference_steps": size + 1}
        (ids,) = pipe(**call, stop_at_eos=stops, output_type="ids").sequences
        expected = torch.cat([prompt[real], trace[f"final_{row}"]])
        # The original also draws what stands behind the end in the last block, in passes that ours does not need.
        compared = len(ids) - (len(expected) + padding) % size if temperature else len(ids)
        assert torch.equal(ids[:compared], expected[:compared])
        assert len(ids) == len(expected) or int(ids[-1]) == int(settings["eos_token_id"])
        assert passes.count <= int(settings["n_calls"])
        assert passes.positions <= int(trace["call_len"].sum())


# --- BD3-LM -----------------------------------------------------------------------------------------------------------


def nucleus(probs: Tensor, mass: float) -> Tensor:
    """The original's, which leaves out the token that crosses the mass, but for the first."""
    if mass >= 1:
        return probs
    ordered, order = probs.sort(-1, descending=True)
    kept = ordered.cumsum(-1) <= mass
    kept[..., 0] = True
    probs = torch.zeros_like(probs).scatter(-1, order, ordered * kept)
    return probs / probs.sum(-1, keepdim=True)


class Updates:
    """The original's updates of a block, one after the other: what it draws, and where."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, trace: dict[str, Tensor], settings: dict[str, str]) -> None:
        self.trace, self.mass, self.step = trace, float(settings["nucleus_p"]), -1
        self.num_steps, self.tokens = int(settings["num_steps"]), Tensor()
        self.masked = self.picked = Tensor()
        if settings["first_hitting"] == "True":
            monkeypatch.setattr(FirstHittingScheduler, "score_positions", method(self.score_one))
            monkeypatch.setattr(FirstHittingScheduler, "fit_timesteps", with_one_more)  # the last needs no scores
            monkeypatch.setattr(Marginals, "draw", lambda marginals, rows, *given: self.drawn(marginals, rows))
        else:
            monkeypatch.setattr(AncestralScheduler, "score_positions", method(self.score_some))
            monkeypatch.setattr(AncestralScheduler, "count_positions", method(self.count_some))
            monkeypatch.setattr(Marginals, "draw", lambda marginals, rows, *given: self.tokens.flatten()[rows])

    def winners(self, marginals: Marginals, rows: Tensor, places: Tensor, stays: float) -> Tensor:
        """Of the race of this update, at these places of the block; the mask's id where one stays as it is."""
        (probs,) = marginals.reduce(lambda block: (block.double().softmax(-1),), rows)
        noise = self.trace["u"][self.step][-self.masked.shape[1] :][places]
        rivals = torch.zeros_like(noise)
        rivals[:, : probs.shape[1]] = nucleus(probs, self.mass) * (1 - stays)
        rivals[:, marginals.mask_token_id] = stays
        return (rivals / (1e-10 - (noise + 1e-10).log())).argmax(-1)

    def score_one(self, scheduler: object, marginals: object, context: StepContext) -> Tensor:
        """First hitting: the position that the original picked among those that are masked."""
        self.step, self.masked = self.step + 1, context.masked
        self.picked = context.masked[0].nonzero()[self.trace["pick"][self.step]]
        return torch.zeros(context.masked.shape).index_fill(1, self.picked, 1.0)

    def drawn(self, marginals: Marginals, rows: Tensor) -> Tensor:
        return self.winners(marginals, rows, self.picked, 0.0)

    def score_some(self, scheduler: object, marginals: Marginals, context: StepContext) -> Tensor:
        """Ancestral: the positions in which the mask did not win."""
        self.step, self.masked = self.step + 1, context.masked
        t, wanted = float(self.trace["update_t"][self.step]), context.masked
        self.tokens = torch.full(wanted.shape, marginals.mask_token_id)
        rows = wanted.flatten().nonzero()[:, 0]
        self.tokens[wanted] = self.winners(marginals, rows, rows, (t - 1 / self.num_steps) / t)
        return (self.tokens != marginals.mask_token_id).double()

    def count_some(self, scheduler: object, scores: Tensor, context: StepContext) -> Tensor:
        return (scores > 0.5).sum(-1)


@pytest.mark.parametrize(
    "path", thinned(later_cases("bd3lm/block*/trace_*", lambda path: "slide_cache" not in path.name))
)
def test_bd3lm(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, settings = read(path)
    pipe = opened(path.parent, tmp_path, {})
    length, size = int(settings["seqlen"]), int(settings["block_size"])
    updates, mask = Updates(monkeypatch, trace, settings), int(settings["mask_id"])
    call: dict[str, Any] = {"input_ids": [[int(settings["bos_token_id"])]], "max_new_tokens": length - 1}
    if settings["first_hitting"] == "True":
        pipe.scheduler = FirstHittingScheduler(mask)
    else:
        pipe.scheduler = AncestralScheduler(mask)
        call["num_inference_steps"] = updates.num_steps
    if int(settings["context_size"]) < length:
        call["stride"] = size
    if settings["kv_cache"] == "False":
        pipe.disable_cache()
    passes = Passes(pipe)
    (ids,) = pipe(**call, output_type="ids").sequences
    assert torch.equal(ids, trace["final"][0])
    stored = trace["call_store_kv"].bool()  # passes that only store a finished block; here there are none
    assert passes.count == int((~stored).sum())
    assert passes.positions <= int(trace["call_length"].sum())


def with_one_more(scheduler: FirstHittingScheduler, num_masked: Tensor, first_step: int = 0) -> int:
    scheduler.set_timesteps(int(num_masked.max()) + 1)
    return 0


def method(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, *given: function(self, *given)
