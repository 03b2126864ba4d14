"""Random combinations of model, scheduler, cache and call: what holds for every one of them.

A case is drawn from its number alone, so a failing one is run again by its number. Models compute in float64, in which
no rounding decides between two tokens. Of 400 cases as many are run as have each pair of scheduler, cache, model and
kind of call that one of the 400 has; HF_MASKDIFF_COMBINATIONS=400:2000 runs all from 400 to 1,999 instead.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from functools import partial as partial_of
from inspect import signature
from typing import Any

import covering_array
import pytest
import torch
from test_masked_diffusion_text import MASK, VOCAB, make_pipeline, seeds
from transformers import MinPLogitsWarper, TemperatureLogitsWarper

from hf_maskdiff import (
    AncestralScheduler,
    BlockCacheConfig,
    ChooseThenSampleScheduler,
    ConfidenceScheduler,
    DelayedCacheConfig,
    DualCacheConfig,
    EditingScheduler,
    EntropyBoundedScheduler,
    ExtrapolatingScheduler,
    FirstHittingScheduler,
    FreeCorrectionScheduler,
    GreedyCacheConfig,
    HaltonScheduler,
    HybridScheduler,
    KLASSScheduler,
    MaskedDiffusionScheduler,
    MaskedDiffusionTextPipeline,
    MaskGITScheduler,
    MomentScheduler,
    PartialCacheConfig,
    PathPlanningScheduler,
    PrefixCacheConfig,
    ReMDMScheduler,
    ThresholdScheduler,
    TrapezoidalScheduler,
    UniformScheduler,
)

BLOCK_SIZE = 4
ORDERS = ["drawn", "moment", "entropy", "halton", "randomized_halton"]
SCHEDULERS: list[tuple[type[MaskedDiffusionScheduler], dict[str, list[Any]]]] = [
    (ThresholdScheduler, {"threshold": [0.05, 0.2, 0.9], "min_count": [1, 2], "token_temperature": [0, 1]}),
    (ThresholdScheduler, {"threshold": [0.1, 1.0], "measure": ["drawn"], "follow_schedule": [False, True]}),
    (ThresholdScheduler, {"threshold": [None], "factor": [0.1, 1.0, 4.0]}),
    (KLASSScheduler, {"confidence_threshold": [0.05, 0.2], "kl_threshold": [0.01, 1.0], "history_length": [1, 2]}),
    (KLASSScheduler, {"strategy": ["surest", "most_stable", "random"], "kl_threshold": [10.0]}),
    (EntropyBoundedScheduler, {"entropy_bound": [0.5, 4.0, 12.0], "follow_schedule": [False, True]}),
    (FirstHittingScheduler, {}),
    (HaltonScheduler, {"randomize": [False, True], "choice_temperature": [None, 4.0]}),
    (UniformScheduler, {"masking_schedule": ["linear", "cosine"]}),
    (MaskGITScheduler, {}),
    (ConfidenceScheduler, {"token_temperature": [0, 1]}),
    (MomentScheduler, {"top_k": [None, 5], "top_p": [None, 0.8]}),
    (HybridScheduler, {"exploration_ratio": [0.25, 1.0]}),
    (AncestralScheduler, {}),
    (ReMDMScheduler, {"remasking": ["cap", "rescale", "conf", "loop", "forward_backward", "dfm"], "eta": [0.1, 0.5]}),
    (
        ReMDMScheduler,
        {"remasking": ["rescale", "conf"], "eta": [0.6], "exact_order": ["uniform", "confidence", "halton"]},
    ),
    (PathPlanningScheduler, {"measure": ["drawn", "confidence", "margin", "uniform"], "eta": [0, 1.0, 3.0]}),
    (PathPlanningScheduler, {"standing": [False], "eta": [1.5]}),
    (FreeCorrectionScheduler, {"corrected_shares": [[0.4], [0.1, 0.6]], "correction_start": [0.0], "order": ORDERS}),
    (EditingScheduler, {"threshold": [0.05, 0.3], "editing_threshold": [0.05, 0.3], "edits": ["overwrite", "mask"]}),
    (TrapezoidalScheduler, {"theta": [0.3, 0.5], "masking_schedule": ["linear", "cosine"]}),
    (ExtrapolatingScheduler, {"position_order": ["uniform", "halton", "randomized_halton", "moment", "confidence"]}),
]
# Settings that several schedulers share; each is given to every third of those that have it.
SHARED: dict[str, list[Any]] = {
    "typical_p": [0.5, 0.9],
    "top_p": [0.9],
    "min_distance": [2, 4],
    "unsure_token_ids": [[3, 6], list(range(7, 20))],
    "position_decay": [0.5],
    "token_prior": [[(number % 7 + 1) / 8 for number in range(VOCAB)]],
}


@cache
def pipeline_of(name: str, block_size: int | None = None) -> MaskedDiffusionTextPipeline:
    pipe = make_pipeline(name, num_layers=1, shift_logits=name == "qwen2")
    pipe.transformer.double()
    if block_size is None:
        return pipe
    parts = (pipe.tokenizer, pipe.transformer, pipe.scheduler, name == "qwen2", pipe.config.eos_token_ids)
    pipe = MaskedDiffusionTextPipeline(*parts, attention="block_causal", block_size=block_size)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@dataclass(frozen=True)
class Case:
    """A pipeline's call; `exact` is a cache that must give the same tokens."""

    pipe: MaskedDiffusionTextPipeline
    scheduler: MaskedDiffusionScheduler
    cache: Any
    exact: Any
    prompts: list[Any]
    call: dict[str, Any]

    def run(self, row: int | None = None) -> Any:
        """All prompts, or one of them alone."""
        self.pipe.scheduler = self.scheduler
        self.pipe.disable_cache()
        if self.cache is not None:
            self.pipe.enable_cache(self.cache)
        rows = range(len(self.prompts)) if row is None else [row]
        return self.pipe([self.prompts[i] for i in rows], generator=seeds(*rows), **self.call)


