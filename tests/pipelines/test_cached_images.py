"""Images with the delayed cache: against a reference that keeps stale keys by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_maskdiff import (
    DelayedCacheConfig,
    DualCacheConfig,
    MaskGITPipeline,
    MomentScheduler,
    PartialCacheConfig,
    PrefixCacheConfig,
)
from hf_maskdiff.caching import KeyValueSlot

STEPS, LENGTH = 6, 16


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(n) for n in numbers]


def make(make_pipeline: Callable[..., MaskGITPipeline]) -> MaskGITPipeline:
    pipe = make_pipeline(num_layers=3)
    for parameter in pipe.transformer.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    pipe.scheduler = MomentScheduler(mask_token_id=16, codebook_size=16, masking_schedule="linear")
    return pipe


def draw(pipe: MaskGITPipeline, labels: list[int], numbers: list[int], **call: Any) -> Tensor:
    call = {"num_inference_steps": STEPS, "output_type": "latent", "generator": seeds(*numbers)} | call
    return pipe(class_labels=labels, **call).images


@torch.no_grad()
def reference(pipe: MaskGITPipeline, label: int, seed: int, every: int | None, scale: Any) -> Tensor:
    """One image, step by step: whole passes in which positions that are not fresh keep their old keys and values."""
    kept: dict[Any, tuple[Tensor, Tensor]] = {}
    now: dict[str, Any] = {}

    def mix(slot: KeyValueSlot, args: tuple, output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        extra = output[0].shape[1] - LENGTH  # class and register tokens are always computed
        fresh = nn.functional.pad(now["fresh"], (0, extra), value=True)[:, None, None]
        old = kept.get((now["label"], slot), output)
        kept[now["label"], slot] = tuple(torch.where(fresh, a, b) for a, b in zip(output, old, strict=True))
        return kept[now["label"], slot]

    slots = [module for module in pipe.transformer.modules() if isinstance(module, KeyValueSlot)]
    hooks = [slot.register_forward_hook(mix) for slot in slots]
    scheduler, generator = pipe.scheduler, seeds(seed)
    scheduler.set_timesteps(STEPS)
    sample = torch.full((1, 4, 4), 16)
    before = (sample == 16).flatten()
    scales = torch.linspace(*(scale if isinstance(scale, tuple) else (scale, scale)), STEPS).tolist()
    for step, t in enumerate(scheduler.timesteps):
        if not (sample == 16).any():
            break
        all_fresh = step < 2 or (every is not None and step % every == 0)
        now["fresh"] = torch.ones(LENGTH, dtype=torch.bool) if all_fresh else before
        logits = []
        for now["label"] in (label, 3):
            logits.append(pipe.transformer(sample, torch.tensor([now["label"]]), return_dict=False)[0])
        guided = logits[1] + scales[step] * (logits[0] - logits[1])
        before = (sample == 16).flatten()
        sample = scheduler.step(guided, t, sample, 1.0, generator).prev_sample
    for hook in hooks:
        hook.remove()
    return sample


@pytest.mark.parametrize("every", [None, 3])
@pytest.mark.parametrize("scale", [1.0, 3.0, (1.0, 3.0)])
def test_it_computes_what_it_says_and_keeps_all_else(
    make_pipeline: Callable[..., MaskGITPipeline], every: int | None, scale: Any
) -> None:
    """Guidance that begins at 1 too: later passes read what its first pass without a class has stored."""
    pipe = make(make_pipeline)
    plain = draw(pipe, [0, 1, 2], [5, 6, 7], guidance_scale=scale)
    pipe.enable_cache(DelayedCacheConfig(refresh_every=every))
    cached = draw(pipe, [0, 1, 2], [5, 6, 7], guidance_scale=scale)
    for row in range(3):
        assert torch.equal(cached[row], reference(pipe, row, 5 + row, every, scale)[0])
    if every is None:
        assert not torch.equal(cached, plain)
    pipe.enable_cache(DelayedCacheConfig(refresh_every=1))
    assert torch.equal(draw(pipe, [0, 1, 2], [5, 6, 7], guidance_scale=scale), plain)


@pytest.mark.parametrize("partial", [None, PartialCacheConfig(2)])
def test_guidance_that_a_callback_switches_on(
    make_pipeline: Callable[..., MaskGITPipeline], partial: PartialCacheConfig | None
) -> None:
    """The pass without a class begins anew: computing all images afresh in that step changes nothing."""
    pipe = make(make_pipeline)

    def switch(pipe: Any, step: int, t: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe._guidance_scale = 3.0 if step in (2, 3) else 1.0
        return given

    images = []
    for every in (None, 3):  # guidance begins in step 3
        pipe.enable_cache(DelayedCacheConfig(refresh_every=every, partial=partial))
        images.append(
            draw(pipe, [0, 1], [5, 6], guidance_scale=1.0, num_inference_steps=5, callback_on_step_end=switch)
        )
    assert torch.equal(*images)


@pytest.mark.parametrize("partial", [None, PartialCacheConfig(2)])
def test_an_edited_region_alone_is_passed_and_a_finished_image_is_in_no_pass(
    make_pipeline: Callable[..., MaskGITPipeline], partial: PartialCacheConfig | None
) -> None:
    """Regions of other sizes: a row is the same alone, and its passes get smaller with its masks."""
    pipe = make(make_pipeline)
    pipe.enable_cache(DelayedCacheConfig(refresh_every=None, partial=partial))
    sizes: list[tuple[int, ...]] = []
    handle = pipe.transformer.register_forward_pre_hook(lambda model, args: sizes.append(tuple(args[0].shape)))
    image = torch.linspace(0, 1, 64).view(1, 1, 8, 8).expand(2, -1, -1, -1)
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, :, :4] = 1  # 8 of 16 codes
    masks[1, :, :2, :4] = 1  # 2 of 16
    call = {"num_inference_steps": 4, "output_type": "latent", "guidance_scale": 1.0}
    together = pipe(
        class_labels=[0, 1], image=image, mask_image=masks, strength=1.0, generator=seeds(1, 2), **call
    ).images
    if partial is None:
        assert sizes[:2] == [(2, 4, 4), (2, 4, 4)]
        assert [rows for rows, *_ in sizes[2:]] == [1] * (len(sizes) - 2)  # the second has no mask any more
        assert [shape[1] for shape in sizes[2:]] == [6, 4]
    handle.remove()
    for row in range(2):
        one = slice(row, row + 1)
        alone = pipe(
            class_labels=[row], image=image[one], mask_image=masks[one], strength=1.0, generator=seeds(1 + row), **call
        ).images
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("config", [PrefixCacheConfig(), DualCacheConfig()])
def test_what_needs_blocks_is_refused(make_pipeline: Callable[..., MaskGITPipeline], config: Any) -> None:
    with pytest.raises(
        ValueError, match=r"an image is not filled in block by block, so (Prefix|Dual)CacheConfig would"
    ):
        make_pipeline().enable_cache(config)
