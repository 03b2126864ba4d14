"""A client that knows nothing of this package: diffusers' own aMUSEd pipelines, unmodified, with each scheduler."""

from __future__ import annotations

import inspect
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AmusedImg2ImgPipeline, AmusedInpaintPipeline, AmusedPipeline, AmusedScheduler
from golden_data import cases, read, rows_left
from replay import round_as_recorded

from hf_maskdiff import (
    AncestralScheduler,
    MaskedDiffusionScheduler,
    MaskGITScheduler,
    ReMDMScheduler,
    TrapezoidalScheduler,
)

PROMPTS = ["the cat and the dog", "on the moon"]


@pytest.fixture(scope="module")
def stock(golden_folder: Path) -> AmusedPipeline:
    pipe = AmusedPipeline.from_pretrained(golden_folder / "amused" / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def side_of(pipe: AmusedPipeline) -> int:
    """Tokens a side."""
    return pipe.transformer.config.sample_size


def pixels_of(pipe: AmusedPipeline) -> int:
    return side_of(pipe) * pipe.vae_scale_factor


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
    assert images.shape == (2, pixels_of(pipe), pixels_of(pipe), 3)
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


@pytest.mark.parametrize("path", cases("samplers/amused_scheduler_*"))
def test_counts_of_the_recorded_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden, settings = read(path)
    mask, share = int(settings["mask_token_id"]), float(settings["starting_mask_ratio"])
    states = torch.cat([golden["initial"][None], golden["prev_sample"]])
    left = rows_left(states, mask)
    assert left[0].all()
    round_as_recorded(monkeypatch, left[:-1], start=share * states[0, 0].numel())
    scheduler = MaskGITScheduler(mask_token_id=mask, masking_schedule=settings["masking_schedule"])
    scheduler.set_timesteps(len(golden["timesteps"]))
    assert torch.equal(left[0] - scheduler.planned_counts(left[0]).cumsum(0), left[1:])
    for t, logits, before, after in zip(scheduler.timesteps, golden["logits"], states, left[1:], strict=False):
        ours = scheduler.step(logits, t, before, share).prev_sample
        assert torch.equal(rows_left(ours[None], mask)[0], after)


# --- image-to-image and inpainting ------------------------------------------------------------------------------------

EDITORS = [AmusedImg2ImgPipeline, AmusedInpaintPipeline]
STEPS = 6
# Each position decides on its own, at random, whether it is revealed in a step.
MAY_REVEAL_NOTHING = (AncestralScheduler, ReMDMScheduler, TrapezoidalScheduler)


def editor(
    stock: AmusedPipeline, pipeline_class: type, scheduler_class: type = MaskGITScheduler
) -> AmusedImg2ImgPipeline | AmusedInpaintPipeline:
    scheduler = scheduler_class.from_config(stock.scheduler.config)
    pipe = pipeline_class(**(stock.components | {"scheduler": scheduler}))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def images(stock: AmusedPipeline) -> torch.Tensor:
    size = (pixels_of(stock), pixels_of(stock))
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))


def columns(pipe: AmusedPipeline, *widths: int) -> torch.Tensor:
    """Masks that ask for the first columns of tokens to be made anew, as many as `widths` says for each image."""
    pixels, ends = pixels_of(pipe), pipe.vae_scale_factor * torch.tensor(widths)
    return (torch.arange(pixels).expand(len(widths), 1, pixels, pixels) < ends.view(-1, 1, 1, 1)).float()


def codes_of(pipe: object, images: torch.Tensor) -> torch.Tensor:
    return pipe.vqvae.quantize(pipe.vqvae.encode(images).latents)[2][2].reshape(
        len(images), side_of(pipe), side_of(pipe)
    )


