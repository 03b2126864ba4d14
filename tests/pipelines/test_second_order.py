"""Samplers of second order in pipelines: what an interval's first pass leaves is of a call, a block and a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_masked_diffusion_text import MASK, make_pipeline, seeds

from hf_maskdiff import (
    AncestralScheduler,
    DualCacheConfig,
    ExtrapolatingScheduler,
    MaskedDiffusionScheduler,
    MaskedDiffusionTextPipeline,
    PartialCacheConfig,
    PrefixCacheConfig,
    TrapezoidalScheduler,
    UniformScheduler,
)
from hf_maskdiff.caching import CachePlanConfig

PROMPTS = ["w1 w2 [MASK:9] w3", "w4 [MASK:5] w5 w6 [MASK:4]", "w7"]
MAKERS = {
    "trapezoidal": TrapezoidalScheduler,
    "extrapolating": ExtrapolatingScheduler,
    "moment order": lambda mask: ExtrapolatingScheduler(mask, position_order="moment", choice_temperature=4.0),
}


@pytest.fixture(params=MAKERS)
def pipe(request: pytest.FixtureRequest) -> MaskedDiffusionTextPipeline:
    made = make_pipeline("llama", num_layers=2)
    made.scheduler = MAKERS[request.param](MASK)
    return made


@pytest.mark.covering(2)
@pytest.mark.parametrize("config", [None, DualCacheConfig(), PrefixCacheConfig()])
@pytest.mark.parametrize("call", [{}, {"block_length": 4}, {"block_length": 5, "guidance_scale": 2.0}])
def test_a_row_does_not_depend_on_its_batch(
    pipe: MaskedDiffusionTextPipeline, call: dict[str, Any], config: CachePlanConfig | None
) -> None:
    if config is not None:
        pipe.enable_cache(config)
    call = {"num_inference_steps": 5, "stop_at_eos": False, **call}
    prompts = [*PROMPTS[:2], "w7 [MASK:11]"]
    together = pipe(prompts, generator=seeds(0, 1, 2), **call)
    for i, prompt in enumerate(prompts):
        alone = pipe(prompt, generator=seeds(i), **call)
        assert torch.equal(alone.sequences[0], together.sequences[i])
        assert alone.num_model_passes == [together.num_model_passes[i]]
        assert not (alone.sequences[0] == MASK).any()


def plain_of(scheduler: MaskedDiffusionScheduler) -> MaskedDiffusionScheduler | None:
    if isinstance(scheduler, TrapezoidalScheduler):
        return AncestralScheduler(MASK)
    return UniformScheduler(MASK, masking_schedule="linear") if scheduler.config.position_order == "uniform" else None


def test_a_pass_counts_as_a_step_and_the_second_is_not_plain(pipe: MaskedDiffusionTextPipeline) -> None:
    call = {"num_inference_steps": 6}
    ours = pipe(["w1 [MASK:12]"] * 8, generator=seeds(*range(8)), **call)
    assert max(ours.num_model_passes) <= 6
    assert pipe.scheduler.num_inference_steps == 6
    plain = plain_of(pipe.scheduler)
    if plain is not None:
        if isinstance(plain, UniformScheduler):
            assert ours.num_model_passes == [6] * 8
        pipe.scheduler = plain
        theirs = pipe(["w1 [MASK:12]"] * 8, generator=seeds(*range(8)), **call)
        assert not all(torch.equal(a, b) for a, b in zip(ours.sequences, theirs.sequences, strict=True))


def test_partial_caching_is_refused(pipe: MaskedDiffusionTextPipeline) -> None:
    pipe.enable_cache(PartialCacheConfig(num_substeps=2))
    name = type(pipe.scheduler).__name__
    with pytest.raises(ValueError, match=rf"got {name}\. Use MomentScheduler or another one that does"):
        pipe(PROMPTS[0], num_inference_steps=4)


def test_two_calls_do_not_share_what_they_remember(pipe: MaskedDiffusionTextPipeline) -> None:
    """A call within another, between the passes of an interval."""
    call = {"num_inference_steps": 4}
    outer = pipe(PROMPTS[0], generator=seeds(0), **call).texts
    inner = pipe(PROMPTS[1], generator=seeds(1), **call).texts
    found = []

    def nest(_: Any, step: int, t: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        found.append(pipe(PROMPTS[1], generator=seeds(1), **call).texts)
        return tensors

    assert pipe(PROMPTS[0], generator=seeds(0), callback_on_step_end=nest, **call).texts == outer
    assert found
    assert all(texts == inner for texts in found)
