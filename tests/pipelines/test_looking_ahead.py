"""Schedulers that look ahead, in pipelines: rows, passes, what is given, callbacks, and what cannot be on meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from test_masked_diffusion_text import MASK, seeds
from test_masked_diffusion_text import make_pipeline as make_text_pipeline
from test_text_to_image import CODES, Passes, encoded, meissonic
from test_text_to_image import MASK as T2I_MASK

from hf_maskdiff import (
    AncestralScheduler,
    DelayedCacheConfig,
    DualCacheConfig,
    HaltonScheduler,
    MaskedDiffusionTextPipeline,
    MaskGITPipeline,
    MomentScheduler,
    PartialCacheConfig,
)
from hf_maskdiff.pipelines import text_denoising
from hf_maskdiff.pipelines.denoising import denoise
from hf_maskdiff.pipelines.looking_ahead import StepLookingAhead

PROMPTS = ["w1 w2 [MASK:9] w3", "w4 [MASK:5] w5 w6 [MASK:4]", "w7 [MASK:3]"]


@pytest.fixture
def text() -> MaskedDiffusionTextPipeline:
    made = make_text_pipeline("llama", num_layers=2)
    made.scheduler = MomentScheduler(MASK, masking_schedule="linear", num_candidates=3)
    return made


@pytest.fixture
def images(make_pipeline: Callable[..., MaskGITPipeline]) -> MaskGITPipeline:
    return make_pipeline(num_layers=2)


def ahead(pipe: Any, number: int = 3, kind: Any = MomentScheduler) -> None:
    pipe.scheduler = kind.from_config(pipe.scheduler.config, num_candidates=number)


@pytest.mark.parametrize(
    "call", [{}, {"block_length": 4}, {"guidance_scale": 2.0}, {"guidance_scale": (0.5, 2.0), "block_length": 5}]
)
def test_a_text_does_not_depend_on_its_batch(text: MaskedDiffusionTextPipeline, call: dict[str, Any]) -> None:
    call = {"num_inference_steps": 4, "stop_at_eos": False, **call}
    together = text(PROMPTS, generator=seeds(0, 1, 2), **call)
    for i, prompt in enumerate(PROMPTS):
        alone = text(prompt, generator=seeds(i), **call)
        assert torch.equal(alone.sequences[0], together.sequences[i])
        assert alone.num_model_passes == [together.num_model_passes[i]]
        given = text.tokenizer(prompt.split("[MASK")[0], add_special_tokens=False).input_ids
        assert alone.sequences[0][: len(given)].tolist() == given


def test_candidates_are_counted_and_change_the_text(text: MaskedDiffusionTextPipeline) -> None:
    prompt, call = "w1 [MASK:12]", {"num_inference_steps": 4}
    ours = text([prompt] * 6, generator=seeds(*range(6)), **call)
    assert all(4 < number <= 1 + 3 * 3 for number in ours.num_model_passes)
    ahead(text, 1)
    plain = text([prompt] * 6, generator=seeds(*range(6)), **call)
    assert plain.num_model_passes == [4] * 6
    assert not all(torch.equal(a, b) for a, b in zip(ours.sequences, plain.sequences, strict=True))


def test_one_pass_of_all_candidates_is_the_next_steps(text: MaskedDiffusionTextPipeline) -> None:
    """The model is called as often as without looking ahead, once a step."""
    sizes = []
    text.transformer.register_forward_pre_hook(
        lambda _, inputs, options: sizes.append(len(options.get("input_ids", inputs[0] if inputs else None))),
        with_kwargs=True,
    )
    call = {"num_inference_steps": 4, "stop_at_eos": False}
    text("w1 [MASK:12]", generator=seeds(0), **call)  # the denoiser's probe runs before its first use
    sizes.clear()
    passes = text("w1 [MASK:12]", generator=seeds(0), **call).num_model_passes
    assert len(sizes) == 4
    assert sizes[0] == 1
    assert passes == [sum(sizes)]


def write(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Other tokens after the second step: one known, one masked again."""
    sample = values["sequences"].clone()
    if step == 1:
        masked = sample == MASK
        sample[:, masked[0].nonzero()[0]] = 5
        sample[0, (~masked[0]).nonzero()[-1]] = MASK
    return {"sequences": sample}