def edit(
    pipe: object, images: torch.Tensor, generator: object, mask: torch.Tensor | None = None, **kwargs: object
) -> torch.Tensor:
    kwargs = {"strength": 0.7, "num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "latent"} | kwargs
    kwargs |= {"mask_image": mask} if isinstance(pipe, AmusedInpaintPipeline) else {}
    prompts = kwargs.pop("prompts", PROMPTS[: len(images)])
    return pipe(prompts, images, negative_prompt=[""] * len(images), generator=generator, **kwargs).images


@pytest.mark.covering(1)
@pytest.mark.parametrize("pipeline_class", EDITORS)
def test_editing_with_every_scheduler(
    stock: AmusedPipeline,
    scheduler_class: type[MaskedDiffusionScheduler],
    pipeline_class: type,
    images: torch.Tensor,
) -> None:
    pipe, half = editor(stock, pipeline_class, scheduler_class), side_of(stock) // 2
    mask = columns(stock, half, half)
    first = edit(pipe, images, seeded(5)[0], mask)
    assert 0 <= int(first.min()) <= int(first.max()) < stock.vqvae.config.num_vq_embeddings
    draws = pipe.scheduler.config.get("drawn", True)  # one takes the most probable tokens unless it is told to draw
    assert not draws or not torch.equal(first, edit(pipe, images, seeded(6)[0], mask))

    both = edit(pipe, images, seeded(3, 4), mask)
    for row, seed in enumerate((3, 4)):
        alone = edit(pipe, images[row, None], seeded(seed), mask[row, None], prompts=[PROMPTS[row]])
        assert torch.equal(alone[0], both[row])
    several = edit(pipe, images[:1], seeded(3, 4), mask[:1], num_images_per_prompt=2)
    assert several.shape == (2, side_of(pipe), side_of(pipe))
    assert not draws or not torch.equal(several[0], several[1])


@pytest.mark.parametrize("pipeline_class", EDITORS)
def test_an_editor_is_saved_and_loaded(
    stock: AmusedPipeline, pipeline_class: type, images: torch.Tensor, tmp_path: Path
) -> None:
    pipe, half = editor(stock, pipeline_class), side_of(stock) // 2
    mask = columns(stock, half, half)
    pipe.save_pretrained(tmp_path)
    loaded = pipeline_class.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is MaskGITScheduler
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(edit(loaded, images, seeded(5)[0], mask), edit(pipe, images, seeded(5)[0], mask))


@pytest.mark.parametrize("pipeline_class", EDITORS)
def test_stock_editing_refuses_per_image_generators(
    stock: AmusedPipeline, pipeline_class: type, images: torch.Tensor
) -> None:
    with pytest.raises((AttributeError, TypeError)):
        edit(editor(stock, pipeline_class, AmusedScheduler), images, seeded(3, 4), columns(stock, 1, 1))


@pytest.mark.covering(1)
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_inpainting_with_another_share_of_masks_in_each_row(
    stock: AmusedPipeline, scheduler_class: type[MaskedDiffusionScheduler], images: torch.Tensor, strength: float
) -> None:
    """That pipeline passes the mean share of the batch: one position a step and none left is all that is promised."""
    pipe, side = editor(stock, AmusedInpaintPipeline, scheduler_class), side_of(stock)
    mask = columns(stock, 1, side - 1)
    asked = mask[:, 0, :: pipe.vae_scale_factor, :: pipe.vae_scale_factor]
    left = [asked.flatten(1).sum(1).long()]

    def count(step: int, timestep: torch.Tensor, latents: torch.Tensor) -> None:
        left.append((latents == pipe.scheduler.config.mask_token_id).flatten(1).sum(1))

    codes = edit(pipe, images, seeded(5)[0], mask, strength=strength, callback=count)
    assert len(left) == 1 + int(STEPS * strength)
    assert left[0].tolist() == [side, side * (side - 1)]
    assert left[-1].tolist() == [0, 0]
    if scheduler_class not in MAY_REVEAL_NOTHING:
        for before, after in pairwise(left):
            assert bool(((after < before) | (before == 0)).all())
    kept = asked == 0
    assert torch.equal(codes[kept], codes_of(pipe, images)[kept])


@pytest.mark.parametrize("everything", [False, True])
def test_inpainting_of_nothing_and_of_everything(
    stock: AmusedPipeline, scheduler_class: type[MaskedDiffusionScheduler], images: torch.Tensor, everything: bool
) -> None:
    pipe, width = editor(stock, AmusedInpaintPipeline, scheduler_class), side_of(stock) * everything
    codes = edit(pipe, images, seeded(5)[0], columns(stock, width, width), strength=1.0)
    assert torch.equal(codes, codes_of(pipe, images)) != everything
    assert int(codes.max()) < stock.vqvae.config.num_vq_embeddings


def test_a_shared_scheduler_follows_the_schedule_that_inpainting_sets(
    stock: AmusedPipeline, scheduler_class: type[MaskedDiffusionScheduler]
) -> None:
    """Stock inpainting makes its scheduler's schedule linear, and so that of the pipeline it shares components with."""
    pipe, num_codes = with_scheduler(stock, scheduler_class), stock.vqvae.config.num_vq_embeddings
    pipe.scheduler.register_to_config(masking_schedule="cosine")
    apart = scheduler_class.from_config(pipe.scheduler.config)
    linear = scheduler_class.from_config(pipe.scheduler.config, masking_schedule="linear")
    for scheduler in (pipe.scheduler, apart, linear):
        scheduler.set_timesteps(STEPS)
    assert AmusedInpaintPipeline(**pipe.components).scheduler is pipe.scheduler  # later: nothing may have been kept
    assert (pipe.scheduler.config.masking_schedule, apart.config.masking_schedule) == ("linear", "cosine")

    def follow(scheduler: MaskedDiffusionScheduler) -> torch.Tensor:
        noisy = scheduler.add_noise(torch.zeros(1, 64, dtype=torch.int64), scheduler.timesteps[3], seeded(1)[0])
        logits = torch.zeros(1, 64, num_codes)
        return torch.cat([noisy, scheduler.step(logits, 0.5, noisy, generator=seeded(2)[0]).prev_sample])

    assert torch.equal(follow(pipe.scheduler), follow(linear))
    assert not torch.equal(follow(apart), follow(linear))


@pytest.mark.parametrize(("steps", "strength"), [(6, 0.7), (8, 0.25), (5, 0.9), (4, 0.1), (6, 1.0)])
def test_image_to_image_starts_one_step_noisier_than_stock(steps: int, strength: float) -> None:
    """The pipeline asks for the noise of `timesteps[start - 1]`, which the stock scheduler takes for the noise that
    is left after that step, and ours for the noise before it. At full strength `start - 1` is -1, the last step: stock
    starts from the image unmasked, ours with the last step's share.
    """
    codes, start = torch.zeros(500, 8, 8, dtype=torch.int64), steps - int(steps * strength)
    shares = []
    for scheduler in (AmusedScheduler(mask_token_id=47), MaskGITScheduler(mask_token_id=47)):
        scheduler.set_timesteps(steps)
        noisy = scheduler.add_noise(codes, scheduler.timesteps[start - 1], generator=seeded(1)[0])
        shares.append(float((noisy == 47).float().mean()))
    after, before = (math.sin(math.pi / 2 * (1 - (start - 1 + more) % steps / steps)) for more in (1, 0))
    assert shares[0] == pytest.approx(0.0 if start in (0, steps) else after, abs=0.02)
    assert shares[1] == pytest.approx(before, abs=0.02)


def test_image_to_image_asks_for_the_noise_of_the_step_before(
    stock: AmusedPipeline, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the first step that runs makes up for it: after each one as much is masked as in a whole run."""
    pipe, asked, left = editor(stock, AmusedImg2ImgPipeline), [], []
    add_noise, mask, num_tokens = pipe.scheduler.add_noise, pipe.scheduler.config.mask_token_id, side_of(stock) ** 2

    def record(latents: torch.Tensor, timesteps: torch.Tensor, generator: object) -> torch.Tensor:
        asked.append(timesteps)
        return add_noise(latents, timesteps, generator=generator)

    def count(step: int, timestep: torch.Tensor, latents: torch.Tensor) -> None:
        left.append((latents == mask).flatten(1).sum(1).tolist())

    monkeypatch.setattr(pipe.scheduler, "add_noise", record)
    edit(pipe, images, seeded(5)[0], strength=0.7, callback=count)
    assert asked == [pipe.scheduler.timesteps[1]]  # 4 of 6 steps run, the first of them is number 2
    whole = num_tokens - pipe.scheduler.planned_counts(torch.tensor([num_tokens])).cumsum(0)
    assert left == whole[2:].expand(-1, 2).tolist()


def test_image_to_image_of_no_step_is_unsupported(stock: AmusedPipeline, images: torch.Tensor) -> None:
    """A strength below 1 / T runs no step. Stock gives the image back; here the last step's share of masks is still to
    be filled in, which the codes show and the decoder refuses.
    """
    pipe = editor(stock, AmusedImg2ImgPipeline)
    codes = edit(pipe, images, seeded(5)[0], strength=0.1)
    masked = codes == pipe.scheduler.config.mask_token_id
    assert 0 < int(masked.sum()) < masked.numel()
    assert torch.equal(codes[~masked], codes_of(pipe, images)[~masked])
    with pytest.raises(IndexError):
        edit(pipe, images, seeded(5)[0], strength=0.1, output_type="np")
    stock_pipe = editor(stock, AmusedImg2ImgPipeline, AmusedScheduler)
    assert torch.equal(edit(stock_pipe, images, seeded(5)[0], strength=0.1), codes_of(pipe, images))


def test_the_released_mask_id_lies_outside_the_columns(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    """aMUSEd's own numbers: mask 8255, logits over 8192 codes."""
    scheduler = scheduler_class.from_config(AmusedScheduler(mask_token_id=8255).config)
    scheduler.set_timesteps(4)
    codes = torch.arange(16).view(1, 4, 4) * 512
    for latents in (torch.full_like(codes, 8255), scheduler.add_noise(codes, scheduler.timesteps[1], seeded(1)[0])):
        known = latents != 8255
        for t in scheduler.timesteps:
            assert bool((latents == 8255).any())
            logits = torch.randn(1, 8192, 4, 4, generator=seeded(2)[0])
            latents = scheduler.step(logits, t, latents, generator=seeded(3)[0]).prev_sample
            if not bool((latents == 8255).any()):
                break
        assert 0 <= int(latents.min()) <= int(latents.max()) < 8192
        assert torch.equal(latents[known], codes[known])
