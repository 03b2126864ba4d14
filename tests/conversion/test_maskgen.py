"""MaskGen as published, converted: its logits, its authors' loop to the code, its images; and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import LoopbackHub, Repository
from huggingface_hub import ModelCard
from maskgen_folder import CODES, TOKENS, WORDS, Published, save_maskgen
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_maskdiff import (
    AnnealedScheduler,
    FirstHittingScheduler,
    MaskedDiffusionTextToImagePipeline,
    MaskGenTransformer1DModel,
    MomentScheduler,
    OneStepScheduler,
    PartialCacheConfig,
    TATiTokVQModel,
)
from hf_maskdiff.conversion.convert import convert
from hf_maskdiff.conversion.options import MissingOptions
from hf_maskdiff_cli import main

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return save_maskgen(tmp_path_factory.mktemp("maskgen"))


@pytest.fixture(scope="module")
def pipe(published: Published, tmp_path_factory: pytest.TempPathFactory) -> MaskedDiffusionTextToImagePipeline:
    output = tmp_path_factory.mktemp("maskgen") / "out"
    beside = ["--tokenizer", str(published.tokenizer), "--text_encoder", str(published.text_encoder)]
    main(["convert", str(published.generator), str(output), *beside])
    opened = MaskedDiffusionTextToImagePipeline.from_pretrained(output)
    opened.set_progress_bar_config(disable=True)
    return opened


@torch.no_grad()
def read_texts(pipe: MaskedDiffusionTextToImagePipeline, *texts: str) -> tuple[Tensor, Tensor, Tensor]:
    """Penultimate and last states, and the pooled output, of texts filled up with token 0 as OpenCLIP does it."""
    ids = torch.zeros(len(texts), WORDS, dtype=torch.int64)
    for row, text in zip(ids, texts, strict=True):
        known = pipe.tokenizer(text).input_ids
        row[: len(known)] = torch.tensor(known)
    outputs = pipe.text_encoder(ids, output_hidden_states=True)
    return outputs.hidden_states[-2], outputs.last_hidden_state, outputs.text_embeds


@torch.no_grad()
def test_what_comes_out_computes_what_went_in(pipe: MaskedDiffusionTextToImagePipeline, published: Published) -> None:
    assert (type(pipe.transformer), type(pipe.vqvae)) == (MaskGenTransformer1DModel, TATiTokVQModel)
    assert type(pipe.scheduler) is AnnealedScheduler
    settings = pipe.scheduler.config
    assert (settings.choice_temperature, settings.logits_temperature) == (2.0, [1.3, 0.5])
    defaults = {"num_inference_steps": 16, "guidance_scale": [2.0, 13.0, 1.0, 1.0]}
    assert pipe.config.call_defaults == defaults | {"micro_conditioning_aesthetic_score": 6.5}
    hidden, last, pooled = read_texts(pipe, "a red house", "")
    encoded = pipe.encode_prompt(["a red house", ""])
    torch.testing.assert_close(encoded[0], pooled, **CLOSE)
    torch.testing.assert_close(encoded[1], torch.cat([hidden, last], -1), **CLOSE)
    sample = torch.randint(0, CODES + 1, (2, TOKENS), generator=torch.Generator().manual_seed(0))
    score = torch.tensor([[6.5], [2.0]])
    expected = published.of_codes(sample, hidden, pooled, score[:, 0])
    torch.testing.assert_close(pipe.transformer(sample, hidden, pooled, score).sample, expected, **CLOSE)
    codes = sample.clamp(max=CODES - 1)
    images = pipe.decode_latents(codes, encoded[1])
    torch.testing.assert_close(images, published.of_images.decode(codes, last).clamp(0, 1), **CLOSE)
    card = ModelCard.load(Path(pipe.config._name_or_path) / "README.md")
    assert (card.data.license, "16 steps" in card.text) == ("apache-2.0", True)
    assert "tokenizer is that of `tokenizer`, its text encoder the text half of `clip`" in card.text


@pytest.mark.parametrize("steps", [5, 16])
def test_the_authors_loop_to_the_code(
    steps: int, pipe: MaskedDiffusionTextToImagePipeline, published: Published
) -> None:
    """Their counts, guidance and temperatures in their words; the draws are the scheduler's."""
    hidden, last, pooled = read_texts(pipe, "a red house", "")
    generator = torch.Generator().manual_seed(5)

    def draw(step: int, sample: Tensor, logits: Tensor, temperature: float, left: int) -> Tensor:
        if not (sample == CODES).any():
            return sample
        scheduler = AnnealedScheduler(
            CODES, CODES, choice_temperature=temperature, choice_temperature_schedule="constant"
        )
        scheduler.set_timesteps(steps)
        drawn = scheduler.step(logits, scheduler.timesteps[step], sample, generator=generator).prev_sample
        assert int((drawn == CODES).sum()) == left
        return drawn

    expected = published.of_codes.generate((hidden, pooled), steps, 12.0, 2.0, 6.5, draw)
    call = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(5)}
    codes = pipe("a red house", output_type="latent", **call).images
    assert torch.equal(codes, expected)
    call["generator"] = torch.Generator().manual_seed(5)
    image = pipe("a red house", output_type="pt", **call).images
    with torch.no_grad():
        torch.testing.assert_close(image, published.of_images.decode(codes, last[:1]).clamp(0, 1), **CLOSE)


