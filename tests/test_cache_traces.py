"""Caches across steps, as published: Fast-dLLM's prefix and dual, dKV-Cache's decode and greedy, replayed to the token.

Each of our passes is compared with the call of the original that reveals the same tokens: what it computes, and its
logits. The originals spend one call more on each block that its first call fills; ours do not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_data import GOLDEN2, later_cases, read, settings_of
from replay import as_recorded
from test_llada_dream_traces import open_pipeline
from torch import Tensor

from hf_maskdiff import (
    DelayedCacheConfig,
    DualCacheConfig,
    GreedyCacheConfig,
    MaskedDiffusionTextPipeline,
    PrefixCacheConfig,
    StepContext,
    ThresholdScheduler,
    UniformScheduler,
)
from hf_maskdiff.caching import CachePlanConfig
from hf_maskdiff.denoisers import transformers_denoiser
from hf_maskdiff.pipelines.step_logits import StepLogits, StepRows
from hf_maskdiff.pipelines.text_denoising import WindowDenoiser
from hf_maskdiff.sampling import Marginals

CACHES = {
    "generate": None,
    "generate_with_prefix_cache": PrefixCacheConfig,
    "generate_with_dual_cache": DualCacheConfig,
}
CLOSE = {"atol": 5e-5, "rtol": 5e-5}


def is_deterministic(path: Path) -> bool:
    settings = settings_of(path)
    return float(settings["temperature"]) == 0 and settings["remasking"] == "low_confidence"


def is_decode(path: Path) -> bool:
    return settings_of(path)["variant"] == "decode" and is_deterministic(path)


def is_in_random_order(path: Path) -> bool:
    settings = settings_of(path)
    return settings["remasking"] == "random" and float(settings["temperature"]) == 0


class RecordedOrder(UniformScheduler):
    """Uniform order by recorded noise, one vector a step, and the most probable tokens."""

    def recorded(self, path: Path) -> RecordedOrder:
        trace, settings = read(path)
        prompt, size = trace["prompt"].shape[1], int(settings["block_length"])
        num_calls = len(trace["call_len"])
        if "draw_rand" in trace:  # the order of a block is drawn before its first step
            drawn = trace["draw_rand"][:, 0].repeat_interleave(num_calls // len(trace["draw_rand"]), 0)
        else:  # for the positions of each call, in its order
            drawn = torch.zeros(num_calls, trace["final"].shape[1])
            sizes = trace["call_len"].tolist()
            places = trace["positions"].view(-1).split(sizes)
            for noise, at, values in zip(drawn, places, trace["draw_rand_flat"].split(sizes), strict=True):
                noise[at.long()] = values
        own = num_calls * size // int(settings["gen_length"])
        starts = [prompt + call // own * size for call in range(num_calls)]
        self.noise = iter([noise[start : start + size] for noise, start in zip(drawn, starts, strict=True)])
        return self

    @property
    def chooses_without_logits(self) -> bool:
        return True

    def score_positions(self, marginals: Marginals, context: StepContext) -> Tensor:
        return next(self.noise)[None].double()


class Original:
    """The calls of a recorded run that reveal something: their positions, canvas and logits."""

    def __init__(self, trace: dict[str, Tensor], mask_token_id: int) -> None:
        ends = trace["call_len"].cumsum(0)
        positions = trace["positions"].view(-1, trace["positions"].shape[-1])
        canvas = torch.cat([trace["canvas"], trace["final"][None]])
        masks = (canvas == mask_token_id).flatten(1).sum(-1)
        self.num_calls, self.num_positions = len(ends), int(trace["call_len"].sum())
        self.calls = [
            (positions[:, end - size : end], trace["logits"][:, end - size : end], canvas[i])
            for i, (end, size) in enumerate(zip(ends.tolist(), trace["call_len"].tolist(), strict=True))
            if masks[i + 1] < masks[i]
        ]


class Ours:
    """The passes of a run: the positions that each computes, and the logits that it gives, by position."""

    def __init__(self, pipe: MaskedDiffusionTextPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.positions: list[Tensor] = []
        self.logits: list[tuple[Tensor, Tensor]] = []
        plain = WindowDenoiser.pass_of_step

        def noted(run: WindowDenoiser, sample: Tensor, t: Tensor, now: StepRows) -> StepLogits:
            logits = plain(run, sample, t, now)
            rows, columns = logits.places // sample.shape[1], logits.places % sample.shape[1]
            places = torch.where(logits.places < 0, -1, run.batch.starts[rows.clamp(min=0)] + columns)
            self.logits.append((places, logits.values))
            return logits

        monkeypatch.setattr(WindowDenoiser, "pass_of_step", noted)
        pipe.denoiser(torch.zeros(1, 4, dtype=torch.int64))  # the probe's passes are not the run's
        if pipe.denoiser.plan is not None:
            pipe.denoiser(torch.zeros(1, 4, dtype=torch.int64), cache=pipe.denoiser.new_cache())
        run = transformers_denoiser.run_pass

        def noted_pass(model: object, abilities: Any, store: object, ids: Tensor, places: Tensor, *more: Any) -> Tensor:
            assert abilities.direct  # so that these passes are held against the originals' passes
            self.positions.append(places)
            return run(model, abilities, store, ids, places, *more)

        monkeypatch.setattr(transformers_denoiser, "run_pass", noted_pass)


def replay(path: Path, cache: CachePlanConfig | None, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, settings = read(path)
    pipe = open_pipeline(path.parent)
    length, block, steps = (int(settings[name]) for name in ("gen_length", "block_length", "steps"))
    per_block, threshold = steps * block // length, json.loads(settings.get("threshold", "null"))
    if settings["remasking"] == "random":
        pipe.scheduler = RecordedOrder(pipe.mask_token_id, masking_schedule="linear", rounding="even", top_k=1)
        pipe.scheduler.recorded(path)
    if threshold is not None:
        pipe.scheduler, per_block = ThresholdScheduler.from_config(pipe.scheduler.config, threshold=threshold), block
    if cache is not None:
        pipe.enable_cache(cache)
    ours, original = Ours(pipe, monkeypatch), Original(trace, pipe.mask_token_id)

    call = {"num_inference_steps": per_block, "block_length": block, "max_new_tokens": length, "output_type": "ids"}
    output = pipe(input_ids=trace["prompt"], **call)

    assert torch.equal(torch.stack(output.sequences), trace["final"])
    assert len(ours.positions) == len(ours.logits) == len(original.calls) <= original.num_calls
    assert sum(positions.shape[1] for positions in ours.positions) <= original.num_positions
    for computed, (places, logits), (positions, expected, canvas) in zip(
        ours.positions, ours.logits, original.calls, strict=True
    ):
        assert torch.equal(computed.sort(1).values, positions.sort(1).values)
        for row in range(len(logits)):
            column = {place: i for i, place in enumerate(positions[row].tolist())}
            masked = places[row][places[row] >= 0].tolist()
            assert len(masked) > 0
            assert (canvas[row, masked] == pipe.mask_token_id).all()
            torch.testing.assert_close(logits[row, : len(masked)], expected[row, [column[p] for p in masked]], **CLOSE)
    num_full = sum(positions.shape[1] == trace["final"].shape[1] for positions in ours.positions)
    assert output.num_model_passes == [num_full] * len(trace["final"])
    assert output.num_partial_passes == [len(ours.positions) - num_full] * len(trace["final"])


@pytest.mark.parametrize("path", later_cases("fast_dllm/trace_*", is_deterministic))
def test_fast_dllm(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = CACHES[settings_of(path)["function"]]
    with monkeypatch.context() as patched:
        as_recorded(lambda: replay(path, cache and cache(), patched), patched)


@pytest.mark.parametrize("path", later_cases("dkv_cache/trace_decode_*", is_decode))
def test_dkv_cache(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(path)
    every = int(settings["cache_reloading_step"]) if json.loads(settings["enable_cache"]) else 1
    with monkeypatch.context() as patched:
        as_recorded(lambda: replay(path, DelayedCacheConfig(refresh_every=every), patched), patched)


@pytest.mark.parametrize("path", later_cases("dkv_cache/trace_*", is_in_random_order))
def test_dkv_cache_in_random_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(path)
    every = int(settings["cache_reloading_step"]) if json.loads(settings["enable_cache"]) else 1
    if settings["variant"] == "decode":
        cache: CachePlanConfig = DelayedCacheConfig(refresh_every=every)
    else:
        cache = GreedyCacheConfig(refresh_every=every, window=int(settings["window_size"]))
    with monkeypatch.context() as patched:
        as_recorded(lambda: replay(path, cache, patched), patched)


@pytest.mark.skipif(GOLDEN2 is None, reason="HF_MASKDIFF_GOLDEN2 is not set")
def test_every_kind_of_run_is_there() -> None:
    assert GOLDEN2 is not None
    runs = [path for path in GOLDEN2.glob("fast_dllm/trace_*") if is_deterministic(path)]
    assert {settings_of(path)["function"] for path in runs} == CACHES.keys()
    assert any(json.loads(settings_of(path)["threshold"]) is None for path in runs)
    assert any(json.loads(settings_of(path)["threshold"]) is not None for path in runs)
    assert {settings_of(path)["variant"] for path in GOLDEN2.glob("dkv_cache/trace_*")} == {"decode", "greedy"}
    assert {int(settings_of(path)["cache_reloading_step"]) for path in GOLDEN2.glob("dkv_cache/trace_decode_*")} > {1}
