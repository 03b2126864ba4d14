"""Constants that are kept are real tensors, also where a compiler or a fake device asked first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_maskdiff import MomentScheduler
from hf_maskdiff.kept_tensors import kept


def test_the_same_tensor_for_the_same_arguments() -> None:
    calls: list[int] = []

    @kept
    def zeros(length: int, device: str = "cpu") -> Tensor:
        calls.append(length)
        return torch.zeros(length)

    with torch.inference_mode():
        first = zeros(3)
    assert zeros(3) is first
    assert not first.is_inference()
    assert zeros(3, device="cpu") is not first
    assert zeros(4).shape == (4,)
    for length in range(100, 200):
        zeros(length)
    assert zeros(3) is not first  # was dropped
    assert calls[:3] == [3, 3, 4]


def test_a_fake_tensor_is_not_kept() -> None:
    @kept
    def pair(length: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(length), torch.ones(length)

    with FakeTensorMode():
        assert type(pair(3)[0]) is not Tensor
    assert type(pair(3)[0]) is Tensor
    assert pair(3)[1].tolist() == [1, 1, 1]


def test_nothing_is_kept_while_a_cuda_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    @kept
    def zeros(length: int) -> Tensor:
        return torch.zeros(length)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    during = zeros(3)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    after = zeros(3)
    assert after is not during
    assert zeros(3) is after


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_step_inside_what_is_compiled(backend: str) -> None:
    """A compiler leaves a step as it is: the same tokens, of the whole function and of the step alone."""
    torch.compiler.reset()
    scheduler = MomentScheduler(mask_token_id=40)
    scheduler.set_timesteps(4)
    logits, sample = torch.randn(2, 16, 40), torch.full((2, 16), 40)

    def steps(step) -> Tensor:  # type: ignore[no-untyped-def]
        generator, tokens = torch.Generator().manual_seed(0), sample
        for t in scheduler.timesteps:
            tokens = step(2 * logits, t, tokens, generator=generator).prev_sample
        return tokens

    expected = steps(scheduler.step)
    assert torch.equal(steps(torch.compile(scheduler.step, backend=backend)), expected)
    assert torch.equal(torch.compile(steps, backend=backend)(scheduler.step), expected)
    assert torch.equal(steps(scheduler.step), expected)
    torch.compiler.reset()
