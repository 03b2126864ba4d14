"""Random combinations of scheduler, cache and call on images: what holds for every one of them.

A case is drawn from its number alone, see `test_text_combinations.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from test_masked_diffusion_text import seeds
from test_text_combinations import a_scheduler, groups, kinds, looking_ahead, numbers

from hf_maskdiff import DelayedCacheConfig, GreedyCacheConfig, MaskGITPipeline

MASK = 16


def caches(draw: random.Random, scheduler: Any) -> tuple[Any, Any]:
    """A cache, and one that must give the same."""
    partial, plans = groups(draw, scheduler), [None]
    if not scheduler.reads_revealed:
        plans.append(DelayedCacheConfig)
    if getattr(scheduler, "chooses_without_logits", False):
        plans.append(GreedyCacheConfig)
    plan = draw.choice(plans)
    if plan is None:
        return partial, partial
    used = plan(refresh_every=draw.choice([1, 2, None]), partial=partial)
    return used, partial if used.refresh_every == 1 else used


@dataclass(frozen=True)
class Case:
    """A call for three images; `exact` is a cache that must give the same."""

    scheduler: Any
    cache: Any
    exact: Any
    images: torch.Tensor
    editable: torch.Tensor
    edits: dict[str, Any]
    call: dict[str, Any]


def case_of(number: int) -> Case:
    draw, noise = random.Random(number), torch.Generator().manual_seed(number)
    scheduler = a_scheduler(draw, mask_token_id=MASK, codebook_size=16)
    cache, exact = caches(draw, scheduler)
    scheduler = looking_ahead(scheduler, number)
    if scheduler.num_candidates > 1:
        cache, exact = None, None
    images = torch.rand(3, 1, 8, 8, generator=noise)
    editable = torch.rand(3, 1, 4, 4, generator=noise) < draw.choice([0.3, 0.8, 1.0])
    edits: dict[str, Any] = {}
    if draw.random() < 0.6:
        edits["image"] = images
        if draw.random() < 0.7:
            edits["mask_image"] = editable.double().repeat_interleave(2, 2).repeat_interleave(2, 3)
    call = {
        "num_inference_steps": draw.choice([2, 3, 5, 9]),
        "guidance_scale": draw.choice([1.0, 3.0, (1.0, 4.0)]),
        "sampling_temperature": draw.choice([None, None, 0.0, 0.7]),
        "strength": draw.choice([1.0, 0.6]) if edits else 1.0,
        "output_type": "latent",
    }
    if scheduler.config.get("measure") == "drawn" and type(scheduler).__name__ == "ThresholdScheduler":
        del call["sampling_temperature"]
    return Case(scheduler, cache, exact, images, editable, edits, call)


def features(number: int) -> Iterable[tuple[str, object]]:
    case = case_of(number)
    yield "scheduler", type(case.scheduler)
    yield "cache", kinds(case.cache)
    yield "edits", (*case.edits, case.call["strength"])
    yield "guided", case.call["guidance_scale"] != 1.0
    yield "candidates", case.scheduler.num_candidates


def check(pipe: MaskGITPipeline, number: int) -> None:
    case = case_of(number)
    pipe.transformer.double()
    pipe.scheduler, labels, edits, call = case.scheduler, [0, 1, 2], case.edits, case.call

    def run(cache: Any, rows: list[int]) -> torch.Tensor:
        pipe.disable_cache()
        if cache is not None:
            pipe.enable_cache(cache)
        own = {name: values[rows] for name, values in edits.items()}
        made = pipe(class_labels=[labels[row] for row in rows], generator=seeds(*rows), **own, **call).images
        pipe.disable_cache()
        return made

    made = run(case.cache, [0, 1, 2])
    assert not (made == MASK).any(), "a mask is left"
    if "mask_image" in edits:
        kept = ~case.editable[:, 0]
        codes = pipe.encode_image(pipe.preprocess_image(case.images))
        assert torch.equal(made[kept], codes[kept]), "a given code has changed"
    for row in {0, 1, 2} - {number % 3}:
        assert torch.equal(run(case.cache, [row])[0], made[row]), "an image depends on its batch"
    if case.exact is not case.cache or number % 8 == 0:  # else it is the same call again
        assert torch.equal(run(case.exact, [0, 1, 2]), made), f"{case.cache} differs from {case.exact}"


@pytest.mark.parametrize("number", range(16))
def test_a_combination(make_pipeline: Callable[..., MaskGITPipeline], number: int) -> None:
    check(make_pipeline(num_layers=1), number)


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", numbers(features, fast=16, last=250))
def test_more_combinations(make_pipeline: Callable[..., MaskGITPipeline], number: int) -> None:
    check(make_pipeline(num_layers=1), number)