def a_scheduler(draw: random.Random, **tokens: int) -> MaskedDiffusionScheduler:
    kind, choices = draw.choice(SCHEDULERS)
    settings = {name: draw.choice(values) for name, values in choices.items()}
    for name, values in SHARED.items():
        if name in signature(kind).parameters and draw.random() < 1 / 3:
            settings.setdefault(name, draw.choice(values))
    return kind(**tokens, **settings)


def looking_ahead(scheduler: MaskedDiffusionScheduler, number: int) -> MaskedDiffusionScheduler:
    """Every third scheduler that can try several ways to take a step does; a cache cannot be on meanwhile."""
    draw = random.Random(f"{number}, looking ahead")  # on its own, so that the rest of a case is as without
    if "num_candidates" not in scheduler.config or draw.random() > 1 / 3:
        return scheduler
    settings = {"num_candidates": draw.choice([2, 4]), "candidate_cost": draw.choice([0.0, 1.0])}
    return type(scheduler).from_config(scheduler.config, **settings)


def groups(draw: random.Random, scheduler: MaskedDiffusionScheduler) -> PartialCacheConfig | None:
    if not isinstance(scheduler, ChooseThenSampleScheduler) or draw.random() < 0.4:
        return None
    sizes = {"num_substeps": draw.choice([2, 3]), "first_group_fraction": draw.choice([None, 0.3])}
    return PartialCacheConfig(**sizes, random_groups=draw.random() < 0.4, full_pass_threshold=draw.choice([0, 0.4, 1]))


def a_prompt(draw: random.Random) -> Any:
    def words(least: int, most: int) -> str:
        return " ".join(f"w{draw.randrange(7, VOCAB)}" for _ in range(draw.randint(least, most)))

    kind = draw.choice(["text", "text", "places", "places", "chat"])
    if kind == "places":
        return f"{words(0, 4)} [MASK:{draw.randint(1, 6)}] {words(1, 5)} {draw.choice(['', '[MASK]'])} {words(0, 2)}"
    return words(1, 8) if kind == "text" else [{"role": "user", "content": words(1, 4)}]


def case_of(number: int) -> Case:
    case = a_case(number)
    scheduler = looking_ahead(case.scheduler, number)
    return case if scheduler is case.scheduler else replace(case, scheduler=scheduler, cache=None, exact=None)


