"""A client that knows nothing of this package: diffusers' own aMUSEd pipelines, unmodified, with each scheduler."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AmusedImg2ImgPipeline, AmusedInpaintPipeline, AmusedPipeline, AmusedScheduler

from hf_maskdiff import MaskedDiffusionScheduler, MaskGITScheduler

PROMPTS = ["the cat and the dog", "on the moon"]


@pytest.fixture(scope="module")
def stock(golden_folder: Path) -> AmusedPipeline:
    pipe = AmusedPipeline.from_pretrained(golden_folder / "amused" / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def with_scheduler(pipe: AmusedPipeline, scheduler_class: type[MaskedDiffusionScheduler]) -> AmusedPipeline:
    scheduler = scheduler_class.from_config(pipe.scheduler.config)
    ours = type(pipe)(**(pipe.components | {"scheduler": scheduler}))
    ours.set_progress_bar_config(disable=True)
    return ours


def generate(pipe: AmusedPipeline, generator: object, prompts: list[str] = PROMPTS, **kwargs: object) -> np.ndarray:
    kwargs = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np"} | kwargs
    return pipe(prompts, negative_prompt=[""] * len(prompts), generator=generator, **kwargs).images


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_the_client_is_unmodified() -> None:
    assert inspect.getmodule(AmusedPipeline).__name__.startswith("diffusers.")
    assert inspect.getmodule(AmusedPipeline.__call__).__name__.startswith("diffusers.")


def test_saved_loaded_and_per_image_generators(
    stock: AmusedPipeline, scheduler_class: type[MaskedDiffusionScheduler], tmp_path: Path
) -> None:
    pipe = with_scheduler(stock, scheduler_class)
    assert pipe.scheduler.config.mask_token_id == stock.scheduler.config.mask_token_id
    images = generate(pipe, seeded(1)[0])
    assert images.shape == (2, 16, 16, 3)
    assert np.isfinite(images).all()
    assert np.array_equal(generate(pipe, seeded(1)[0]), images)
    codes = generate(pipe, seeded(1)[0], output_type="latent")
    assert codes.min() >= 0
    assert codes.max() < pipe.vqvae.config.num_vq_embeddings

    pipe.save_pretrained(tmp_path)
    loaded = AmusedPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is scheduler_class
    loaded.set_progress_bar_config(disable=True)
    assert np.array_equal(generate(loaded, seeded(1)[0]), images)

    both = generate(pipe, seeded(3, 4), output_type="latent")
    for prompt, seed, expected in zip(PROMPTS, (3, 4), both, strict=True):
        alone = generate(pipe, seeded(seed), [prompt], output_type="latent")
        assert torch.equal(alone[0], expected)


def test_stock_scheduler_refuses_per_image_generators(stock: AmusedPipeline) -> None:
    with pytest.raises((AttributeError, TypeError)):
        generate(stock, seeded(3, 4))


@pytest.mark.parametrize("temperature", [(2, 0), [4, 1], 3])
def test_choice_temperature_of_the_call(stock: AmusedPipeline, temperature: object) -> None:
    pipe = with_scheduler(stock, MaskGITScheduler)
    images = generate(pipe, seeded(1)[0], temperature=temperature)
    pair = temperature if not isinstance(temperature, int) else (temperature, 0.01)
    same = MaskGITScheduler(mask_token_id=pipe.scheduler.config.mask_token_id, choice_temperature=pair)
    pipe.scheduler = same
    assert np.array_equal(generate(pipe, seeded(1)[0], temperature=None), images)


def counts_left(scheduler: object, steps: int, schedule_rows: list[int], mask: int = 22) -> list[list[int]]:
    """Masked positions of each row after every step, on random logits (batch_size, V, height, width)."""
    sample = torch.zeros(len(schedule_rows), 36, dtype=torch.int64)
    for row, masked in enumerate(schedule_rows):
        sample[row, :masked] = mask
    sample, left = sample.view(-1, 6, 6), []
    scheduler.set_timesteps(steps, (2, 0))
    for n, t in enumerate(scheduler.timesteps):
        generator = torch.Generator().manual_seed(n)
        logits = torch.randn(len(schedule_rows), 20, 6, 6, generator=generator)
        share = sum(schedule_rows) / (36 * len(schedule_rows))
        sample = scheduler.step(logits, t, sample, share, generator).prev_sample
        left.append((sample == mask).flatten(1).sum(1).tolist())
    return left


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("steps", [1, 2, 5, 7, 11, 20])
@pytest.mark.parametrize("rows", [[36, 36], [13, 13]])
def test_as_many_are_revealed_as_by_the_stock_scheduler(schedule: str, steps: int, rows: list[int]) -> None:
    stock = AmusedScheduler(mask_token_id=22, masking_schedule=schedule)
    ours = MaskGITScheduler.from_config(stock.config)
    expected, left = counts_left(stock, steps, rows), counts_left(ours, steps, rows)
    assert ours.num_inference_steps == steps
    # The stock scheduler keeps a mask in every step but the last, so it may find nothing left to reveal.
    assert [[max(n, 1) for n in row] for row in left[:-1]] == expected[:-1]
    assert left[-1] == expected[-1] == [0, 0]


def test_counts_of_the_recorded_run(golden_folder: Path) -> None:
    from safetensors.torch import load_file

    for schedule in ("cosine", "linear"):
        golden = load_file(golden_folder / "samplers" / f"amused_scheduler_{schedule}.safetensors")
        scheduler = MaskGITScheduler(mask_token_id=22, masking_schedule=schedule)
        scheduler.set_timesteps(len(golden["timesteps"]))
        masked = (golden["initial"] == 22).flatten(1).sum(1)
        recorded = (golden["prev_sample"] == 22).flatten(2).sum(2)
        if bool((masked == 36).all()):
            assert torch.equal(recorded, masked - scheduler.planned_counts(masked).cumsum(0))
        sample = golden["initial"]
        for t, logits, after in zip(scheduler.timesteps, golden["logits"], golden["prev_sample"], strict=True):
            ours = scheduler.step(logits, t, sample).prev_sample
            assert torch.equal((ours == 22).flatten(1).sum(1), (after == 22).flatten(1).sum(1))
            sample = after


def test_image_to_image_and_inpainting(stock: AmusedPipeline, scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.random((2, 3, 16, 16), dtype=np.float32))
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., :8] = 1
    arguments = {"prompt": PROMPTS, "negative_prompt": [""] * 2, "image": images, "num_inference_steps": 6}
    arguments |= {"strength": 0.7, "guidance_scale": 3.0, "output_type": "latent"}
    components = {name: part for name, part in stock.components.items() if name != "scheduler"}
    schedulers = [scheduler_class.from_config(stock.scheduler.config) for _ in range(2)]

    edit = AmusedImg2ImgPipeline(**components, scheduler=schedulers[0])
    fill = AmusedInpaintPipeline(**components, scheduler=schedulers[1])
    for pipe, more in ((edit, {}), (fill, {"mask_image": mask})):
        pipe.set_progress_bar_config(disable=True)
        first, again, other = (pipe(**arguments, **more, generator=seeded(seed)[0]).images for seed in (5, 5, 6))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert first.min() >= 0
        assert first.max() < stock.vqvae.config.num_vq_embeddings
    assert fill.scheduler.config.masking_schedule == "linear"  # that pipeline's own doing
    encoded = stock.vqvae.encode(images).latents
    known = stock.vqvae.quantize(encoded)[2][2].reshape(2, 8, 8)
    assert torch.equal(first[..., 4:], known[..., 4:])
    assert not torch.equal(first[..., :4], known[..., :4])
