"""The image pipeline with a tiny random model: saving and loading, every argument, and what a row may depend on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DiffusionPipeline, VQModel
from diffusers.utils import dynamic_modules_utils
from golden_data import cases, read, sampled_model, settings_of
from replay import factors_of

from hf_maskdiff import (
    FirstHittingScheduler,
    HaltonMaskGITTransformer2DModel,
    HybridScheduler,
    MaskedDiffusionScheduler,
    MaskGITPipeline,
    MaskGITScheduler,
    MomentScheduler,
    UniformScheduler,
)
from hf_maskdiff.conversion.halton_maskgit import convert_halton_maskgit_state_dict, halton_maskgit_config

MASK, SIDE, CODES, CLASSES = 16, 4, 16, 3
MakePipeline = Callable[..., MaskGITPipeline]


@pytest.fixture
def pipe(make_pipeline: MakePipeline) -> MaskGITPipeline:
    return make_pipeline()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents_of(pipe: MaskGITPipeline, class_labels: object = 1, seed: int = 0, **kwargs: object) -> torch.Tensor:
    kwargs = {"generator": seeded(seed), "num_inference_steps": 5} | kwargs
    return pipe(class_labels, output_type="latent", **kwargs).images


def images_of(pipe: MaskGITPipeline, **kwargs: object) -> torch.Tensor:
    return pipe([0, 2], num_inference_steps=4, generator=seeded(3), output_type="pt", **kwargs).images


class Calls:
    """The labels of every call of the transformer."""

    def __init__(self, pipe: MaskGITPipeline) -> None:
        self.labels: list[list[int]] = []
        pipe.transformer.register_forward_pre_hook(lambda module, args: self.labels.append(args[1].tolist()))

    def __len__(self) -> int:
        return len(self.labels)


# --- saving and loading -----------------------------------------------------------------------------------------------


def test_save_and_load_round_trip(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    scheduler = HybridScheduler(mask_token_id=MASK, codebook_size=CODES, exploration_ratio=(1.0, 0.0), top_p=0.9)
    pipe = make_pipeline(scheduler)
    before = images_of(pipe, guidance_scale=2.0)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "MaskGITPipeline"
    assert index["scheduler"] == ["hf_maskdiff", "HybridScheduler"]
    assert index["transformer"] == ["hf_maskdiff", "HaltonMaskGITTransformer2DModel"]
    assert index["vqvae"] == ["diffusers", "VQModel"]

    loaded = MaskGITPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is HybridScheduler
    assert type(loaded.transformer) is HaltonMaskGITTransformer2DModel
    assert type(loaded.vqvae) is VQModel
    assert loaded.scheduler.to_json_string() == scheduler.to_json_string()
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(images_of(loaded, guidance_scale=2.0), before)
    assert loaded.get_label_ids(["dog", "tabby"]) == [1, 0]  # keys of id2label are strings in the file


def test_custom_pipeline_route(pipe: MaskGITPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second door: `pipeline.py` beside the index, run with `trust_remote_code=True`."""
    modules = tmp_path / "modules"
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(modules))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    folder = tmp_path / "repository"
    pipe.save_pretrained(folder)
    assert "from hf_maskdiff import MaskGITPipeline" in (folder / "pipeline.py").read_text()
    loaded = DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(folder), trust_remote_code=True)
    assert isinstance(loaded, MaskGITPipeline)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(images_of(loaded), images_of(pipe))