def codes_of(pipe: MaskedDiffusionTextToImagePipeline, **changes: Any) -> Tensor:
    call: dict[str, Any] = {"prompt": ["a cat", "mud"], "num_inference_steps": 4, "output_type": "latent"} | changes
    return pipe(generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)], **call).images


def test_every_mode_of_a_row_of_codes(pipe: MaskedDiffusionTextToImagePipeline) -> None:
    assert pipe("a cat", num_inference_steps=2, height=6).images[0].size == (6, 6)
    plain = codes_of(pipe)
    assert plain.shape == (2, TOKENS)
    alone = pipe("mud", num_inference_steps=4, output_type="latent", generator=torch.Generator().manual_seed(1)).images
    assert torch.equal(alone[0], plain[1])
    for change in ({"micro_conditioning_aesthetic_score": 2.0}, {"negative_prompt": "bad"}, {"guidance_scale": 1.0}):
        assert not torch.equal(codes_of(pipe, **change), plain)
    assert torch.equal(codes_of(pipe, micro_conditioning_aesthetic_score=6.5), plain)
    start = plain.clone()
    start[:, 1:9] = CODES
    assert torch.equal(codes_of(pipe, latents=start)[:, 9:], plain[:, 9:])
    image = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(3))
    read = pipe.encode_image(pipe.preprocess_image(image))
    assert read.shape == (1, TOKENS)
    assert (codes_of(pipe, image=image, strength=0.5) == read).any()
    encoded = pipe.encode_prompt(["a cat", "mud"])
    given = {"prompt": None, "prompt_embeds": encoded[0], "encoder_hidden_states": encoded[1]}
    assert torch.equal(codes_of(pipe, **given), plain)
    pictures = [codes_of(pipe, **changes, output_type="pt") for changes in ({}, given)]
    assert torch.equal(*pictures)
    half = MaskedDiffusionTextToImagePipeline.from_pretrained(pipe.config._name_or_path).to(torch.float16)
    half.set_progress_bar_config(disable=True)
    assert torch.isfinite(codes_of(half, output_type="pt")).all()


