"""Threshold decoding as Fast-dLLM, dLLM and Uncode do it, without caches: to the token, with as many passes.

Each run in the golden folder that was made with a threshold or a factor is a case; names, sizes and settings are its
own.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from golden_data import later_cases, read, settings_of
from replay import as_recorded
from safetensors.torch import load_file
from text_replay import everywhere, number, open_pipeline, passes_of
from torch import Tensor

from hf_maskdiff import ThresholdScheduler
from hf_maskdiff.sampling import Marginals

RULES = ("threshold", "factor")


def has_rule(path: Path) -> bool:
    return any(settings_of(path).get(name, "null") not in ("null", "None") for name in RULES)


def rule_of(settings: dict[str, str]) -> dict[str, float | None]:
    """The settings of our scheduler."""
    return {"threshold": None} | {name: number(settings, name) for name in RULES if number(settings, name)}


def first_of(settings: dict[str, str], *names: str) -> int:
    """A setting that the originals call by different names."""
    return int(next(settings[name] for name in names if name in settings))


class RecordedDraws:
    """Tokens as they were drawn from recorded uniform noise, of which each pass has some for the whole canvas."""

    def __init__(self, noise: Tensor, temperature: float, prompt_length: int) -> None:
        self.noise, self.temperature = iter(noise), temperature
        self.start, self.next_start, self.tokens = 0, prompt_length, Tensor()

    def draw_all(self, marginals: Marginals, wanted: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        if bool(wanted.all()):  # a new block
            self.start, self.next_start = self.next_start, self.next_start + wanted.shape[1]
        noise, logits = next(self.noise)[:, self.start : self.next_start], everywhere(marginals, wanted.shape).double()
        self.tokens = (logits - self.temperature * (-noise.log()).log()).argmax(-1)
        return self.tokens, logits.log_softmax(-1).gather(-1, self.tokens[..., None])[..., 0]

    def draw(self, marginals: Marginals, rows: Tensor, uniform: Tensor, beta: Tensor) -> Tensor:
        return self.tokens.flatten()[rows]


@pytest.mark.parametrize(
    "path",
    later_cases("fast_dllm/trace_none_*", has_rule) + later_cases("dllm_bd3lm/fastdllm_llada/trace_none_*", has_rule),
)
def test_fast_dllm(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_recorded(lambda: replay_fast_dllm(path, monkeypatch), monkeypatch)


def replay_fast_dllm(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, settings = read(path)
    pipe = open_pipeline(path.parent)
    temperature, length = number(settings, "temperature"), first_of(settings, "block_length", "block_size")
    prompt_length = (trace["prompt"] if "prompt" in trace else trace["input_0"]).shape[-1]
    measure = {"measure": "drawn"} if temperature else {"token_temperature": 0}
    pipe.scheduler = ThresholdScheduler(pipe.mask_token_id, **rule_of(settings), **measure)
    if temperature:  # sure is what is probable of the tokens that were drawn, at the model's own temperature
        drawn = RecordedDraws(trace["draw_rand"], temperature, prompt_length)
        monkeypatch.setattr(Marginals, "draw_all", lambda *args: drawn.draw_all(*args))
        monkeypatch.setattr(Marginals, "draw", lambda *args: drawn.draw(*args))
    recorded = torch.cat([trace["canvas"].long(), trace["final"][None]])
    call = {"num_inference_steps": length, "block_length": length}
    for row in recorded.split(1, dim=1):
        seen, made = passes_of(pipe, row[0], **call)
        # A row that waits for others costs a pass there, here it does not.
        assert torch.equal(torch.stack([*seen, made]), row.unique_consecutive(dim=0))
    if recorded.shape[1] > 1:
        seen, made = passes_of(pipe, recorded[0], **call)
        assert torch.equal(made, recorded[-1])
    assert len(seen) == len(trace["canvas"]) == int(settings["n_calls"])


@pytest.mark.parametrize("path", later_cases("uncode/trace_fast_*"))
def test_uncode(path: Path) -> None:
    """Its decisions, from what was written before each pass.

    With a factor it reveals the last two positions of a block together, however unsure: ours keeps to the rule.
    """
    trace, settings = read(path)
    toy, mask = load_file(path.parent / "toy.safetensors"), int(settings["mask_id"])
    block = int(settings["block_length"])
    scheduler = ThresholdScheduler(mask, **rule_of(settings), token_temperature=0)
    scheduler.set_timesteps(block + 1)
    states = torch.cat([trace["x_in"], trace["final"]])
    compared = 0
    for before, after in pairwise(states):
        around = torch.nn.functional.pad(before, (1, 1), value=mask)
        logits = toy["toy.base"] + toy["toy.left"][around[:-2]] + toy["toy.right"][around[2:]]
        start = trace["prompt"].shape[1]
        while not bool((before[start : start + block] == mask).any()):
            start += block
        now = slice(start, start + block)
        ours = scheduler.step(logits[None, now], 1.0, before[None, now]).prev_sample[0]
        left = int((before[now] == mask).sum())
        if "factor" in settings and left == 2 and (ours == mask).any():
            assert not (after[now] == mask).any()
            continue
        assert ours.tolist() == after[now].tolist()
        compared += 1
    assert compared >= len(states) - 3
