"""KLASS on LLaDA as its authors run it: divergences, decisions, tokens. Each run in the golden folder is a case."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from golden_data import later_cases, read, settings_of
from replay import as_recorded
from text_replay import open_pipeline, passes_of
from torch import Tensor

from hf_maskdiff import KLASSScheduler
from hf_maskdiff.sampling import Marginals
from hf_maskdiff.schedulers.run_memory import StabilityMemory

STRATEGIES = {"all": "all", "max_conf": "surest", "min_kl": "most_stable", "random": "random"}


def is_greedy_klass(path: Path) -> bool:
    """With a temperature the original compares the exponentials of noisy exponentials, which is no law of ours."""
    settings = settings_of(path)
    return settings["alg"] == "klass" and not float(settings.get("temperature", 0))


def scheduler_of(settings: dict[str, str], strategy: str | None = None) -> KLASSScheduler:
    scheduler = KLASSScheduler(
        int(settings["mask_id"]),
        rounding="even",
        confidence_threshold=float(settings["conf_threshold"]),
        kl_threshold=float(settings["kl_threshold"]),
        history_length=int(settings["kl_history_length"]),
        strategy=strategy or STRATEGIES[settings["unmask_strategy"]],
        token_temperature=0,
    )
    steps, length, block = (int(settings[name]) for name in ("steps", "gen_length", "block_length"))
    scheduler.set_timesteps(steps * block // length)
    return scheduler


def states_of(trace: dict[str, Tensor]) -> Tensor:
    return torch.cat([trace["canvas"].long(), trace["final"][None]])


@torch.no_grad()
@pytest.mark.parametrize("path", later_cases("klass/trace_*", is_greedy_klass))
def test_divergences(path: Path) -> None:
    trace, settings = read(path)
    denoiser, memory = open_pipeline(path.parent).denoiser, StabilityMemory()
    for n, canvas in enumerate(trace["canvas"].long()):
        masked = canvas == int(settings["mask_id"])
        found, _ = memory.compare(Marginals(denoiser(canvas), -1), masked, canvas.device)
        if n:
            torch.testing.assert_close(found[masked], trace["kl"][n][masked], rtol=1e-3, atol=1e-6)
        else:
            assert found[masked].isinf().all()


@pytest.mark.parametrize("path", later_cases("klass/trace_*", is_greedy_klass))
def test_decisions(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_recorded(lambda: replay(path), monkeypatch)


@torch.no_grad()
def replay(path: Path) -> None:
    """Every pass of the run, from the tokens that it saw.

    The original also compares the marginals of later blocks, of which our pipelines compute none: here their memories
    see every pass, so that each is as the original's when its block begins.
    """
    trace, settings = read(path)
    denoiser, scheduler = open_pipeline(path.parent).denoiser, scheduler_of(settings)
    mask, length, picks = int(settings["mask_id"]), int(settings["block_length"]), iter(trace.get("draw_randint", []))
    blocks = [slice(s, s + length) for s in range(trace["prompt"].shape[1], trace["final"].shape[1], length)]
    memories = [scheduler.new_memory() for _ in blocks]
    current = step = 0
    for before, after in pairwise(states_of(trace)):
        logits = denoiser(before)
        for block, memory in list(zip(blocks, memories, strict=True))[current + 1 :]:
            scheduler.step(logits[:, block], 1.0, before[:, block], memory=memory)
        block, memory = blocks[current], memories[current]
        t, revealed = scheduler.timesteps[step], (before != after)[0, block].nonzero()[:, 0].tolist()
        step += 1
        left = bool((after[:, block] == mask).any())
        if scheduler.config.strategy == "random":  # the recorded number is of one among those that are ready
            ready = scheduler_of(settings, "all").choose(logits[:, block], t, before[:, block], memory=memory)
            ready = sorted(ready.positions[0, : int(ready.count)].tolist())
            pick = int(next(picks)) if len(ready) > 1 and len(revealed) == 1 and left else None
            assert revealed == (ready if pick is None else [ready[pick]]) or not left
        elif step < scheduler.num_inference_steps or not left:
            ours = scheduler.step(logits[:, block], t, before[:, block], memory=memory).prev_sample
            assert torch.equal(ours, after[:, block])
        else:  # the original leaves masks behind where it reveals fewer than it planned
            assert scheduler.config.strategy != "all"
        if step == scheduler.num_inference_steps or not left:
            current, step = current + 1, 0
    assert current == len(blocks)


@pytest.mark.parametrize("path", later_cases("klass/trace_*", is_greedy_klass))
def test_the_first_block_of_a_pipeline_s_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the token, with as many passes; in later blocks the original knows the last pass of the block before."""

    def run() -> None:
        trace, settings = read(path)
        if settings["unmask_strategy"] == "random":
            pytest.skip("which of those that are ready is revealed is drawn, see the decisions")
        pipe, block = open_pipeline(path.parent), int(settings["block_length"])
        pipe.scheduler = scheduler_of(settings)
        steps, states = pipe.scheduler.num_inference_steps, states_of(trace)
        end = trace["prompt"].shape[1] + block
        full = (states[:, 0, :end] != pipe.mask_token_id).all(-1).nonzero()
        last = int(full[0]) if len(full) else steps - 1  # the original may leave masks behind
        seen, made = passes_of(pipe, states[0], num_inference_steps=steps, block_length=block)
        assert torch.equal(torch.stack([*seen, made])[: last + 1], states[: last + 1])

    as_recorded(run, monkeypatch)