def test_other_samplers_and_partial_caching(pipe: MaskedDiffusionTextToImagePipeline) -> None:
    own = pipe.scheduler
    try:
        pipe.scheduler = MomentScheduler.from_config(own.config, choice_temperature=4.0)
        plain = codes_of(pipe, num_inference_steps=2)
        pipe.enable_cache(PartialCacheConfig(num_substeps=1))
        assert torch.equal(codes_of(pipe, num_inference_steps=2), plain)
        pipe.disable_cache()
        pipe.enable_cache(PartialCacheConfig(num_substeps=3))
        partial = codes_of(pipe, num_inference_steps=2)
        assert not torch.equal(partial, plain)
        assert (partial != CODES).all()
        pipe.disable_cache()
        pipe.scheduler = FirstHittingScheduler.from_config(own.config)
        assert (codes_of(pipe) != CODES).all()
        pipe.scheduler = OneStepScheduler(CODES, CODES, initial_mask_ratio=0.6, embedding_noise=0.3)
        assert (codes_of(pipe, num_inference_steps=1, guidance_scale=1.0) != CODES).all()
    finally:
        pipe.disable_cache()
        pipe.scheduler = own


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"height": 8}, "`height` must be 6 pixels, the one size of a model whose codes are no places"),
    ({"width": 12}, "`width` must be 6 pixels"),
    (
        {"prompt": None, "prompt_embeds": torch.zeros(1, 32), "encoder_hidden_states": torch.zeros(1, 3, 48)},
        f"`encoder_hidden_states` must be of the {WORDS} tokens that the tokenizer of images reads, got 3",
    ),
    ({"micro_conditioning_crop_coord": (0, 1)}, "`micro_conditioning_crop_coord` must be left out for a MaskGenTransf"),
    ({"latents": torch.zeros(1, 2, 3, dtype=torch.int64)}, rf"`latents` must be int64 codes of shape \(1, {TOKENS}\)"),
    (
        {"image": torch.zeros(1, 3, 6, 6), "mask_image": torch.ones(1, 6, 6)},
        "`mask_image` must be left out for a TATiTokVQModel",
    ),
    (
        {"prompt": None, "prompt_embeds": torch.zeros(1, 32), "encoder_hidden_states": torch.zeros(1, 12, 24)},
        r"`encoder_hidden_states` must be a floating-point tensor \(num_prompts, num_tokens, 48\)",
    ),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_wrong_arguments(given: dict[str, Any], message: str, pipe: MaskedDiffusionTextToImagePipeline) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(**({"prompt": "a cat", "num_inference_steps": 2} | given))
    with pytest.raises(ValueError, match="`encoder_hidden_states` must have shape"):
        pipe.decode_latents(torch.zeros(1, TOKENS, dtype=torch.int64))


def test_from_the_hub_with_a_clip_that_is_a_pickle(published: Published, hub: LoopbackHub, tmp_path: Path) -> None:
    clip = Path(shutil.copytree(published.text_encoder, tmp_path / "clip"))
    torch.save(load_file(clip / "model.safetensors"), clip / "pytorch_model.bin")
    (clip / "model.safetensors").unlink()
    (clip / "tf_model.h5").write_bytes(b"not fetched")
    for name, folder in (("us/gen", published.generator), ("us/tok", published.tokenizer), ("they/clip", clip)):
        repository = Repository()
        repository.commit({path.name: path.read_bytes() for path in folder.iterdir()}, "weights")
        hub.repositories[name] = repository
    output = convert("us/gen", tmp_path / "out", "us/tok", text_encoder="they/clip")
    pipe = MaskedDiffusionTextToImagePipeline.from_pretrained(output)
    weight = load_file(published.text_encoder / "model.safetensors")["text_projection.weight"]
    assert torch.equal(pipe.text_encoder.text_projection.weight, weight)
    assert not any("tf_model" in str(request) for request in hub.requests)


# --- what is refused --------------------------------------------------------------------------------------------------


