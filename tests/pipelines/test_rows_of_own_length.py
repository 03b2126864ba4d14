"""Samplers whose run depends on a row's length: in a batch every row has its own, whatever the longest one has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_cached_images import make
from test_masked_diffusion_text import MASK, make_pipeline, seeds
from torch import Tensor

from hf_maskdiff import (
    DelayedCacheConfig,
    DualCacheConfig,
    FirstHittingScheduler,
    HaltonScheduler,
    HybridScheduler,
    MaskedDiffusionScheduler,
)

PROMPTS = ["w7 w8 [MASK:2] w9", "w10 [MASK:9] w11 w12", "[MASK]", "w13 [MASK:5] w14 w15 w16 w17 w18"]
SCHEDULERS: dict[str, tuple[MaskedDiffusionScheduler, Any]] = {
    "a place of its own": (HaltonScheduler(mask_token_id=MASK, randomize=True), 1.0),
    "in a hybrid": (HybridScheduler(mask_token_id=MASK, exploration="randomized_halton"), 1.0),
    "a scale of its own": (FirstHittingScheduler(mask_token_id=MASK), (1.0, 4.0)),
    "from below 1": (FirstHittingScheduler(mask_token_id=MASK), (0.0, 3.0)),
}


@pytest.mark.parametrize("block_length", [None, 4])
@pytest.mark.parametrize("cache", [None, DualCacheConfig()], ids=["no cache", "dual"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_texts(name: str, cache: DualCacheConfig | None, block_length: int | None) -> None:
    pipe = make_pipeline()
    pipe.transformer.double()
    pipe.scheduler, scale = SCHEDULERS[name]
    if cache is not None:
        pipe.enable_cache(cache)
    call = {"guidance_scale": scale, "num_inference_steps": 4, "block_length": block_length}
    together = pipe(PROMPTS, generator=seeds(0, 1, 2, 3), **call)
    for row, prompt in enumerate(PROMPTS):
        alone = pipe(prompt, generator=seeds(row), **call)
        assert torch.equal(alone.sequences[0], together.sequences[row])
        assert alone.num_model_passes == [together.num_model_passes[row]]


def test_a_pair_reaches_its_end_in_the_last_step_of_each_row() -> None:
    """With one token a step a row's first one is drawn at the first scale, its last one at the second."""
    pipe = make_pipeline()
    pipe.transformer.double()
    pipe.scheduler = FirstHittingScheduler(mask_token_id=MASK)
    noted: list[Tensor] = []
    plain = torch.Tensor.lerp_

    def lerp_(without: Tensor, logits: Tensor, scale: Any) -> Tensor:
        noted.append(scale.flatten())
        return plain(without, logits, scale)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.Tensor, "lerp_", lerp_)
        pipe(["w7 [MASK:3] w8", "w9 [MASK] w10", "[MASK:5] w11"], guidance_scale=(2.0, 4.0), generator=seeds(0, 1, 2))
    # Rows without masks take part in no pass.
    assert [scales.tolist() for scales in noted] == [[2, 2, 2], [3, 2.5], [4, 3], [3.5], [4]]


@pytest.mark.parametrize("cache", [None, DelayedCacheConfig(refresh_every=None)], ids=["no cache", "delayed"])
@pytest.mark.parametrize("scale", [(1.0, 5.0), (0.0, 3.0)])
def test_images(make_pipeline: Any, scale: tuple[float, float], cache: DelayedCacheConfig | None) -> None:
    pipe = make(make_pipeline)
    pipe.scheduler = FirstHittingScheduler(mask_token_id=16, codebook_size=16)
    if cache is not None:
        pipe.enable_cache(cache)
    image = torch.linspace(0, 1, 64).view(1, 1, 8, 8).expand(2, -1, -1, -1)
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, :, :4] = 1  # 8 of 16 codes
    masks[1, :, :2, :4] = 1  # 2 of 16
    call: dict[str, Any] = {"strength": 1.0, "output_type": "latent", "guidance_scale": scale}
    both = pipe(class_labels=[0, 1], image=image, mask_image=masks, generator=seeds(1, 2), **call).images
    for row in range(2):
        one = slice(row, row + 1)
        given = {"image": image[one], "mask_image": masks[one], "generator": seeds(1 + row)}
        assert torch.equal(pipe(class_labels=[row], **given, **call).images[0], both[row])