def test_pipeline_file_names_the_subclass(pipe: MaskGITPipeline, tmp_path: Path) -> None:
    class OtherPipeline(MaskGITPipeline):
        pass

    OtherPipeline(**pipe.components).save_pretrained(tmp_path)
    assert "import OtherPipeline" in (tmp_path / "pipeline.py").read_text()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(pipe: MaskGITPipeline, tmp_path: Path, dtype: torch.dtype) -> None:
    pipe.save_pretrained(tmp_path)
    loaded = MaskGITPipeline.from_pretrained(tmp_path, torch_dtype=dtype)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.transformer.dtype == loaded.vqvae.dtype == dtype
    for guidance_scale in (1.0, 3.0):
        images = loaded(1, guidance_scale=guidance_scale, generator=seeded(0), output_type="np").images
        assert np.isfinite(images).all()
        assert 0 <= images.min() < images.max() <= 1
    # Half of the precision is enough for these logits to give most of the same codes in the first step.
    half, full = (latents_of(p, num_inference_steps=1, num_images_per_prompt=8) for p in (loaded, pipe))
    assert (half == full).float().mean() > 0.8
    # A half-precision transformer alone, beside a full-precision tokenizer.
    mixed = MaskGITPipeline(pipe.vqvae, loaded.transformer, pipe.scheduler)
    mixed.set_progress_bar_config(disable=True)
    assert mixed(output_type="pt").images.dtype == torch.float32


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_output_types(pipe: MaskGITPipeline) -> None:
    def call(output_type: str, **kwargs: object) -> object:
        return pipe([0, 2], generator=seeded(0), output_type=output_type, **kwargs)

    codes = call("latent").images
    assert codes.shape == (2, SIDE, SIDE)
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < CODES
    tensors = call("pt").images
    assert tensors.shape == (2, 1, 8, 8)
    assert tensors.min() >= 0
    assert tensors.max() <= 1
    decoded = pipe.vqvae.decode(codes, force_not_quantize=True, shape=(2, SIDE, SIDE, 4)).sample.clip(0, 1)
    torch.testing.assert_close(tensors, decoded, rtol=0, atol=0)
    arrays = call("np").images
    assert np.array_equal(arrays, tensors.permute(0, 2, 3, 1).numpy())
    pictures = call("pil").images
    assert all(isinstance(picture, PIL.Image.Image) and picture.size == (8, 8) for picture in pictures)
    assert np.array_equal(np.asarray(pictures[0]), (arrays[0, ..., 0] * 255).round().astype("uint8"))
    assert pipe([0, 2], generator=seeded(0)).images == pictures  # the default
    as_tuple = call("latent", return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], codes)


def test_labels(pipe: MaskGITPipeline) -> None:
    assert pipe.get_label_ids(["tabby", "cat", "cat, tabby", "owl", 1]) == [0, 0, 0, 2, 1]
    by_id = latents_of(pipe, [1, 0])
    assert torch.equal(latents_of(pipe, ["dog", "tabby"]), by_id)
    assert torch.equal(latents_of(pipe, torch.tensor([1, 0])), by_id)
    assert torch.equal(latents_of(pipe, "dog"), latents_of(pipe, [1]))
    calls = Calls(pipe)
    latents_of(pipe, None, num_inference_steps=1)
    latents_of(pipe, "owl", num_inference_steps=1)
    pipe(num_inference_steps=1)
    assert calls.labels == [[CLASSES], [2], [CLASSES]]
    assert not torch.equal(latents_of(pipe, None), latents_of(pipe, 1))


def test_num_images_per_prompt(pipe: MaskGITPipeline) -> None:
    calls = Calls(pipe)
    generators = [seeded(seed) for seed in range(4)]
    latents = latents_of(pipe, [2, 0], num_images_per_prompt=2, generator=generators)
    assert calls.labels[0] == [2, 2, 0, 0]
    generators = [seeded(seed) for seed in range(4)]
    assert torch.equal(latents, latents_of(pipe, [2, 2, 0, 0], generator=generators))
    assert not torch.equal(latents[0], latents[1])


