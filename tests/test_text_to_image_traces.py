"""`MaskedDiffusionTextToImagePipeline` on the small aMUSEd of the golden folder: what diffusers' pipelines computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AmusedInpaintPipeline, AmusedPipeline, AmusedScheduler
from golden_data import GOLDEN, Model, cases, rows_left
from replay import DrawAsAmused, round_as_recorded
from transformers import pipeline

from hf_maskdiff import (
    ConfidenceScheduler,
    HaltonScheduler,
    HybridScheduler,
    MaskedDiffusionTextToImagePipeline,
    MaskGITScheduler,
    MomentScheduler,
    ThresholdScheduler,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
# The recorded runs drew from a seed.
same_draws = pytest.mark.skipif(
    torch.__version__ < (2, 13), reason="torch.multinomial draws other codes from a seed before torch 2.13"
)


@pytest.fixture(scope="module")
def amused(golden_folder: Path) -> Model:
    return Model(golden_folder / "amused")


@pytest.fixture(scope="module")
def opened(amused: Model) -> MaskedDiffusionTextToImagePipeline:
    pipe = MaskedDiffusionTextToImagePipeline.from_pretrained(amused.folder / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(opened: MaskedDiffusionTextToImagePipeline) -> MaskedDiffusionTextToImagePipeline:
    own = MaskedDiffusionTextToImagePipeline(**opened.components)
    own.set_progress_bar_config(disable=True)
    return own


def settings(model: Model) -> dict[str, Any]:
    return json.loads((model.folder / "runs.json").read_text())


def runs(edits: bool) -> list[Any]:
    """Names of the recorded runs: from text alone, or from an image, which have a strength."""
    file = None if GOLDEN is None else GOLDEN / "amused" / "runs.json"
    if file is None or not file.is_file():
        return cases("amused/runs.json")
    return [name for name, run in json.loads(file.read_text())["runs"].items() if ("strength" in run) == edits]


def test_prompts_are_encoded_as_amused_does(amused: Model, pipe: MaskedDiffusionTextToImagePipeline) -> None:
    prompts = settings(amused)["prompts"]
    pooled, hidden = pipe.encode_prompt(prompts)
    torch.testing.assert_close(pooled, amused.expected["text_embeds"], **CLOSE)
    torch.testing.assert_close(hidden, amused.expected["hidden_m2"], **CLOSE)
    calls = []
    handle = pipe.text_encoder.register_forward_hook(lambda part, given, out: calls.append(given))
    again, _ = pipe.encode_prompt([prompts[0]] * 2 + prompts[1:] + prompts[:1])
    handle.remove()
    assert len(calls) == 1
    assert len(calls[0][0]) == len(prompts)  # equal prompts are encoded once
    torch.testing.assert_close(again, pooled[[0, 0, *range(1, len(prompts)), 0]])


def test_logits_are_those_of_the_published_model(amused: Model, pipe: MaskedDiffusionTextToImagePipeline) -> None:
    given, expected = amused.inputs, amused.expected
    named = {"encoder_hidden_states": expected["hidden_m2"], "pooled_projections": expected["text_embeds"]}
    named["micro_conds"] = given["uvit_micro_conds"]
    with torch.no_grad():
        (logits,) = pipe._cache_switch.model(given["uvit_input_ids"], **named)
    torch.testing.assert_close(logits, expected["uvit_logits"].flatten(2).transpose(1, 2), **CLOSE)


@same_draws
@pytest.mark.parametrize("name", runs(edits=False))
def test_a_recorded_run(
    name: str, amused: Model, pipe: MaskedDiffusionTextToImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sampler that the repository came with, fed with the same draws, gives the same codes in every step."""
    runs = settings(amused)
    recorded, expected = (amused.expected[f"run_{name}_{what}"] for what in ("latents", "image"))
    mask = pipe.scheduler.config.mask_token_id
    states = torch.cat([torch.full_like(recorded[:1], mask), recorded])
    round_as_recorded(monkeypatch, rows_left(states, mask)[:-1])
    call = {"negative_prompt": runs["negative_prompt"], **runs["runs"][name]}
    DrawAsAmused(monkeypatch, torch.Generator().manual_seed(call.pop("seed")))
    latents = []

    def keep(pipe: object, step: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
        latents.append(tensors["latents"])
        return tensors

    images = pipe(runs["prompts"], output_type="np", callback_on_step_end=keep, **call).images
    assert torch.equal(torch.stack(latents), recorded)
    np.testing.assert_allclose(images, expected.numpy(), **CLOSE)
    assert np.array_equal((images * 255).round().astype("uint8"), (expected.numpy() * 255).round().astype("uint8"))


def mask_of_diffusers(pipe: MaskedDiffusionTextToImagePipeline, mask_image: torch.Tensor) -> torch.Tensor:
    """The codes that `AmusedInpaintPipeline` draws anew, as pixels: it takes a mean where ours takes any pixel."""
    scheduler = AmusedScheduler(mask_token_id=pipe.scheduler.config.mask_token_id)
    stock = AmusedInpaintPipeline(**(pipe.components | {"scheduler": scheduler}))
    side = pipe.transformer.config.sample_size
    mask = stock.mask_processor.preprocess(mask_image, side, side)
    return mask.repeat_interleave(pipe.vae_scale_factor, 2).repeat_interleave(pipe.vae_scale_factor, 3)


@same_draws
@pytest.mark.parametrize("name", runs(edits=True))
def test_a_recorded_edit(
    name: str, amused: Model, pipe: MaskedDiffusionTextToImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From where diffusers' pipelines start, edits go as theirs: from other noise, or with all of the white masked."""
    told, given = settings(amused), amused.inputs
    recorded, expected = (amused.expected[f"run_{name}_{what}"] for what in ("latents", "image"))
    mask, call = pipe.scheduler.config.mask_token_id, dict(told["runs"][name])
    pipe.scheduler = MaskGITScheduler.from_config(pipe.scheduler.config, masking_schedule=call.pop("masking_schedule"))
    draws = torch.Generator().manual_seed(call.pop("seed"))

    def noisy(scheduler: Any, codes: torch.Tensor, timestep: torch.Tensor, generator: Any) -> torch.Tensor:
        if "inpaint" in name:
            return torch.full_like(codes, mask)
        share = torch.cos((1 - timestep.float()) * torch.pi / 2)
        return torch.where(torch.rand(codes.shape, generator=draws) < share, mask, codes)

    monkeypatch.setattr(MaskGITScheduler, "add_noise", noisy)
    left = rows_left(recorded, mask)
    whole = torch.full((call["num_inference_steps"] - len(left) + 1, left.shape[1]), recorded[0, 0].numel())
    round_as_recorded(monkeypatch, torch.cat([whole, left[:-1]]))
    DrawAsAmused(monkeypatch, draws)
    if "inpaint" in name:
        call["mask_image"] = mask_of_diffusers(pipe, given["mask_image"])
        shares = call["mask_image"].flatten(1).mean(1)
        if not bool((shares == shares[0]).all()):
            pytest.skip("that pipeline reveals in each image what the mean of the batch's masks says, ours its own")
    latents = []

    def keep(pipe: object, step: int, timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
        latents.append(tensors["latents"])
        return tensors

    image, negative = given["init_image"], told["negative_prompt"]
    call |= {"image": image, "negative_prompt": negative, "callback_on_step_end": keep, "output_type": "np"}
    images = pipe(told["prompts"], **call).images
    assert torch.equal(torch.stack(latents), recorded)
    np.testing.assert_allclose(images, expected.numpy(), **CLOSE)


@pytest.mark.parametrize(
    "scheduler_class",
    [MaskGITScheduler, MomentScheduler, HybridScheduler, HaltonScheduler, ConfidenceScheduler, ThresholdScheduler],
)
def test_images_are_those_of_diffusers_pipeline(
    scheduler_class: Any, amused: Model, pipe: MaskedDiffusionTextToImagePipeline
) -> None:
    prompts = settings(amused)["prompts"]
    pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config)
    stock = AmusedPipeline(**pipe.components)
    stock.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 5, "guidance_scale": 3.0}
    temperature = {} if pipe.scheduler.choice_temperature is None else {"temperature": (2, 0)}
    made = pipe(prompts, generator=seeded(1, 2), **call, **temperature).images
    theirs = stock(prompts, generator=seeded(1, 2), temperature=temperature.get("temperature"), **call).images
    assert [image.tobytes() for image in made] == [image.tobytes() for image in theirs]


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_negative_prompts_of_their_own_and_what_is_cut_off(
    amused: Model, pipe: MaskedDiffusionTextToImagePipeline
) -> None:
    prompts = settings(amused)["prompts"]
    call = {"num_inference_steps": 3, "guidance_scale": 4.0, "output_type": "latent"}
    plain = pipe(prompts, generator=seeded(1, 2), **call).images
    assert torch.equal(pipe(prompts, negative_prompt="", generator=seeded(1, 2), **call).images, plain)
    each = pipe(prompts, negative_prompt=["", prompts[0]], generator=seeded(1, 2), **call).images
    assert torch.equal(each[0], plain[0])
    assert not torch.equal(each[1], plain[1])
    pooled, hidden = pipe.encode_prompt(prompts)
    same = pipe(prompt_embeds=pooled, encoder_hidden_states=hidden, generator=seeded(1, 2), **call).images
    assert torch.equal(same, plain)
    with pytest.warns(
        UserWarning, match=f"reads {pipe.tokenizer.model_max_length} tokens, what follows is left out: '"
    ):
        pipe(" ".join(prompts * 40), **call)


def test_from_the_pipeline_of_diffusers(amused: Model) -> None:
    stock = AmusedPipeline.from_pretrained(amused.folder / "pipeline")
    ours = MaskedDiffusionTextToImagePipeline.from_pipe(stock)
    assert ours.transformer is stock.transformer
    assert type(ours.scheduler) is MaskGITScheduler
    assert ours.scheduler.config.choice_temperature == [2.0, 0.0]


def test_the_task_of_transformers(amused: Model, pipe: MaskedDiffusionTextToImagePipeline, tmp_path: Path) -> None:
    prompts = settings(amused)["prompts"]
    pipe.save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    draw = pipeline("masked-diffusion-image-generation", model=str(tmp_path), scheduler="MomentScheduler")
    call = {"num_inference_steps": 3, "guidance_scale": 2.0, "temperature": 4.0}
    images = draw(prompts, generator=seeded(1, 2), batch_size=2, **call)
    pipe.scheduler = MomentScheduler.from_config(pipe.scheduler.config)
    expected = pipe(prompts, generator=seeded(1, 2), **call).images
    assert [image.tobytes() for image in images] == [image.tobytes() for image in expected]
    assert draw(prompts[1], generator=seeded(2)[0], num_images_per_prompt=2, **call)[0].size == images[0].size