def a_case(number: int) -> Case:
    draw = random.Random(number)
    scheduler = a_scheduler(draw, mask_token_id=MASK)
    partial = groups(draw, scheduler)
    call = {
        "num_inference_steps": draw.choice([1, 2, 3, 5, 8]),
        "guidance_scale": draw.choice([1.0, 1.0, 2.0, (1.0, 3.0), (0.0, 2.0)]),
        "stop_at_eos": draw.choice([None, True, False]),
        "max_new_tokens": draw.choice([3, 6, 10]),
        "sampling_temperature": draw.choice([None, None, 0.0, 0.7]),
    }
    if isinstance(scheduler, ThresholdScheduler) and scheduler.config.measure == "drawn":
        del call["sampling_temperature"]
    prompts = [a_prompt(draw) for _ in range(draw.randint(1, 3))]
    if draw.random() < 0.25:
        pipe = pipeline_of(draw.choice(["llama", "qwen2"]), BLOCK_SIZE)
        call["block_length"] = draw.choice([None, 1, 2, 4])
        own = BlockCacheConfig(partial)  # exact where steps are drawn at once
        return Case(pipe, scheduler, own, own if partial else None, prompts, call | rules(draw))
    pipe = pipeline_of(draw.choice(["llama", "qwen2", "bert", "modernbert"]))
    call["block_length"] = draw.choice([None, 1, 2, 3, 7, 100])
    plans: list[Any] = [None, PrefixCacheConfig, DualCacheConfig]
    if not scheduler.reads_revealed:
        plans.append(DelayedCacheConfig)
    if getattr(scheduler, "chooses_without_logits", False):
        plans += [GreedyCacheConfig, partial_of(GreedyCacheConfig, window=draw.choice([0, 1, 9]))]
    plan = draw.choice(plans)
    used = partial if plan is None else plan(refresh_every=draw.choice([1, 2, 3, None]), partial=partial)
    exact = partial if getattr(used, "refresh_every", 1) == 1 else used
    return Case(pipe, scheduler, used, exact, prompts, call | rules(draw))


def rules(draw: random.Random) -> dict[str, Any]:
    """What happens to logits, for every third case."""
    if draw.random() < 2 / 3:
        return {}
    return {
        "repetition_penalty": draw.choice([1.0, 1.5, 4.0]),
        "suppress_tokens": draw.sample(range(7, VOCAB), 12),
        "bad_words_ids": draw.choice([None, [[word] for word in draw.sample(range(7, VOCAB), 5)]]),
        "logits_processor": draw.choice([None, [MinPLogitsWarper(0.1), TemperatureLogitsWarper(0.7)]]),
    }


def check(number: int) -> None:
    case = case_of(number)
    output = case.run()
    in_groups = case.pipe.denoiser.partial_cache
    encoded = case.pipe.prepare_sequences(case.prompts, None, None, case.call["max_new_tokens"], None, None)
    for row, (prompt, ids) in enumerate(zip(encoded, output.sequences, strict=True)):
        given = prompt.ids[: len(ids)]
        assert not (ids == MASK).any(), "a mask is left"
        assert torch.equal(ids[given != MASK], given[given != MASK]), "a given token has changed"
        words = [word for [word] in case.call.get("bad_words_ids") or []]
        banned = torch.tensor([*case.call.get("suppress_tokens", []), *words])
        assert not torch.isin(ids[given == MASK], banned).any(), "a banned token is written"
        ends = case.call["stop_at_eos"]
        assert len(ids) == len(prompt.ids) or (not isinstance(case.prompts[row], str) if ends is None else ends)
        if len(case.prompts) == 1:
            continue
        alone = case.run(row)
        assert torch.equal(alone.sequences[0], ids), "a row depends on its batch"
        assert alone.texts[0] == output.texts[row]
        if in_groups is None:  # with groups, full passes of the others' groups are counted for a waiting row too
            passes = (output.num_model_passes[row], output.num_partial_passes[row])
            assert (alone.num_model_passes[0], alone.num_partial_passes[0]) == passes, "passes depend on the batch"
    if case.exact is case.cache and number % 8:
        return  # the same call again, now and then
    same = replace(case, cache=case.exact).run()
    for ids, expected in zip(output.sequences, same.sequences, strict=True):
        assert torch.equal(ids, expected), f"{case.cache} differs from {case.exact}"


def numbers(features: Callable[[int], Iterable[tuple[str, object]]], fast: int, last: int) -> list[int]:
    """The exhaustive numbers from `fast` on: a few that stand for all up to `last`, or those that one asks for."""
    if asked := os.environ.get("HF_MASKDIFF_COMBINATIONS"):
        return list(range(*map(int, asked.split(":"))))
    known = {number: frozenset({("test", "a combination"), *features(number)}) for number in range(last)}
    return sorted(number for number in covering_array.choose(known, dict.fromkeys(known, 2)) if number >= fast)


