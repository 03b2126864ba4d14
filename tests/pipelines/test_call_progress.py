"""A call that writes block by block shows one bar, over all of its blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_maskdiff import AncestralScheduler, MDLMPipeline
from hf_maskdiff.pipelines.call_progress import CallProgress
from hf_maskdiff.pipelines.text_windows import next_part, num_parts

ROOT = Path(__file__).parents[2]
MASK = 9


class Bar:
    """Stands in for tqdm's, and notes every total that it showed."""

    def __init__(self, total: int) -> None:
        self.total, self.n, self.totals, self.is_open = total, 0, [total], False

    def __enter__(self) -> Bar:
        self.is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.is_open = False

    def update(self) -> None:
        self.n += 1
        assert self.n <= self.total

    def refresh(self) -> None:
        self.totals.append(self.total)


@pytest.fixture(scope="module")
def pipe() -> MDLMPipeline:
    pipe = MDLMPipeline.from_pretrained(ROOT / "pipelines" / "mdlm-shakespeare")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def bars(pipe: MDLMPipeline, monkeypatch: pytest.MonkeyPatch) -> list[Bar]:
    made: list[Bar] = []

    def progress_bar(total: int) -> Bar:
        made.append(Bar(total))
        return made[-1]

    monkeypatch.setattr(pipe, "progress_bar", progress_bar)
    return made


@pytest.mark.parametrize(
    ("given", "totals"),
    [
        ({}, [3]),
        ({"block_length": 16}, [12]),  # 64 tokens
        ({"max_new_tokens": 96, "stride": 32}, [6]),
        ({"max_new_tokens": 96, "stride": 32, "block_length": 16}, [18]),
        ({"prompt": ["a", "O, my dear lord, what"], "max_new_tokens": 40, "block_length": 16}, [9]),
        ({"max_new_tokens": 18, "block_length": 16}, [6, 5]),  # the last block holds two tokens
    ],
)
@pytest.mark.parametrize("scheduler", ["", "AncestralScheduler"])
def test_one_bar_over_all_blocks(
    pipe: MDLMPipeline,
    bars: list[Bar],
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    totals: list[int],
    scheduler: str,
) -> None:
    if scheduler:
        monkeypatch.setattr(pipe, "scheduler", AncestralScheduler.from_config(pipe.scheduler.config))
    pipe(num_inference_steps=3, generator=torch.Generator().manual_seed(0), **given)
    (bar,) = bars
    assert bar.n == bar.total == pipe.num_timesteps
    assert not bar.is_open
    if not scheduler:
        assert bar.totals == totals


def test_texts_that_end_early_and_calls_that_are_stopped(pipe: MDLMPipeline, bars: list[Bar]) -> None:
    def stop(pipe: MDLMPipeline, step: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 4
        return {}

    call = {"num_inference_steps": 3, "block_length": 16, "generator": torch.Generator().manual_seed(0)}
    pipe(**call, callback_on_step_end=stop)
    assert (bars[0].n, bars[0].total, bars[0].is_open) == (5, 12, False)
    with pytest.raises(ZeroDivisionError):
        pipe(**call, callback_on_step_end=lambda *_: 1 / 0)
    assert (bars[1].total, bars[1].is_open) == (12, False)
    with CallProgress(lambda total: bars.append(Bar(total)) or bars[-1], num_runs=4) as progress, progress(total=3):
        progress.update()  # every text ended in the first run, and before the last of its passes
    assert (bars[2].n, bars[2].total, bars[2].totals) == (1, 1, [12, 1])


def test_a_call_without_anything_to_fill_in_shows_no_bar(pipe: MDLMPipeline, bars: list[Bar]) -> None:
    ids = torch.zeros(1, 8, dtype=torch.int64)
    pipe(input_ids=ids, mask=torch.zeros_like(ids, dtype=torch.bool), block_length=4)
    assert bars == []


@given(
    masked=st.lists(st.booleans(), min_size=1, max_size=40),
    model_length=st.none() | st.integers(1, 12),
    stride=st.none() | st.integers(1, 12),
    block_length=st.none() | st.integers(1, 12),
)
def test_parts_are_counted_before_they_are_filled_in(
    masked: list[bool], model_length: int | None, stride: int | None, block_length: int | None
) -> None:
    if model_length is not None:  # which the pipeline asks for
        stride = min(stride or model_length, model_length)
    ids = torch.where(torch.tensor(masked), MASK, 0)
    lengths = (model_length, stride, block_length)
    expected, filled = num_parts(ids, MASK, *lengths), 0
    while bool((ids == MASK).any()):
        part = next_part(ids, MASK, *lengths)
        ids[part.window][part.block] = 0
        filled += 1
    assert filled == expected
