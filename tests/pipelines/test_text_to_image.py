"""`MaskedDiffusionTextToImagePipeline` with aMUSEd's kind of model: what a call does, and what it refuses."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AmusedScheduler, DiffusionPipeline
from PIL import Image
from test_image_combinations import caches
from test_text_combinations import a_scheduler
from tiny_text_to_image import CODES, MASK, SCALE, SIDE, pipeline, prompts, seeded
from tiny_weights import draw_weights

from hf_maskdiff import (
    FirstHittingScheduler,
    MaskedDiffusionTextToImagePipeline,
    MaskGITScheduler,
    MeissonicTransformer2DModel,
    MomentScheduler,
    OneStepScheduler,
    PartialCacheConfig,
    UniformScheduler,
)

CALL = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}


class Passes:
    """What a pipeline's transformer was told in each pass."""

    def __init__(self, pipe: MaskedDiffusionTextToImagePipeline) -> None:
        self.told: list[dict[str, Any]] = []
        self._handle = pipe.transformer.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, model: object, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.told.append({"sample": arguments[0], **named})


# --- combinations -----------------------------------------------------------------------------------------------------


def check(number: int) -> None:
    draw, noise = random.Random(number), torch.Generator().manual_seed(number)
    halved = draw.random() < 0.4
    scheduler = a_scheduler(draw, mask_token_id=MASK, codebook_size=CODES)
    pipe = pipeline(scheduler, num_hidden_layers=1, downsample=halved, upsample=halved)
    pipe.transformer.double()
    cache, exact = caches(draw, pipe.scheduler)
    rows, columns = draw.choice([(SIDE, SIDE), (4, 6), (6, 2)])
    height, width = rows * SCALE, columns * SCALE
    images = torch.rand(3, 3, height, width, generator=noise)
    editable = torch.rand(3, 1, rows, columns, generator=noise) < draw.choice([0.3, 0.8, 1.0])
    edits: dict[str, Any] = {}
    if draw.random() < 0.6:
        edits["image"] = images
        if draw.random() < 0.7:
            edits["mask_image"] = editable.double().repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)
    elif draw.random() < 0.5:
        known = torch.randint(0, CODES, (3, rows, columns), generator=noise)
        edits["latents"] = torch.where(editable[:, 0], MASK, known)
    call = {
        "height": height,
        "width": width,
        "num_inference_steps": draw.choice([2, 3, 5]),
        "guidance_scale": draw.choice([1.0, 3.0, (1.0, 4.0)]),
        "sampling_temperature": draw.choice([None, None, 0.0, 0.7]),
        "strength": draw.choice([1.0, 0.6]) if "image" in edits else 1.0,
        "output_type": "latent",
    }
    if pipe.scheduler.config.get("measure") == "drawn" and type(pipe.scheduler).__name__ == "ThresholdScheduler":
        del call["sampling_temperature"]

    def run(cache: Any, rows: list[int]) -> torch.Tensor:
        pipe.disable_cache()
        if cache is not None:
            pipe.enable_cache(cache)
        own = {name: values[rows] for name, values in edits.items()}
        made = pipe(**prompts(pipe, *rows), generator=seeded(*rows), **own, **call).images
        pipe.disable_cache()
        return made

    made = run(cache, [0, 1, 2])
    assert made.shape == (3, rows, columns)
    assert 0 <= int(made.min()) <= int(made.max()) < CODES, "a mask is left"
    if "latents" in edits:
        kept = edits["latents"] != MASK
        assert torch.equal(made[kept], edits["latents"][kept]), "a given code has changed"
    if "mask_image" in edits:
        kept = ~editable[:, 0]
        codes = pipe.encode_image(pipe.preprocess_image(images, (height, width)))
        assert torch.equal(made[kept], codes[kept]), "a kept code has changed"
    for row in range(3):
        assert torch.equal(run(cache, [row])[0], made[row]), "an image depends on its batch"
    assert torch.equal(run(exact, [0, 1, 2]), made), f"{cache} differs from {exact}"


@pytest.mark.parametrize("number", range(10))
def test_a_combination(number: int) -> None:
    check(number)


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", range(10, 40))
def test_more_combinations(number: int) -> None:
    check(number)


# --- what the model is told -------------------------------------------------------------------------------------------


