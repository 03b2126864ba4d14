"""The cache that computes what a step draws and little around it: for schedulers that choose without the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_cached_images import draw, make
from test_cached_steps import PROMPTS, make_any
from test_masked_diffusion_text import seeds
from torch import Tensor

from hf_maskdiff import (
    GreedyCacheConfig,
    HaltonScheduler,
    MaskedDiffusionTextPipeline,
    MomentScheduler,
    PartialCacheConfig,
    UniformScheduler,
)

CALL: dict[str, Any] = {"max_new_tokens": 13, "num_inference_steps": 6}
CONFIGS = {
    "window 2": GreedyCacheConfig(window=2, refresh_every=None),
    "no window": GreedyCacheConfig(window=0),
    "groups": GreedyCacheConfig(window=1, partial=PartialCacheConfig(2, full_pass_threshold=1)),
}


@pytest.fixture(params=["llama", "modernbert", "qwen2", "mdlm"])
def pipe(request: pytest.FixtureRequest) -> MaskedDiffusionTextPipeline:
    made = make_any(request.param)
    made.scheduler = UniformScheduler(mask_token_id=made.scheduler.config.mask_token_id, masking_schedule="linear")
    return made


def texts(pipe: MaskedDiffusionTextPipeline, **call: Any) -> list[Tensor]:
    return pipe(PROMPTS, generator=seeds(0, 1, 2), stop_at_eos=False, **(CALL | call)).sequences


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.covering(2)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("call", [{}, {"block_length": 5, "guidance_scale": 1.7}], ids=["plain", "guided in blocks"])
def test_a_row_does_not_depend_on_its_batch(pipe: MaskedDiffusionTextPipeline, name: str, call: dict[str, Any]) -> None:
    pipe.enable_cache(CONFIGS[name])
    together = pipe(PROMPTS, generator=seeds(0, 1, 2), stop_at_eos=False, **(CALL | call))
    assert sum(together.num_partial_passes) > 0
    for row, prompt in enumerate(PROMPTS):
        alone = pipe(prompt, generator=seeds(row), stop_at_eos=False, **(CALL | call))
        assert torch.equal(alone.sequences[0], together.sequences[row])
        assert alone.num_partial_passes == [together.num_partial_passes[row]]


def test_refreshed_in_every_step_it_equals_no_cache(pipe: MaskedDiffusionTextPipeline) -> None:
    plain = texts(pipe)
    pipe.enable_cache(GreedyCacheConfig(refresh_every=1))
    assert same(texts(pipe), plain)
    pipe.enable_cache(GreedyCacheConfig(refresh_every=None, window=0))
    assert not same(texts(pipe), plain)  # stale keys were seen


def test_a_pass_does_not_grow_with_the_text(pipe: MaskedDiffusionTextPipeline) -> None:
    pipe.scheduler = HaltonScheduler(mask_token_id=pipe.mask_token_id, masking_schedule="linear")
    pipe.enable_cache(GreedyCacheConfig(window=2, refresh_every=None))
    texts(pipe)  # the probe's passes are not counted
    sizes: list[int] = []

    def note(model: object, args: tuple, given: dict[str, Any]) -> None:
        sizes.append((args[0] if args else given["input_ids"]).shape[1])

    handle = pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
    pipe("w7", max_new_tokens=40, num_inference_steps=40, generator=seeds(0), stop_at_eos=False)
    handle.remove()
    assert len(sizes) == 40
    most = 2 * (1 + 1 + 2) if pipe.config.shift_logits else 1 + 1 + 2  # and where it needs them, their predecessors
    assert max(sizes[1:]) <= most < sizes[0]


def test_a_scheduler_that_reads_logits_is_refused(pipe: MaskedDiffusionTextPipeline) -> None:
    pipe.enable_cache(GreedyCacheConfig())
    pipe.scheduler = MomentScheduler(mask_token_id=pipe.mask_token_id)
    with pytest.raises(
        ValueError, match="GreedyCacheConfig needs a scheduler that chooses positions without the model"
    ):
        texts(pipe)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_images(make_pipeline: Any, scale: float) -> None:
    pipe = make(make_pipeline)
    settings = pipe.scheduler.config
    pipe.scheduler = HaltonScheduler(settings.mask_token_id, settings.codebook_size, masking_schedule="linear")
    plain = draw(pipe, [0, 1, 2], [5, 6, 7], guidance_scale=scale)
    pipe.enable_cache(GreedyCacheConfig(window=1, refresh_every=None))
    cached = draw(pipe, [0, 1, 2], [5, 6, 7], guidance_scale=scale)
    assert not torch.equal(cached, plain)
    for row in range(3):
        assert torch.equal(draw(pipe, [row], [5 + row], guidance_scale=scale)[0], cached[row])
    pipe.enable_cache(GreedyCacheConfig(refresh_every=1))
    assert torch.equal(draw(pipe, [0, 1, 2], [5, 6, 7], guidance_scale=scale), plain)