def test_swapping_the_scheduler(pipe: MaskGITPipeline, scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
    assert type(pipe.scheduler) is scheduler_class
    latents = latents_of(pipe, [0, 1, 2])
    assert latents.min() >= 0
    assert latents.max() < CODES
    assert torch.equal(latents_of(pipe, [0, 1, 2]), latents)
    assert pipe.num_timesteps == (latents[0].numel() if scheduler_class is FirstHittingScheduler else 5)


def test_choice_temperature_of_a_call(pipe: MaskGITPipeline, make_pipeline: MakePipeline) -> None:
    warm = make_pipeline(MomentScheduler(mask_token_id=MASK, codebook_size=CODES, choice_temperature=(0.2, 0.1)))
    assert torch.equal(latents_of(pipe, temperature=(0.2, 0.1)), latents_of(warm))
    assert not torch.equal(latents_of(pipe), latents_of(warm))


# --- guidance ---------------------------------------------------------------------------------------------------------


def test_guidance_costs_a_second_pass(pipe: MaskGITPipeline) -> None:
    calls = Calls(pipe)
    plain = latents_of(pipe, 1)
    assert calls.labels == [[1]] * 5
    calls.labels.clear()
    assert torch.equal(latents_of(pipe, 1, guidance_scale=1.0), plain)
    assert torch.equal(latents_of(pipe, 1, guidance_scale=0.0), plain)  # diffusers' convention: active above 1
    assert calls.labels == [[1]] * 10
    calls.labels.clear()
    guided = latents_of(pipe, 1, guidance_scale=6.0)
    assert calls.labels == [[1], [CLASSES]] * 5
    assert not torch.equal(guided, plain)


@pytest.mark.parametrize("guidance_scale", [1.5, 4.0])
def test_guidance_is_extrapolation(pipe: MaskGITPipeline, guidance_scale: float) -> None:
    pipe.scheduler = MaskGITScheduler.from_config(pipe.scheduler.config)
    seen, step = [], pipe.scheduler.step
    pipe.scheduler.step = lambda logits, *args, **kwargs: seen.append(logits.clone()) or step(logits, *args, **kwargs)
    latents_of(pipe, 1, guidance_scale=guidance_scale, num_inference_steps=1)
    start = torch.full((1, SIDE, SIDE), MASK)
    cond, uncond = (pipe.transformer(start, torch.tensor([label])).sample for label in (1, CLASSES))
    torch.testing.assert_close(seen[0], uncond + guidance_scale * (cond - uncond), atol=1e-4, rtol=1e-4)


def guided_logits(pipe: MaskGITPipeline) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Filled in by a run: the codes before each step, and the logits that the scheduler got for them."""
    seen, step = [], pipe.scheduler.step

    def record(logits: torch.Tensor, t: torch.Tensor, sample: torch.Tensor, *args: object, **kwargs: object) -> object:
        seen.append((sample, logits.clone()))
        return step(logits, t, sample, *args, **kwargs)

    pipe.scheduler.step = record
    return seen


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_a_pair_of_scales_is_the_published_ramp(pipe: MaskGITPipeline, weight: float) -> None:
    """Halton-MaskGIT: (1 + w_i) cond - w_i uncond, w_i = w i / (T - 1); step 0 is not guided and costs one pass."""
    calls, seen = Calls(pipe), guided_logits(pipe)
    latents_of(pipe, 1, guidance_scale=(1.0, 1 + weight))
    assert pipe.do_classifier_free_guidance
    assert calls.labels == [[1]] + [[1], [CLASSES]] * 4
    for i, (codes, logits) in enumerate(seen):
        cond, uncond = (pipe.transformer(codes, torch.tensor([label])).sample for label in (1, CLASSES))
        w = weight * i / 4
        torch.testing.assert_close(logits, (1 + w) * cond - w * uncond, atol=1e-4, rtol=1e-4)


def test_only_scales_above_one_cost_a_pass(pipe: MaskGITPipeline) -> None:
    calls = Calls(pipe)
    latents_of(pipe, 1, guidance_scale=(2.0, 0.0))  # 2, 1.5, 1, 0.5, 0
    assert calls.labels == [[1], [CLASSES]] * 2 + [[1]] * 3
    constant = latents_of(pipe, 1, guidance_scale=2.5)
    assert torch.equal(latents_of(pipe, 1, guidance_scale=[2.5, 2.5]), constant)
    calls.labels.clear()
    latents_of(pipe, 1, guidance_scale=(1.0, 4.0), num_inference_steps=1)  # one step: the start
    assert calls.labels == [[1]]
    calls.labels.clear()
    # Without a class both passes would be the same.
    assert torch.equal(latents_of(pipe, None, guidance_scale=4.0), latents_of(pipe, None))
    assert calls.labels == [[CLASSES]] * 10


def test_scales_belong_to_the_steps_of_the_whole_run(pipe: MaskGITPipeline) -> None:
    """A weaker edit begins in the middle of the ramp."""
    scales = []

    def callback(pipeline: MaskGITPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        scales.append(pipe.guidance_scale_at(timestep))
        return tensors

    arguments = {"image": torch.rand(1, 8, 8), "strength": 0.6, "callback_on_step_end": callback}
    latents_of(pipe, 1, guidance_scale=(1.0, 3.0), **arguments)
    assert scales == pytest.approx([2.0, 2.5, 3.0])


def test_a_callback_ends_guidance(pipe: MaskGITPipeline) -> None:
    def cut_off(pipeline: MaskGITPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        pipeline._guidance_scale = 0.0 if step >= 1 else pipeline._guidance_scale
        return tensors

    calls = Calls(pipe)
    latents_of(pipe, 1, guidance_scale=3.0, callback_on_step_end=cut_off)
    assert calls.labels == [[1], [CLASSES]] * 2 + [[1]] * 3


@pytest.mark.parametrize(
    "scale", [-0.5, (1.0, -1.0), float("nan"), float("inf"), "3", "34", (1.0,), (1.0, 2.0, 0.0), (1.0, "2"), (1.0,) * 5]
)
def test_scales_that_cannot_be(pipe: MaskGITPipeline, scale: object) -> None:
    calls = Calls(pipe)
    with pytest.raises(ValueError, match=r"`guidance_scale` must be a finite number or a pair .*, got .*\. Pass 1.0"):
        pipe(1, guidance_scale=scale)
    assert len(calls) == 0


def draws_of_all_codes(path: Path) -> bool:
    return int(settings_of(path).get("top_k", 0)) <= 0


@pytest.mark.skipif(
    torch.__version__ < (2, 13), reason="torch.multinomial draws other codes from a seed before torch 2.13"
)
@pytest.mark.parametrize("path", cases("halton_maskgit/trace_*", draws_of_all_codes))
def test_upstream_draws_the_same_from_our_guided_logits(make_pipeline: MakePipeline, path: Path) -> None:
    """Runs of the original samplers, ramped and constant: from each stored state the seed gives the stored codes."""
    model, (golden, settings) = sampled_model(path.parent), read(path)
    checkpoint = torch.load(model.checkpoint, weights_only=True)
    weights = convert_halton_maskgit_state_dict(checkpoint["model_state_dict"])
    transformer = HaltonMaskGITTransformer2DModel(**halton_maskgit_config(weights, model.config["heads"])).eval()
    transformer.load_state_dict(weights)
    states, codes = golden["model_inputs"], transformer.config.codebook_size
    pipe = MaskGITPipeline(make_pipeline().vqvae, transformer, UniformScheduler(codes, codebook_size=codes))
    pipe.set_progress_bar_config(disable=True)

    def go_on(pipeline: MaskGITPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        return {"latents": states[min(step + 1, len(states) - 1)]}

    scale = 1 + float(settings["w"])
    seen, arguments = guided_logits(pipe), {"latents": states[0], "callback_on_step_end": go_on}
    arguments["guidance_scale"] = (1.0, scale) if "sched_mode" in settings else scale
    latents_of(pipe, golden["labels"], num_inference_steps=len(states), **arguments)
    assert torch.equal(torch.stack([codes for codes, _ in seen]), states)
    torch.manual_seed(int(settings["seed"]))
    if settings["randomize"] == "True":
        torch.randint(0, states[0, 0].numel(), (states.shape[1],))  # where each row begins in the order
    for (_, logits), factor, expected in zip(seen, factors_of(settings), golden["sampled_codes"], strict=True):
        probs = (logits * factor).softmax(-1)
        drawn = torch.multinomial(probs.flatten(0, 1), 1, replacement=True)
        assert torch.equal(drawn.view_as(expected), expected)


# --- randomness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_an_image_alone_is_the_image_in_a_batch(
    pipe: MaskGITPipeline, scheduler_class: type[MaskedDiffusionScheduler], guidance_scale: float
) -> None:
    pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)

    def latents(labels: list[int], seeds: list[int]) -> torch.Tensor:
        generators = [seeded(seed) for seed in seeds]
        return latents_of(pipe, labels, generator=generators, guidance_scale=guidance_scale)

    batch = latents([0, 1, 2, 1], [5, 6, 7, 8])
    assert torch.equal(latents([2, 0], [7, 5]), batch[[2, 0]])
    for row, (label, seed) in enumerate([(0, 5), (1, 6), (2, 7), (1, 8)]):
        assert torch.equal(latents([label], [seed]), batch[[row]])


def test_generators(pipe: MaskGITPipeline) -> None:
    assert torch.equal(latents_of(pipe, [0, 1], seed=4), latents_of(pipe, [0, 1], seed=4))
    assert not torch.equal(latents_of(pipe, [0, 1], seed=4), latents_of(pipe, [0, 1], seed=5))
    assert torch.equal(latents_of(pipe, 1, seed=4), latents_of(pipe, 1, generator=[seeded(4)]))
    torch.manual_seed(8)
    first, second = (latents_of(pipe, 1, generator=None) for _ in range(2))
    torch.manual_seed(8)
    assert torch.equal(latents_of(pipe, 1, generator=None), first)
    assert not torch.equal(first, second)


# --- latents, callbacks, progress -------------------------------------------------------------------------------------


def test_known_codes_come_back(pipe: MaskGITPipeline, scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
    latents = torch.randint(0, CODES, (3, SIDE, SIDE), generator=seeded(0))
    known = torch.rand(3, SIDE, SIDE, generator=seeded(1)) < 0.4
    known[2] = True  # nothing to do in one row
    given = latents.masked_fill(~known, MASK)
    before = given.clone()
    result = latents_of(pipe, [0, 1, 2], latents=given)
    assert torch.equal(result[known], latents[known])
    assert (result < CODES).all()
    assert torch.equal(given, before)
    assert not torch.equal(result[~known], latents[~known])


def test_nothing_to_fill_in_calls_no_model(pipe: MaskGITPipeline) -> None:
    calls = Calls(pipe)
    latents = torch.randint(0, CODES, (1, SIDE, SIDE), generator=seeded(0))
    assert torch.equal(latents_of(pipe, 0, latents=latents), latents)
    assert len(calls) == 0
    assert pipe.num_timesteps == 0


class Bar:
    """Stands in for the progress bar, and notes its total and its updates."""

    def __init__(self, pipe: MaskGITPipeline) -> None:
        self.totals: list[int] = []
        self.updates = 0
        pipe.progress_bar = self

    def __call__(self, total: int) -> Bar:
        self.totals.append(total)
        self.updates = 0
        return self

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self) -> None:
        self.updates += 1


@pytest.mark.parametrize("steps", [1, 5, 16, 40])
def test_progress_bar_counts_model_calls(pipe: MaskGITPipeline, steps: int) -> None:
    """With more steps than codes the loop ends early: 16 codes take at most 16."""
    calls, bar = Calls(pipe), Bar(pipe)
    latents = latents_of(pipe, 1, num_inference_steps=steps)
    assert (latents < CODES).all()
    assert bar.totals == [min(steps, 16)]
    assert bar.updates == len(calls) == pipe.num_timesteps == min(steps, 16)


def test_the_longest_row_decides_how_long_the_loop_runs(pipe: MaskGITPipeline) -> None:
    latents = torch.zeros(2, SIDE, SIDE, dtype=torch.int64)
    latents[0, 0, 0] = latents[1, 1, :3] = MASK
    calls, bar = Calls(pipe), Bar(pipe)
    assert (latents_of(pipe, [0, 1], latents=latents, num_inference_steps=9) < CODES).all()
    assert len(calls) == bar.updates == bar.totals[0] == 3


def test_callback_sees_every_step(pipe: MaskGITPipeline) -> None:
    seen = []

    def callback(pipeline: MaskGITPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        seen.append((step, float(timestep), int((tensors["latents"] == MASK).sum())))
        assert pipeline is pipe
        assert pipe.num_timesteps == step + 1
        assert pipe.current_timestep == timestep
        return tensors

    plain = latents_of(pipe, 1)
    assert torch.equal(latents_of(pipe, 1, callback_on_step_end=callback), plain)
    assert [step for step, _, _ in seen] == list(range(5))
    assert [t for _, t, _ in seen] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    masks = pipe.scheduler.planned_counts(torch.tensor([16])).cumsum(0)[:, 0]
    assert [left for _, _, left in seen] == (16 - masks).tolist()
    assert pipe.current_timestep is None

    def without(pipeline: MaskGITPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        assert tensors == {}
        return tensors

    inputs = {"callback_on_step_end": without, "callback_on_step_end_tensor_inputs": []}
    assert torch.equal(latents_of(pipe, 1, **inputs), plain)


@pytest.mark.parametrize("scheduler_type", [MaskGITScheduler, MomentScheduler, UniformScheduler])
def test_callback_edits_latents(pipe: MaskGITPipeline, scheduler_type: type[MaskedDiffusionScheduler]) -> None:
    """It masks some codes again and fixes others: the last step still leaves none masked, and the fixed ones stay."""
    pipe.scheduler = scheduler_type.from_config(pipe.scheduler.config)

    def edit(pipeline: MaskGITPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        latents = tensors["latents"].clone()
        if step == 2:
            latents[0] = MASK
            latents[1, 0] = 5
        return {"latents": latents}

    calls = Calls(pipe)
    latents = latents_of(pipe, [0, 1], callback_on_step_end=edit)
    assert (latents < CODES).all()
    assert (latents[1, 0] == 5).all()
    assert len(calls) == 5


def test_callback_that_finishes_ends_the_loop(pipe: MaskGITPipeline) -> None:
    calls = Calls(pipe)
    done = torch.zeros(1, SIDE, SIDE, dtype=torch.int64)
    latents = latents_of(pipe, 1, callback_on_step_end=lambda *_: {"latents": done})
    assert torch.equal(latents, done)
    assert len(calls) == 1


def test_interrupt(pipe: MaskGITPipeline) -> None:
    """What is still masked is shown grey."""

    def stop(pipeline: MaskGITPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        pipeline._interrupt = step == 1
        return tensors

    calls = Calls(pipe)
    latents = latents_of(pipe, 1, callback_on_step_end=stop)
    masked = latents == MASK
    assert len(calls) == 2
    assert 0 < masked.sum() == 16 - pipe.scheduler.planned_counts(torch.tensor([16]))[:2].sum()
    arguments = {"generator": seeded(0), "num_inference_steps": 5, "output_type": "pt", "callback_on_step_end": stop}
    image = pipe(1, **arguments).images
    cells = image[0, 0].unflatten(0, (4, 2)).unflatten(2, (4, 2)).transpose(1, 2).flatten(2)
    assert (cells[masked[0]] == 0.5).all()
    assert (cells[~masked[0]] != 0.5).any()
    assert (latents_of(pipe, 1) < CODES).all()  # the next call is not interrupted