def test_prompts_size_crop_and_score_reach_the_model() -> None:
    pipe = pipeline()
    passes, given = Passes(pipe), prompts(pipe, 1, 2)
    named = {"micro_conditioning_crop_coord": (3, 4), "micro_conditioning_aesthetic_score": 5.5}
    pipe(**given, height=8, width=12, num_images_per_prompt=2, **named, **CALL)
    assert len(passes.told) == 2 * CALL["num_inference_steps"]
    positive, negative = passes.told[:2]
    for told in (positive, negative):
        assert told["micro_conds"].tolist() == [[12, 8, 3, 4, 5.5]] * 4
        assert told["micro_conds"].dtype == torch.float32
        assert told["sample"].shape == (4, 4, 6)
    order = [0, 0, 1, 1]
    assert torch.equal(positive["pooled_text_emb"], given["prompt_embeds"][order])
    assert torch.equal(positive["encoder_hidden_states"], given["encoder_hidden_states"][order])
    assert torch.equal(negative["pooled_text_emb"], given["negative_prompt_embeds"].expand(4, -1))
    assert torch.equal(negative["encoder_hidden_states"], given["negative_encoder_hidden_states"].expand(4, -1, -1))


def test_guidance_is_between_the_two_prompts_and_ramps() -> None:
    pipe = pipeline()
    passes = Passes(pipe)
    same = prompts(pipe, 1)
    same |= {"negative_prompt_embeds": same["prompt_embeds"]}
    same |= {"negative_encoder_hidden_states": same["encoder_hidden_states"]}
    guided = pipe(**same, generator=seeded(0), **CALL).images
    count = len(passes.told)
    assert torch.equal(pipe(**same, generator=seeded(0), **CALL | {"guidance_scale": 1.0}).images, guided)
    assert len(passes.told) - count == CALL["num_inference_steps"]  # no second pass
    count = len(passes.told)
    pipe(**same, **CALL | {"guidance_scale": (1.0, 3.0)})
    assert len(passes.told) - count == 2 * CALL["num_inference_steps"] - 1


def test_a_callback_that_switches_guidance_on() -> None:
    pipe, given = pipeline(), None
    given = prompts(pipe, 1)

    def guide(pipe: Any, step: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 5.0
        return tensors

    passes = Passes(pipe)
    pipe(**given, **CALL | {"guidance_scale": 1.0}, callback_on_step_end=guide)
    assert len(passes.told) == 2 * CALL["num_inference_steps"] - 1


def meissonic(scheduler: Any = None, **changes: Any) -> MaskedDiffusionTextToImagePipeline:
    """With a transformer of this package, which takes the pipeline's words as they are."""
    pipe = pipeline(scheduler)
    sizes = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16}
    sizes |= {"axes_dims_rope": (4, 6, 6), "joint_attention_dim": 8, "pooled_projection_dim": 6}
    sizes |= {"vocab_size": MASK + 1, "codebook_size": CODES, "sample_size": SIDE}
    pipe.transformer = MeissonicTransformer2DModel(**(sizes | changes)).eval()
    draw_weights(pipe.transformer)
    return pipe


def encoded(*seeds: int) -> dict[str, torch.Tensor]:
    return prompts(pipeline(), *seeds)


@pytest.mark.parametrize("halved", [False, True])
def test_a_transformer_of_this_package(halved: bool) -> None:
    pipe = meissonic(UniformScheduler(mask_token_id=MASK, codebook_size=CODES), downsample=halved)
    passes, steps = Passes(pipe), 5
    call = {"num_inference_steps": steps, "height": 8, "width": 12, "output_type": "latent"}
    both = pipe(**encoded(1, 2), generator=seeded(1, 2), **call).images
    left = [told["timestep"].tolist() for told in passes.told]
    assert left == [[float(n)] * 2 for n in range(steps - 1, -1, -1) for _ in range(2)]
    alone = pipe(**encoded(2), generator=seeded(2), **call).images
    assert torch.equal(alone[0], both[1])
    pipe.enable_cache(PartialCacheConfig(num_substeps=2))
    cached = pipe(**encoded(1, 2), generator=seeded(1, 2), **call).images
    assert not torch.equal(cached, both)
    assert torch.equal(pipe(**encoded(2), generator=seeded(2), **call).images[0], cached[1])


# --- dtypes, places, adapters -----------------------------------------------------------------------------------------


def overflowing(pipe: MaskedDiffusionTextToImagePipeline) -> None:
    """Make the tokenizer's values larger than float16 holds; its norms bring them back."""
    with torch.no_grad():
        pipe.vqvae.decoder.conv_in.weight.mul_(3e4 / pipe.vqvae.decoder.conv_in.weight.abs().max())