def tensors(part: str, change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def changed(root: Path) -> None:
        file = root / part / "model.safetensors"
        held = load_file(file)
        change(held)
        save_file(held, file, {"format": "pt"})

    return changed


def settings(part: str, model: str, **changes: Any) -> Callable[[Path], None]:
    def changed(root: Path) -> None:
        file = root / part / "config.json"
        content = json.loads(file.read_text())
        content["model"][model] |= changes
        file.write_text(json.dumps(content))

    return changed


def no_projection(root: Path) -> None:
    file = root / "clip" / "config.json"
    file.write_text(file.read_text().replace('"projection_dim": 32', '"projection_dim": 31'))


TABLE = "embeddings.weight"
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "kl": (
        settings("generator", "vq_model", quantize_mode="vae"),
        "a MaskGen must .* got {'quantize_mode': 'vae'}",
    ),
    "no score": (settings("generator", "maskgen", micro_condition=False), "got {'micro_condition': False}"),
    "own head": (settings("generator", "maskgen", weight_tying=False), "got {'weight_tying': False}"),
    "heads": (settings("generator", "maskgen", decoder_num_heads="4"), "`decoder_num_heads` in a MaskGen's .* got '4'"),
    "score": (settings("generator", "maskgen", sample_aesthetic_score=None), "must be a finite number, got None"),
    "schedule": (settings("generator", "maskgen", mask_schedule_strategy="root"), "`masking_schedule` must be"),
    "legacy": (settings("tokenizer", "vq_model", is_legacy=True), "a TA-TiTok must have .* got {'is_legacy': True}"),
    "two tables": (
        tensors("generator", lambda held: held.update({"lm_head.weight": held[TABLE] + 1})),
        "in which it looks them up, this one has two",
    ),
    "few rows": (
        tensors("generator", lambda held: held.update({TABLE: held[TABLE][:CODES].clone()})),
        "must have rows for its tokenizer's 13 codes and the mask, got 13",
    ),
    "unknown": (tensors("generator", lambda held: held.update(t5=torch.zeros(1))), "1 unknown: 't5'"),
    "lost": (
        tensors("tokenizer", lambda held: held.pop("decoder.text_guidance_proj.weight")),
        "text_proj.weight' is m",
    ),
    "nan": (
        tensors("generator", lambda held: held["pos_embed"].fill_(float("nan"))),
        r"finite numbers, got NaN in 'transformer\.",
    ),
    "codes": (
        tensors("generator", lambda held: held.update(pos_embed=held["pos_embed"][:, :5].clone())),
        "generator's number of codes of an image must be that of the tokenizer, got 5 and 30",
    ),
    "no tokenizer": (lambda root: (root / "tokenizer" / "config.json").unlink(), "`tokenizer` must hold 'model.safet"),
    "no clip": (lambda root: (root / "clip" / "model.safetensors").unlink(), "must hold 'model.safetensors' or 'pyt"),
    "clip's sizes": (no_projection, "text encoder's weights must fit its config.json|must be well-formed"),
    "clip's half": (
        tensors("clip", lambda held: held.pop("text_projection.weight")),
        r"weights must fit its config.json, got {'missing_keys': \['text_projection.weight'\]}",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_is_refused_with_one_error(what: str, published: Published, tmp_path: Path) -> None:
    spoil, message = REFUSED[what]
    root = Path(shutil.copytree(published.generator.parent, tmp_path / "in"))
    spoil(root)
    with pytest.raises(ValueError, match=message):
        convert(root / "generator", tmp_path / "made" / "out", root / "tokenizer", text_encoder=root / "clip")
    assert not (tmp_path / "made").exists()


def test_what_is_missing_is_said_at_once(published: Published, tmp_path: Path) -> None:
    with pytest.raises(MissingOptions, match="clip-vit-large-patch14-336") as error:
        convert(published.generator, tmp_path / "out")
    assert set(error.value.options) == {"tokenizer", "text_encoder"}
    with pytest.raises(ValueError, match="`--block_size` must be left out for MaskGen"):
        convert(published.generator, tmp_path / "out", published.tokenizer, block_size=4)