def kinds(config: Any) -> str:
    """A cache by its kind, and whether it draws in groups."""
    return f"{type(config).__name__}, {type(getattr(config, 'partial', None)).__name__}"


def features(number: int) -> Iterable[tuple[str, object]]:
    case = case_of(number)
    yield "scheduler", type(case.scheduler)
    yield "cache", kinds(case.cache)
    yield "model", f"{type(case.pipe.transformer).__name__}, {case.pipe.config.get('block_size')}"
    yield "guided", case.call["guidance_scale"] != 1.0
    yield "rules", "suppress_tokens" in case.call
    yield "rows", len(case.prompts) > 1
    yield "candidates", case.scheduler.num_candidates


# In the last one nothing is masked for several steps of a cached run that takes tokens back.
@pytest.mark.parametrize("number", [*range(24), 911])
def test_a_combination(number: int) -> None:
    check(number)


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", numbers(features, fast=24, last=400))
def test_more_combinations(number: int) -> None:
    check(number)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_guidance_that_begins_at_1_is_cached(name: str) -> None:
    """The first step needs no pass without the prompt, but the next steps read what it stores."""
    pipe, call = pipeline_of(name), {"num_inference_steps": 4, "max_new_tokens": 9, "block_length": 3}
    pipe.scheduler = ConfidenceScheduler(mask_token_id=MASK, token_temperature=0)
    pipe.disable_cache()
    almost = pipe("w7 w8 w9 w10", guidance_scale=(1 + 1e-12, 3.0), **call)
    pipe.enable_cache(DualCacheConfig())
    scales = [(1.0, 3.0), (1 + 1e-12, 3.0)]
    exactly, nearly = (pipe("w7 w8 w9 w10", guidance_scale=scale, **call) for scale in scales)
    assert torch.equal(exactly.sequences[0], nearly.sequences[0])
    assert exactly.num_partial_passes == nearly.num_partial_passes
    pipe.disable_cache()
    assert torch.equal(pipe("w7 w8 w9 w10", guidance_scale=(1.0, 3.0), **call).sequences[0], almost.sequences[0])


@pytest.mark.parametrize("block_size", [None, BLOCK_SIZE])
def test_guidance_that_a_callback_switches_on_is_cached(block_size: int | None) -> None:
    """For a time, in the first block and again in the last one: what the blocks between have not stored is not read."""
    pipe = pipeline_of("llama", block_size)
    pipe.scheduler = UniformScheduler(mask_token_id=MASK)
    pipe.disable_cache()
    if block_size is None:
        pipe.enable_cache(DualCacheConfig(refresh_every=None))
    else:
        pipe.enable_cache(BlockCacheConfig())
    calls = []

    def switch(pipe: Any, step: int, t: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        calls.append(step)
        pipe._guidance_scale = 3.0 if len(calls) in (1, 2, 13, 14) else 1.0
        return given

    call = {"num_inference_steps": 4, "max_new_tokens": 16, "block_length": 4, "callback_on_step_end": switch}
    cached = pipe("w7 w8 w9 w10", generator=seeds(0), **call)
    assert not (cached.sequences[0] == MASK).any()
    assert len(calls) == 16
    if block_size is not None:
        calls.clear()
        pipe.disable_cache()
        assert torch.equal(pipe("w7 w8 w9 w10", generator=seeds(0), **call).sequences[0], cached.sequences[0])


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_part_that_ends_inside_a_block_is_the_same_in_a_batch(name: str) -> None:
    """What stands behind it is masked, and belongs to the row's next part, however long the other rows' parts are."""
    pipe = pipeline_of(name, BLOCK_SIZE)
    pipe.scheduler, prompts = UniformScheduler(mask_token_id=MASK), ["w14 w27 w18 w22 w17", "w30 w39 w19 w38"]
    call = {"num_inference_steps": 2, "block_length": 2, "max_new_tokens": 6}
    for is_cached in (False, True):
        pipe.disable_cache()
        if is_cached:
            pipe.enable_cache(BlockCacheConfig())
        both = pipe(prompts, generator=seeds(0, 1), **call)
        for row, prompt in enumerate(prompts):
            alone = pipe(prompt, generator=seeds(row), **call)
            assert torch.equal(alone.sequences[0], both.sequences[row])
            assert alone.num_model_passes[0] == both.num_model_passes[row]