def copy(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
    return {"sequences": values["sequences"].clone()}


@pytest.mark.parametrize("callback", [None, copy, write])
def test_a_pass_is_used_again_only_where_nothing_has_changed(
    text: MaskedDiffusionTextPipeline, callback: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    call: dict[str, Any] = {"num_inference_steps": 5, "stop_at_eos": False, "callback_on_step_end": callback}
    prompts = ["w1 [MASK:12]", "[MASK:12] w3"]
    ours = text(prompts, generator=seeds(0, 1), **call)
    monkeypatch.setattr(StepLookingAhead, "passes", lambda self, pass_of_step: pass_of_step)
    anew = text(prompts, generator=seeds(0, 1), **call)
    for own, other in zip(ours.sequences, anew.sequences, strict=True):
        assert torch.equal(own, other)
        assert not (own == MASK).any()
    saved = 3 if callback is write else 4  # what was written must be seen
    assert [other - own for own, other in zip(ours.num_model_passes, anew.num_model_passes, strict=True)] == [saved] * 2


def no_guidance_from_the_third_step_on(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
    if step == 1:
        pipe._guidance_scale = 1.0
    return values


def guided_all_along(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
    return values


def test_guidance_that_a_callback_changes_holds_from_the_next_step_on(
    text: MaskedDiffusionTextPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the pass that the step begins with was run before the callback, with the old scale."""

    def written(callback: Any) -> list[list[int]]:
        call = {"num_inference_steps": 5, "stop_at_eos": False, "guidance_scale": 6.0}
        found = text(["w11 [MASK:12]"] * 4, generator=seeds(0, 1, 2, 3), callback_on_step_end=callback, **call)
        return [ids.tolist() for ids in found.sequences]

    ours, guided = written(no_guidance_from_the_third_step_on), written(guided_all_along)
    monkeypatch.setattr(StepLookingAhead, "passes", lambda self, pass_of_step: pass_of_step)
    assert ours == written(no_guidance_from_the_third_step_on) != guided


def test_guidance_that_a_callback_changes_holds_where_a_step_has_revealed_nothing(
    text: MaskedDiffusionTextPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    text.scheduler = AncestralScheduler(MASK)

    def written() -> list[list[int]]:
        call: dict[str, Any] = {"num_inference_steps": 24, "stop_at_eos": False, "guidance_scale": 6.0}
        call["callback_on_step_end"] = no_guidance_from_the_third_step_on
        return [ids.tolist() for ids in text(["w11 [MASK:6]"] * 8, generator=seeds(*range(8)), **call).sequences]

    ours = written()
    monkeypatch.setattr(
        text_denoising, "denoise", lambda *given, **named: denoise(*given, **named | {"reuse_logits": False})
    )
    assert ours == written()


def test_a_row_that_has_ended_costs_the_others_no_pass(text: MaskedDiffusionTextPipeline) -> None:
    ends = torch.nn.functional.one_hot(torch.tensor(3), text.transformer.config.vocab_size) * 3.0
    text.transformer.lm_head.register_forward_hook(lambda head, inputs, logits: logits + ends)
    prompts, call = ["w11 [MASK:12]"] * 6, {"num_inference_steps": 6, "stop_at_eos": True, "block_length": 12}
    together = text(prompts, generator=seeds(*range(6)), **call)
    assert len(set(together.num_model_passes)) > 1
    for row, prompt in enumerate(prompts):
        alone = text(prompt, generator=seeds(row), **call)
        assert alone.num_model_passes == [together.num_model_passes[row]]
        assert torch.equal(alone.sequences[0], together.sequences[row])


@pytest.mark.parametrize("config", [PartialCacheConfig(num_substeps=2), DualCacheConfig(), DelayedCacheConfig()])
def test_no_cache_of_a_text(text: MaskedDiffusionTextPipeline, config: Any) -> None:
    text.enable_cache(config)
    with pytest.raises(ValueError, match=r"`num_candidates` of the scheduler must be 1 while a cache is on, got 3"):
        text(PROMPTS[0], num_inference_steps=3, block_length=4)
    text.disable_cache()
    text(PROMPTS[0], num_inference_steps=3, block_length=4)


@pytest.mark.parametrize("kind", [MomentScheduler, HaltonScheduler])
@pytest.mark.parametrize("guidance_scale", [1.0, (0.0, 3.0)])
def test_an_image_does_not_depend_on_its_batch(images: MaskGITPipeline, kind: Any, guidance_scale: Any) -> None:
    pipe = images
    ahead(pipe, kind=kind)
    call = {"num_inference_steps": 4, "guidance_scale": guidance_scale, "output_type": "latent"}
    together = pipe(class_labels=[0, 1, 2], generator=seeds(0, 1, 2), **call).images
    for i in range(3):
        assert torch.equal(pipe(class_labels=i, generator=seeds(i), **call).images[0], together[i])
    ahead(pipe, 1, kind)
    assert not torch.equal(pipe(class_labels=[0, 1, 2], generator=seeds(0, 1, 2), **call).images, together)


def test_what_is_kept_of_an_image_is_never_touched(images: MaskGITPipeline) -> None:
    ahead(images)
    noise = torch.Generator().manual_seed(0)
    pictures = torch.rand(2, 1, 8, 8, generator=noise)
    editable = torch.rand(2, 1, 4, 4, generator=noise) < 0.6
    edits = {"image": pictures, "mask_image": editable.float().repeat_interleave(2, 2).repeat_interleave(2, 3)}
    call = {"num_inference_steps": 4, "output_type": "latent"}
    made = images(class_labels=[0, 1], generator=seeds(0, 1), **edits, **call).images
    codes = images.encode_image(images.preprocess_image(pictures))
    assert torch.equal(made[~editable[:, 0]], codes[~editable[:, 0]])
    one = {name: values[1:] for name, values in edits.items()}
    assert torch.equal(images(class_labels=[1], generator=seeds(1), **one, **call).images[0], made[1])


def test_an_image_of_a_text_is_told_the_time_of_the_next_step() -> None:
    """Whose pass the one of the candidates is."""
    pipe, steps = meissonic(MomentScheduler(mask_token_id=T2I_MASK, codebook_size=CODES, num_candidates=3)), 4
    passes = Passes(pipe)
    call = {"num_inference_steps": steps, "guidance_scale": 2.0, "output_type": "latent"}
    both = pipe(**encoded(1, 2), generator=seeds(1, 2), **call).images
    told = [set(one["timestep"].tolist()) for one in passes.told]
    assert told == [{float(n)} for n in range(steps - 1, -1, -1) for _ in range(2)]
    assert [len(one["sample"]) for one in passes.told[:2]] == [2, 2]
    assert all(2 < len(one["sample"]) <= 6 for one in passes.told[2:])
    assert torch.equal(pipe(**encoded(2), generator=seeds(2), **call).images[0], both[1])


@pytest.mark.parametrize("config", [PartialCacheConfig(num_substeps=2), DelayedCacheConfig(), FirstBlockCacheConfig()])
def test_no_cache_of_an_image(images: MaskGITPipeline, config: Any) -> None:
    ahead(images)
    images.enable_cache(config)
    with pytest.raises(ValueError, match=rf"got 3 with {type(config).__name__}. Call `disable_cache"):
        images(class_labels=[0], num_inference_steps=3)
    images.disable_cache()