def test_each_image_is_told_how_many_steps_it_has_left_itself() -> None:
    """First hitting takes as many steps as an image has masks, and this model is told how many are left."""
    pipe = pipeline(FirstHittingScheduler(mask_token_id=MASK, codebook_size=CODES))
    sizes: dict[str, Any] = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2}
    sizes |= {"attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), "joint_attention_dim": 8}
    sizes |= {"sample_size": SIDE, "codebook_size": CODES, "vocab_size": MASK + 1, "pooled_projection_dim": 6}
    given, latents = prompts(pipe, 1, 2), torch.zeros(2, SIDE, SIDE, dtype=torch.int64)
    pipe.transformer = MeissonicTransformer2DModel(**sizes).eval()
    draw_weights(pipe.transformer)
    latents[0, 0], latents[1] = MASK, MASK
    call = {"guidance_scale": 3.0, "output_type": "latent"}
    passes = Passes(pipe)
    together = pipe(**given, latents=latents, generator=seeded(1, 2), **call).images
    assert [told["timestep"].tolist() for told in passes.told[:2]] == [[SIDE - 1.0, SIDE * SIDE - 1.0]] * 2
    for row in range(2):
        one = {name: value if name.startswith("negative") else value[[row]] for name, value in given.items()}
        assert torch.equal(
            pipe(**one, latents=latents[[row]], generator=seeded(row + 1), **call).images[0], together[row]
        )


def test_float16_gives_no_nan() -> None:
    pipe = pipeline()
    pipe.vqvae.quantize.embedding.weight.data.clamp_(-1, 1)
    overflowing(pipe)
    pipe.vqvae.to(torch.float16)
    half = torch.randint(0, CODES, (1, SIDE, SIDE), generator=seeded(3)[0])
    shape = (*half.shape, pipe.vqvae.quantize.vq_embed_dim)
    assert not torch.isfinite(pipe.vqvae.decode(half, force_not_quantize=True, shape=shape).sample).all()
    pipe.to(torch.float16)
    images = pipe(**prompts(pipe, 1), **CALL | {"output_type": "pt"}).images
    assert torch.isfinite(images).all()
    assert pipe.vqvae.dtype == torch.float16  # after the call as before
    expected = pipe.decode_latents(half)
    pipe.vqvae.float()
    assert torch.equal(pipe.decode_latents(half), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_with_a_cache(dtype: torch.dtype) -> None:
    pipe = pipeline().to(dtype)
    pipe.enable_cache(PartialCacheConfig(num_substeps=2))
    made = pipe(**prompts(pipe, 1, 2), generator=seeded(1, 2), **CALL).images
    assert 0 <= int(made.min()) <= int(made.max()) < CODES


def test_offload_frees_what_does_not_work() -> None:
    pipe = pipeline()
    expected = pipe(**prompts(pipe, 1), generator=seeded(1), **CALL | {"output_type": "pt"}).images
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        made = pipe(**prompts(pipe, 1), generator=seeded(1), **CALL | {"output_type": "pt"}).images
        assert torch.equal(made, expected)


def test_groups_of_weights_are_loaded_as_they_work() -> None:
    pipe = pipeline()
    given = {**prompts(pipe, 1, 2), **CALL}
    pipe.enable_cache(PartialCacheConfig(num_substeps=2))
    expected = pipe(**given, generator=seeded(1, 2)).images
    pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level", exclude_modules="vqvae")
    assert torch.equal(pipe(**given, generator=seeded(1, 2)).images, expected)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_is_cached_uncompiled(in_place: bool) -> None:
    pipe, plain = pipeline(), pipeline()
    if in_place:
        pipe.transformer.compile(backend="eager")
    else:
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    for cache in (None, PartialCacheConfig(num_substeps=2), None):
        for one in (pipe, plain):
            one.disable_cache() if cache is None else one.enable_cache(cache)
        made, expected = (one(**prompts(plain, 1), generator=seeded(1), **CALL).images for one in (pipe, plain))
        assert torch.equal(made, expected)


def test_a_lora_is_loaded_weighed_and_unloaded(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason='peft is not installed: pip install -e ".[test]"')
    pipe = pipeline()
    given = prompts(pipe, 1)

    def logits() -> torch.Tensor:
        denoiser, config = pipe._cache_switch.model, pipe.transformer.config
        named = {"encoder_hidden_states": given["encoder_hidden_states"], "pooled_projections": given["prompt_embeds"]}
        sample = torch.full((1, config.sample_size, config.sample_size), MASK)
        with torch.no_grad():
            return denoiser(sample, **named, micro_conds=torch.ones(1, 5))[0]

    plain = logits()
    pipe.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"]))
    layers = peft.get_peft_model_state_dict(pipe.transformer)
    assert layers
    torch.manual_seed(0)
    layers = {name: torch.randn_like(weight) for name, weight in layers.items()}
    pipe.save_lora_weights(tmp_path, transformer_lora_layers=layers)
    with pytest.raises(ValueError, match="a pipeline must be saved without adapters"):
        pipe.save_pretrained(tmp_path / "whole")
    pipe.unload_lora_weights()
    assert torch.equal(logits(), plain)

    pipe.load_lora_weights(tmp_path, adapter_name="style")
    full = logits()
    assert not torch.allclose(full, plain)
    assert pipe.get_active_adapters() == ["style"]
    pipe.set_adapters("style", 0.0)
    torch.testing.assert_close(logits(), plain)
    pipe.set_adapters("style", 1.0)
    pipe.enable_cache(PartialCacheConfig(num_substeps=2))  # hooks see the layers with their adapters
    pipe(**given, **CALL)
    pipe.disable_cache()
    torch.testing.assert_close(logits(), full)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(logits(), full, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"must have weights of 'transformer' or 'text_encoder', got names such as"):
        pipe.load_lora_weights({"unet.layer.lora_A.weight": torch.ones(2, 2)})


# --- folders ----------------------------------------------------------------------------------------------------------


def test_saved_opened_and_shared(tmp_path: Path) -> None:
    pipe = pipeline()
    pipe.register_to_config(call_defaults={"num_inference_steps": 2, "guidance_scale": 1.5})
    expected = pipe(**prompts(pipe, 1), generator=seeded(1), output_type="latent").images
    pipe.save_pretrained(tmp_path)
    for opened in (
        MaskedDiffusionTextToImagePipeline.from_pretrained(tmp_path),
        DiffusionPipeline.from_pretrained(tmp_path),
    ):
        assert type(opened) is MaskedDiffusionTextToImagePipeline
        assert type(opened.scheduler) is MomentScheduler
        opened.set_progress_bar_config(disable=True)
        passes = Passes(opened)
        assert torch.equal(opened(**prompts(pipe, 1), generator=seeded(1), output_type="latent").images, expected)
        assert len(passes.told) == 4
    shared = MaskedDiffusionTextToImagePipeline.from_pipe(pipe)
    assert shared.transformer is pipe.transformer
    assert shared.vqvae is pipe.vqvae
    assert "text-to-image" in (tmp_path / "README.md").read_text()


def test_an_amused_scheduler_becomes_ours() -> None:
    pipe = pipeline(AmusedScheduler(mask_token_id=MASK, masking_schedule="linear"))
    assert type(pipe.scheduler) is MaskGITScheduler
    config = pipe.scheduler.config
    assert (config.choice_temperature, config.codebook_size) == ([2.0, 0.0], CODES)
    assert (config.mask_token_id, config.masking_schedule) == (MASK, "linear")


def test_a_cache_stays_on_when_the_model_is_compiled() -> None:
    pipe, config = pipeline(), PartialCacheConfig(num_substeps=2)
    plain = pipe.transformer
    pipe.enable_cache(config)
    pipe.transformer = torch.compile(plain)
    assert pipe.partial_cache == config
    pipe.transformer = plain
    assert pipe.partial_cache == config
    pipe.transformer = pipeline().transformer
    assert pipe.partial_cache is None  # it was another model's


def test_caches_are_this_pipelines_alone() -> None:
    pipe = pipeline()
    other = MaskedDiffusionTextToImagePipeline.from_pipe(pipe)
    pipe.enable_cache(PartialCacheConfig(num_substeps=2))
    assert pipe.partial_cache is not None
    assert other.partial_cache is None
    pipe.disable_cache()
    assert pipe.partial_cache is None


# --- output and editing -----------------------------------------------------------------------------------------------


def test_output_types_and_defaults() -> None:
    pipe = pipeline()
    passes, given = Passes(pipe), prompts(pipe, 1, 2)
    images = pipe(**given, generator=seeded(1, 2)).images
    assert len(passes.told) == 2 * 12  # aMUSEd's steps, guided
    assert [image.size for image in images] == [(SIDE * SCALE, SIDE * SCALE)] * 2
    (codes,) = pipe(**given, generator=seeded(1, 2), output_type="latent", return_dict=False)
    pixels = pipe(**given, generator=seeded(1, 2), output_type="pt").images
    assert torch.equal(pipe.decode_latents(codes), pixels)
    array = pipe(**given, generator=seeded(1, 2), output_type="np").images
    assert torch.equal(torch.tensor(array).permute(0, 3, 1, 2), pixels)


def test_image_of_another_size_and_shape() -> None:
    pipe = pipeline()
    picture = Image.effect_noise((31, 17), 60).convert("RGB")
    mask = Image.new("L", (5, 9))
    mask.paste(255, (0, 0, 3, 9))
    made = pipe(**prompts(pipe, 1, 2), image=picture, mask_image=mask, height=8, width=16, **CALL).images
    assert made.shape == (2, 4, 8)
    codes = pipe.encode_image(pipe.preprocess_image(picture, (8, 16)))
    editable = pipe.preprocess_mask(mask, (8, 16))
    assert 0 < int(editable.sum()) < editable.numel()
    for row in made:
        assert torch.equal(row[~editable[0]], codes[0][~editable[0]])
    assert not torch.equal(made[0], made[1])


# --- what is refused --------------------------------------------------------------------------------------------------

WRONG = [
    ({}, r"`prompt` must be a text or a list of texts, got None"),
    ({"prompt": []}, r"`prompt` must be a text or a list of texts, got \[\]"),
    ({"prompt": [3]}, r"`prompt` must be a text or a list of texts, got \[3\]"),
    ({"prompt": "a cat"}, r"prompts must come encoded to a pipeline without tokenizer and text encoder"),
    (
        {"prompt_embeds": torch.zeros(1, 6)},
        r"`encoder_hidden_states` must be a floating-point tensor \(num_prompts, num_",
    ),
    (
        {"prompt_embeds": [1.0], "encoder_hidden_states": torch.zeros(1, 3, 8)},
        r"`prompt_embeds` must be a floating-point",
    ),
    (
        {"prompt_embeds": torch.zeros(2, 6), "encoder_hidden_states": torch.zeros(3, 3, 8)},
        r"must be of as many prompts, got 2 and 3",
    ),
]
WRONG_BESIDE = [
    ({"prompt": "a cat"}, r"`prompt` must be left out where `prompt_embeds` is given, got both"),
    ({"negative_prompt": "a dog"}, r"`negative_prompt` must be left out where `negative_prompt_embeds` is given"),
    ({"height": 9}, r"`height` must be a multiple of 2 pixels, got 9. Leave it out for 8"),
    ({"width": 0}, r"`width` must be a multiple of 2 pixels, got 0"),
    ({"width": "8"}, r"`width` must be a multiple of 2 pixels, got '8'"),
    ({"micro_conditioning_crop_coord": 3}, r"`micro_conditioning_crop_coord` must be a pair of finite numbers, got 3"),
    ({"micro_conditioning_aesthetic_score": float("nan")}, r"`micro_conditioning_aesthetic_score` must be a finite"),
    ({"guidance_scale": -1}, r"`guidance_scale` must be a finite number or a pair"),
    ({"num_images_per_prompt": 0}, r"`num_images_per_prompt` must be an integer of at least 1, got 0"),
    ({"num_inference_steps": 0}, r"`num_inference_steps` must be at least 1, got 0|`num_inference_steps` must be an"),
    ({"strength": 0.5}, r"`strength` must come with an `image`, got none"),
    ({"mask_image": Image.new("L", (8, 8), 255)}, r"`mask_image` must come with an `image`, got none"),
    (
        {"image": Image.new("RGB", (8, 8)), "strength": 0.05},
        r"`strength` must leave a step to run, got 0.05 of 3 steps",
    ),
    ({"latents": torch.zeros(1, 3, 3, dtype=torch.int64)}, r"`latents` must be int64 codes of shape \(1, 4, 4\)"),
    ({"latents": torch.full((1, 4, 4), MASK - 1)}, r"`latents` must hold codes in 0 .. 15 or the mask 17"),
    ({"output_type": "jpg"}, r"`output_type` must be one of"),
    ({"generator": seeded(1, 2)}, r"A list of generators must hold one per row, got 2 for a batch of 1"),
    (
        {"image": [Image.new("RGB", (8, 8))] * 2, "negative_prompt": None, "prompts": 3},
        r"must hold one each, or as many",
    ),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_wrong_prompts(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline()(**given)


@pytest.mark.parametrize(("given", "message"), WRONG_BESIDE)
def test_wrong_arguments(given: dict[str, Any], message: str) -> None:
    pipe, given = pipeline(), dict(given)
    passes = Passes(pipe)
    encoded = prompts(pipe, *range(given.pop("prompts", 1)))
    with pytest.raises(ValueError, match=message):
        pipe(**encoded | CALL | given)
    assert passes.told == []


def test_a_halved_grid_needs_even_sides() -> None:
    pipe = pipeline(downsample=True, upsample=True)
    with pytest.raises(ValueError, match=r"`height` must be a multiple of 4 pixels, got 6"):
        pipe(**prompts(pipe, 1), height=6)


def test_wrong_parts() -> None:
    pipe = pipeline()
    with pytest.raises(ValueError, match=r"`call_defaults` must name"):
        MaskedDiffusionTextToImagePipeline(pipe.vqvae, None, None, pipe.transformer, pipe.scheduler, {"steps": 3})
    given = prompts(pipe, 1)
    pipe.scheduler = AmusedScheduler(mask_token_id=MASK)
    with pytest.raises(ValueError, match=r"`scheduler` must be a MaskedDiffusionScheduler, got AmusedScheduler"):
        pipe(**given)
    pipe.scheduler = MomentScheduler(mask_token_id=MASK + 5)
    with pytest.raises(
        ValueError, match=r"`scheduler` must have the model's mask, in 16 .. 17, got `mask_token_id` 22"
    ):
        pipe(**given)
    pipe.scheduler = OneStepScheduler(mask_token_id=MASK, codebook_size=CODES)
    with pytest.raises(ValueError, match=r"`embedding_noise` of the scheduler must be 0 for a model that takes none"):
        pipe(**given, num_inference_steps=1)


# --- threads ----------------------------------------------------------------------------------------------------------


def test_calls_in_several_threads_with_and_without_a_cache() -> None:
    """Hooks of one thread's pass are not seen by another's."""
    pipe = pipeline()
    cached = MaskedDiffusionTextToImagePipeline.from_pipe(pipe)
    cached.transformer = pipe.transformer
    cached.enable_cache(PartialCacheConfig(num_substeps=2))
    for one in (pipe, cached):
        one.set_progress_bar_config(disable=True)

    def draw(number: int) -> torch.Tensor:
        one = (pipe, cached)[number % 2]
        return one(**prompts(pipe, number), generator=seeded(number), **CALL | {"num_inference_steps": 8}).images

    expected = [draw(number) for number in range(6)]
    with ThreadPoolExecutor(3) as threads:
        assert all(map(torch.equal, threads.map(draw, range(6)), expected))


# --- the Hub ----------------------------------------------------------------------------------------------------------


def test_a_pushed_pipeline_is_opened_by_its_name(hub: object) -> None:
    pipe = pipeline()
    pipe.push_to_hub("me/drawings")
    opened = DiffusionPipeline.from_pretrained("me/drawings")
    assert type(opened) is MaskedDiffusionTextToImagePipeline
    opened.set_progress_bar_config(disable=True)
    made, expected = (one(**prompts(pipe, 1), generator=seeded(1), **CALL).images for one in (opened, pipe))
    assert torch.equal(made, expected)


# --- callbacks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"prompt_embeds": torch.zeros(1, 6)}, r"a dictionary of 'latents' or an empty one, got \['prompt_embeds'\]"),
        ({"sequences": None}, r"got \['sequences'\]"),
        (None, "got None"),
        ({"latents": torch.zeros(1, SIDE, SIDE)}, r"as torch.int64 \(1, 4, 4\), got torch.float32 \(1, 4, 4\)"),
        ({"latents": torch.zeros(SIDE, SIDE, dtype=torch.int64)}, r"got torch.int64 \(4, 4\)"),
    ],
)
def test_what_a_callback_returns_has_an_effect(returned: Any, message: str) -> None:
    pipe = pipeline()
    with pytest.raises(ValueError, match=message):
        pipe(**prompts(pipe, 1), **CALL, callback_on_step_end=lambda *given: returned)
    assert pipe(**prompts(pipe, 1), **CALL, callback_on_step_end=lambda *given: {}).images.shape == (1, SIDE, SIDE)
