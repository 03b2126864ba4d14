"""Random calls of what makes sounds, rows of codes from text, and likelihoods: a row alone is the row of its batch.

A case is drawn from its number alone. Models compute in float64. Callbacks look on: one that writes tokens makes the
next pass compute all of the batch, which under a cache across steps is a little more than a row alone would compute.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import tiny_audio
import torch
from test_image_combinations import caches
from test_masked_diffusion_text import MASK, VOCAB, seeds
from test_text_combinations import a_scheduler, pipeline_of
from tiny_weights import draw_weights

from hf_maskdiff import (
    BlockCacheConfig,
    MaskedDiffusionAudioPipeline,
    MaskedDiffusionTextToImagePipeline,
    MaskGenTransformer1DModel,
    MomentScheduler,
    TATiTokVQModel,
)
from hf_maskdiff.likelihood import Antithetic, Chain, Independent, LLaDACounts, PseudoLikelihood, Sobol, Stratified

CODES, ROWS = tiny_audio.CODES, 3


@cache
def audio_pipeline(has_classes: bool, is_fine: bool) -> MaskedDiffusionAudioPipeline:
    sizes = {"num_classes": 3} if has_classes else {}
    fine = tiny_audio.transformer(num_conditioning_codebooks=tiny_audio.COARSE, **sizes) if is_fine else None
    pipe = tiny_audio.pipeline(transformer=tiny_audio.transformer(**sizes), fine_transformer=fine)
    for model in (pipe.transformer, *([] if fine is None else [fine])):
        model.double()
    return pipe


@cache
def drawing_pipeline() -> MaskedDiffusionTextToImagePipeline:
    """MaskGen with TA-TiTok: 6 codes in a row, texts of 3 tokens, encoded."""
    torch.manual_seed(0)
    widths = {"joint_attention_dim": 8, "pooled_projection_dim": 6, "micro_cond_encode_dim": 4}
    shape = {"num_tokens": 6, "hidden_size": 16, "num_layers": 2, "num_attention_heads": 2}
    transformer = MaskGenTransformer1DModel(codebook_size=CODES, **shape, **widths).double().eval()
    reading = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
    writing = {f"decoder_{name}" if name != "num_layers" else "num_decoder_layers": n for name, n in reading.items()}
    writing["num_decoder_attention_heads"] = writing.pop("decoder_num_attention_heads")
    image = {"sample_size": 8, "patch_size": 4, "num_latent_tokens": 6, "num_vq_embeddings": CODES, "vq_embed_dim": 5}
    vqvae = TATiTokVQModel(**image, **reading, **writing, num_text_tokens=3, text_embed_dim=8).eval()
    for model in (transformer, vqvae):
        draw_weights(model)
    scheduler = MomentScheduler(mask_token_id=CODES, codebook_size=CODES)
    pipe = MaskedDiffusionTextToImagePipeline(vqvae, None, None, transformer, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def a_call(draw: random.Random, pipe: Any, name: str) -> dict[str, Any]:
    """Give the pipeline a scheduler and a cache, and return arguments that are the same for all rows."""
    pipe.scheduler = a_scheduler(draw, mask_token_id=CODES, codebook_size=CODES)
    pipe.disable_cache()
    if (used := caches(draw, pipe.scheduler)[0]) is not None:
        pipe.enable_cache(used)
    call: dict[str, Any] = {
        "num_inference_steps": draw.choice([1, 2, 4, 7]),
        "sampling_temperature": draw.choice([None, 0.0, 0.7]),
    }
    if draw.random() < 0.5:
        call["callback_on_step_end"] = lambda pipe, step, t, tensors: {name: tensors[name]}
    if pipe.scheduler.config.get("measure") == "drawn" and type(pipe.scheduler).__name__ == "ThresholdScheduler":
        del call["sampling_temperature"]
    return call


def check_rows(run: Callable[..., torch.Tensor], each: dict[str, Any], num_each: int) -> torch.Tensor:
    """All rows at once, each with as many samples; and each alone, once with all of its samples and once with one."""

    def made(rows: list[int], samples: list[int]) -> torch.Tensor:
        own = {name: values[rows] for name, values in each.items()}
        return run(len(samples), seeds(*(10 * row + sample for row in rows for sample in samples)), **own)

    together = made([*range(ROWS)], [*range(num_each)]).unflatten(0, (ROWS, num_each))
    assert not (together == CODES).any(), "a mask is left"
    for row in range(ROWS):
        assert torch.equal(made([row], [num_each - 1])[0], together[row, -1]), "a row depends on its batch"
    return together


def check_audio(number: int) -> None:
    draw, noise = random.Random(number), torch.Generator().manual_seed(number)
    has_classes, is_fine, num_frames = draw.random() < 0.5, draw.random() < 0.6, draw.choice([5, 12, 31])
    pipe = audio_pipeline(has_classes, is_fine)
    call = a_call(draw, pipe, "codes") | {"chunk_length_s": draw.choice([0.4, 1.0, 10.0]), "output_type": "codes"}
    call["chunk_overlap_s"] = draw.choice([None, 0, 0.1, 0.3])
    if is_fine:
        call["num_fine_inference_steps"] = draw.choice([None, 1, 3])
    if has_classes:
        call["guidance_scale"] = draw.choice([1.0, 3.0, (1.0, 4.0), (0.5, 3.0, 2.0)])
    shares = torch.tensor([draw.choice([0.1, 0.5, 1.0]) for _ in range(ROWS)])
    keep = torch.rand(ROWS, pipe.num_codebooks, num_frames, generator=noise) >= shares[:, None, None]
    ends = torch.tensor([draw.randint(1, num_frames) for _ in range(ROWS)])
    keep |= torch.arange(num_frames) >= ends[:, None, None]  # so that they differ in how much is to be drawn, and where
    keep[..., 0] = False
    codes = torch.randint(0, CODES, keep.shape, generator=noise)
    each: dict[str, Any] = {"codes": codes, "keep": keep}
    if draw.random() < 0.5:
        each = {"codes": codes.masked_fill(~keep, CODES)}
    if has_classes and draw.random() < 0.7:
        each["class_labels"] = torch.arange(ROWS)

    def run(num: int, generator: list[torch.Generator], **own: Any) -> torch.Tensor:
        return pipe(**own, **call, num_waveforms_per_prompt=num, generator=generator).codes

    made = check_rows(run, each, draw.choice([1, 2]))
    assert all(torch.equal(made[:, i][keep], codes[keep]) for i in range(made.shape[1])), "a kept code has changed"


def check_drawing(number: int) -> None:
    draw, noise = random.Random(number), torch.Generator().manual_seed(number)
    pipe = drawing_pipeline()
    call = a_call(draw, pipe, "latents") | {"guidance_scale": draw.choice([1.0, 3.0, (1.0, 4.0), (0.5, 3.0, 2.0)])}
    each: dict[str, Any] = {}
    for prefix in ("", "negative_"):
        each[f"{prefix}prompt_embeds"] = torch.randn(ROWS, 6, generator=noise)
        each[f"{prefix}encoder_hidden_states"] = torch.randn(ROWS, 3, 16, generator=noise)
    num_each = draw.choice([1, 2])
    if draw.random() < 0.4:
        each["image"] = torch.rand(ROWS, 3, 8, 8, generator=noise)
        call["strength"] = draw.choice([1.0, 0.6])
    elif num_each == 1 and draw.random() < 0.6:
        hidden = torch.rand(ROWS, 6, generator=noise) < 0.6
        each["latents"] = torch.randint(0, CODES, (ROWS, 6), generator=noise).masked_fill(hidden, CODES)

    def run(num: int, generator: list[torch.Generator], **own: Any) -> torch.Tensor:
        made = pipe(**own, **call, num_images_per_prompt=num, generator=generator, output_type="latent")
        return made.images

    made = check_rows(run, each, num_each)
    if "latents" in each:
        assert torch.equal(made[:, 0][~hidden], each["latents"][~hidden]), "a given code has changed"


def check_likelihood(number: int) -> None:
    draw = random.Random(number)
    block_size = draw.choice([None, None, 4])
    pipe = pipeline_of(draw.choice(["bert", "qwen2"] if block_size is None else ["llama", "qwen2"]), block_size)
    pipe.disable_cache()
    if block_size is not None and draw.random() < 0.5:
        pipe.enable_cache(BlockCacheConfig())
    estimators = [Sobol(), Independent(), Stratified(group_size=4), Antithetic(), Chain(), LLaDACounts()]
    estimators += [] if block_size else [PseudoLikelihood()]
    call = {"num_samples": draw.choice([16, 32]), "estimator": draw.choice(estimators)}
    call |= {"guidance_scale": draw.choice([1.0, 2.0, 0.5]), "mask_counts": draw.random() < 0.3}
    known = [token for token in range(7, VOCAB) if token != MASK]
    ids = [draw.choices(known, k=draw.randint(2, 10)) for _ in range(ROWS)]
    scored = [[draw.random() < 0.5 for _ in row[1:]] + [True] for row in ids]

    def run(rows: list[int]) -> Any:
        texts = {"input_ids": [ids[row] for row in rows], "mask": [scored[row] for row in rows]}
        return pipe.log_likelihood(**texts, **call, generator=seeds(*rows), batch_size=draw.choice([1, 3, 16]))

    together = run([*range(ROWS)])
    for row in range(ROWS):
        alone = run([row])
        for name in ("log_likelihoods", "standard_errors"):
            torch.testing.assert_close(alone[name][0], together[name][row], atol=1e-9, rtol=1e-9, equal_nan=True)
        assert alone.num_model_passes[0] == together.num_model_passes[row]
        assert alone.num_tokens[0] == together.num_tokens[row]
        if together.token_log_likelihoods is not None:
            torch.testing.assert_close(alone.token_log_likelihoods[0], together.token_log_likelihoods[row])


CHECKS = [check_audio, check_drawing, check_likelihood]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("number", range(6))
def test_a_row_alone(check: Callable[[int], None], number: int) -> None:
    check(number)


@pytest.mark.exhaustive
@pytest.mark.parametrize("check", CHECKS)
def test_more_rows_alone(check: Callable[[int], None]) -> None:
    for number in range(6, 20):
        check(number)
