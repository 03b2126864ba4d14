"""Two users of one object do not change each other's results: schedulers, models, configurations, progress bars."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from block_models import open_family
from diffusers import FirstBlockCacheConfig
from test_concurrent_calls import MASK, text_pipeline, tokenizer
from torch import Tensor
from transformers import pipeline

from hf_maskdiff import (
    DelayedCacheConfig,
    DualCacheConfig,
    HaltonScheduler,
    HybridScheduler,
    MaskedDiffusionTextPipeline,
    MaskGITPipeline,
    MomentScheduler,
    PartialCacheConfig,
)

Make = Callable[..., MaskGITPipeline]
KINDS = ["images", "mdlm", "llama"]


def make(kind: str, make_pipeline: Make) -> Any:
    return make_pipeline() if kind == "images" else text_pipeline(kind)


def sharing(pipe: Any) -> Any:
    """Another pipeline with the same components."""
    other = type(pipe).from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    assert all(other.components[name] is part for name, part in pipe.components.items())
    return other


def result(pipe: Any, steps: int = 2, **kwargs: Any) -> list[list]:
    generator = [torch.Generator().manual_seed(seed) for seed in range(4)]
    call = {"num_inference_steps": steps, "generator": generator, **kwargs}
    if isinstance(pipe, MaskGITPipeline):
        return pipe([0, 1, 2, 0], output_type="latent", **call).images.tolist()
    return [ids.tolist() for ids in pipe(["w3 w4", "w5", "w6", "w7"], max_new_tokens=12, **call).sequences]


@pytest.mark.parametrize("kind", KINDS)
def test_a_scheduler(kind: str, make_pipeline: Make) -> None:
    """A call runs on a copy; what the other pipeline is called with, also from a callback, does not matter."""
    pipe = make(kind, make_pipeline)
    other = sharing(pipe)
    if kind != "images":
        pipe.scheduler = other.scheduler = MomentScheduler(mask_token_id=MASK)
    expected = result(pipe, 4), result(other, 3, temperature=2.0)

    def nest(_: Any, step: int, t: Tensor, given: dict) -> dict:
        assert result(other, 3, temperature=2.0) == expected[1]
        return given

    assert result(pipe, 4, callback_on_step_end=nest) == expected[0]
    assert result(pipe, 4) == expected[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_randomized_scheduler(kind: str, make_pipeline: Make) -> None:
    """Runs of one generator that begin within each other, too."""
    pipe = make(kind, make_pipeline)
    mask = pipe.scheduler.config.mask_token_id
    pipe.scheduler = HaltonScheduler(mask_token_id=mask, codebook_size=mask, randomize=True)
    other = sharing(pipe)
    expected = result(pipe, 4), result(other, 3)

    def nest(_: Any, step: int, t: Tensor, given: dict) -> dict:
        assert result(other, 3) == expected[1]
        return given

    assert result(pipe, 4, callback_on_step_end=nest) == expected[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_keeps_its_run(kind: str, make_pipeline: Make) -> None:
    """`pipe.scheduler` shows the latest call's run: a loop of one's own takes a copy of it, which no call changes."""
    pipe = make(kind, make_pipeline)
    mine = copy.copy(pipe.scheduler)
    mine.set_timesteps(7)
    result(pipe, 3)
    assert (mine.num_inference_steps, len(mine.timesteps)) == (7, 7)
    assert pipe.scheduler.num_inference_steps == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_one_of_two_pipelines_caches(kind: str, make_pipeline: Make) -> None:
    pipe = make(kind, make_pipeline)
    if kind != "images":
        pipe.scheduler = MomentScheduler(mask_token_id=MASK)
    other = sharing(pipe)
    plain = result(pipe)
    pipe.enable_cache(PartialCacheConfig(num_substeps=3))
    cached = result(pipe)
    assert cached != plain
    assert result(other) == plain
    other.enable_cache(PartialCacheConfig(num_substeps=2))
    assert result(pipe) == cached
    other.disable_cache()
    assert result(pipe) == cached
    assert result(other) == plain
    pipe.disable_cache()
    assert result(pipe) == plain


@pytest.mark.parametrize("kind", ["images", "mdlm"])
def test_a_model_s_own_switch_is_everybody_s(kind: str, make_pipeline: Make) -> None:
    pipe = make(kind, make_pipeline)
    if kind != "images":
        pipe.scheduler = MomentScheduler(mask_token_id=MASK)
    other = sharing(pipe)
    plain = result(pipe)
    pipe.transformer.enable_cache(PartialCacheConfig(num_substeps=3))
    assert result(pipe) == result(other) != plain
    pipe.disable_cache()
    assert result(pipe) == result(other) == plain
    pipe.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    assert other.transformer.is_cache_enabled
    with pytest.raises(ValueError, match="Caching has already been enabled"):
        pipe.enable_cache(PartialCacheConfig())
    pipe.disable_cache()
    pipe.enable_cache(PartialCacheConfig(num_substeps=2))
    with pytest.raises(ValueError, match=r"two kinds must not be on at once, got FirstBlockCacheConfig .*\. Call"):
        pipe.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    assert not pipe.transformer.is_cache_enabled


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_with_another_scheduler_keeps_the_cache(kind: str, make_pipeline: Make) -> None:
    pipe = make(kind, make_pipeline)
    pipe.enable_cache(PartialCacheConfig(num_substeps=2))
    task = f"masked-diffusion-{'image' if kind == 'images' else 'text'}-generation"
    replaced = pipeline(task, model=pipe, scheduler="HybridScheduler", device="cpu").model
    assert type(replaced.scheduler) is HybridScheduler
    assert type(pipe.scheduler) is not HybridScheduler
    assert getattr(replaced, "denoiser", replaced).partial_cache == PartialCacheConfig(num_substeps=2)


def test_defaults_of_calls(make_pipeline: Make) -> None:
    """A dictionary that two pipelines were built with, and that its owner changes."""
    parts, defaults = make_pipeline().components, {"num_inference_steps": 2}
    first, second = (MaskGITPipeline(**parts, call_defaults=defaults) for _ in range(2))
    third = MaskGITPipeline.from_pipe(first)
    defaults["num_inference_steps"] = 9
    third.config.call_defaults["num_inference_steps"] = 8
    for pipe in (first, second):
        pipe.set_progress_bar_config(disable=True)
        pipe(0, output_type="latent")
        assert pipe.num_timesteps == 2


def test_lists_in_a_configuration() -> None:
    table = [4, 16]
    first = MomentScheduler(mask_token_id=16, masking_schedule=table, choice_temperature=(2.0, 1.0))
    second = HybridScheduler.from_config(first.config)
    table[0] = 5
    second.config.masking_schedule[0] = 6
    second.config.choice_temperature[0] = 7.0
    assert first.config.masking_schedule == [4, 16]
    assert first.config.choice_temperature == [2.0, 1.0]


def test_a_model_with_two_tokenizers() -> None:
    """What one pipeline takes for the mask is not written into the model, where the other one would find it."""
    model = text_pipeline("llama").transformer
    model.config.mask_token_id = None
    first = tokenizer()
    second = tokenizer()
    second.mask_token = "w20"
    pipes = [MaskedDiffusionTextPipeline.from_model(model, one) for one in (first, second)]
    assert [pipe.mask_token_id for pipe in pipes] == [MASK, 20]


@pytest.mark.parametrize("kind", KINDS)
def test_progress_bars(kind: str, make_pipeline: Make, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = make(kind, make_pipeline)
    shown = type(pipe)(**pipe.components)
    task = f"masked-diffusion-{'image' if kind == 'images' else 'text'}-generation"
    quiet = pipeline(task, model=pipe, scheduler="HybridScheduler", device="cpu").model
    shown.set_progress_bar_config(desc="here")
    result(quiet)
    result(pipe)
    assert capsys.readouterr().err == ""
    result(shown)
    assert "here" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_with_another_scheduler_keeps_a_cache_across_steps(kind: str, make_pipeline: Make) -> None:
    """Its pipeline is a copy, which once kept nothing but partial caching."""
    pipe = make(kind, make_pipeline)
    config = DelayedCacheConfig(refresh_every=4) if kind == "images" else DualCacheConfig(refresh_every=3)
    pipe.enable_cache(config)
    task = "image" if kind == "images" else "text"
    made = pipeline(f"masked-diffusion-{task}-generation", model=pipe, scheduler="UniformScheduler").model
    assert made is not pipe
    assert cache_of(made) == cache_of(pipe) == config
    made.disable_cache()
    assert cache_of(pipe) == config


def test_a_task_does_not_switch_on_what_was_switched_off(tmp_path: Path) -> None:
    pipe = open_family("sdar", tmp_path)
    assert cache_of(pipe) is not None
    pipe.disable_cache()
    task = "masked-diffusion-text-generation"
    assert cache_of(pipeline(task, model=pipe, scheduler="UniformScheduler").model) is None


def cache_of(pipe: Any) -> Any:
    return (pipe.denoiser if hasattr(pipe, "denoiser") else pipe._cache_switch).cache_config
