"""Meissonic as published, converted: the same logits, its authors' loop to the code, and refusals of what is wrong."""

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
from meissonic_folder import CODES, ROWS, save_meissonic
from meissonic_reference import MeissonicReference
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from hf_maskdiff import (
    HaltonScheduler,
    MaskedDiffusionTextToImagePipeline,
    MaskGITScheduler,
    MeissonicTransformer2DModel,
    MomentScheduler,
    OneStepScheduler,
    PartialCacheConfig,
)
from hf_maskdiff.conversion.convert import convert
from hf_maskdiff.conversion.meissonic import meissonic
from hf_maskdiff.conversion.options import MissingOptions
from hf_maskdiff_cli import main

SIZE = {"height": 16, "width": 24}  # pixels, two a code


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MeissonicReference]:
    folder = tmp_path_factory.mktemp("meissonic") / "published"
    return folder, save_meissonic(folder)


@pytest.fixture(scope="module")
def converted(published: tuple[Path, MeissonicReference], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("meissonic") / "converted"
    main(["convert", str(published[0]), str(output)])
    return output


def opened(folder: Path) -> MaskedDiffusionTextToImagePipeline:
    pipe = MaskedDiffusionTextToImagePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_a_folder_is_a_repository(converted: Path) -> None:
    index = json.loads((converted / "model_index.json").read_text())
    assert index["_class_name"] == "MaskedDiffusionTextToImagePipeline"
    assert index["transformer"] == ["hf_maskdiff", "MeissonicTransformer2DModel"]
    assert index["call_defaults"] == {"num_inference_steps": 64, "guidance_scale": 9.0}
    pipe = opened(converted)
    assert type(pipe.transformer) is MeissonicTransformer2DModel
    assert pipe.transformer.config.sample_size == 64
    assert type(pipe.scheduler) is MaskGITScheduler
    scheduler = meissonic(CODES, ROWS - 1).scheduler
    assert pipe.scheduler.config.choice_temperature == [2.0, 0.0]
    names = [name for name in scheduler.config if not name.startswith("_")]
    assert [pipe.scheduler.config[name] for name in names] == [scheduler.config[name] for name in names]
    card = ModelCard.load(converted / "README.md")
    assert (card.data.license, "viiika/Meissonic" in card.text, "64 steps" in card.text) == ("apache-2.0", True, True)


def test_monetico_is_the_one_without_squares(tmp_path: Path) -> None:
    save_meissonic(tmp_path / "in", downsample=False)
    pipe = opened(convert(tmp_path / "in", tmp_path / "out"))
    assert (pipe.transformer.config.sample_size, pipe.transformer.config.downsample) == (32, False)
    assert pipe("a cat", **SIZE, num_inference_steps=2, output_type="latent").images.shape == (1, 8, 12)


def test_shards_and_a_folder_without_an_index(published: tuple[Path, MeissonicReference], tmp_path: Path) -> None:
    folder = copied(published[0], tmp_path / "in")
    (folder / "model_index.json").unlink()
    shutil.rmtree(folder / "scheduler")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = sorted(load_file(file).items())
    file.unlink()
    for number, part in enumerate((weights[:20], weights[20:]), start=1):
        save_file(dict(part), file.with_name(f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"))
    pipe = opened(convert(folder, tmp_path / "out"))
    whole = published[1].state_dict()["transformer_blocks.0.attn.to_q.weight"]
    assert torch.equal(pipe.transformer.transformer_blocks[0].attn.to_q.weight, whole)
    assert pipe.scheduler.config.mask_token_id == ROWS - 1


@torch.no_grad()
def authors_codes(folder: Path, reference: MeissonicReference, scheduler: Any, steps: int, scale: float) -> Tensor:
    """The original's loop with the original's transformer and text encoder, as published; draws are the scheduler's."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
    encoder = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder", trust_remote_code=False)
    texts = ["bad hands", "a red house"]
    ids = tokenizer(texts, return_tensors="pt", padding="max_length", truncation=True, max_length=12).input_ids
    outputs = encoder(ids, return_dict=True, output_hidden_states=True)
    micro_conds = torch.tensor([[SIZE["width"], SIZE["height"], 0, 0, 6]], dtype=torch.float32).expand(2, -1)
    sample = torch.full((1, SIZE["height"] // 2, SIZE["width"] // 2), scheduler.config.mask_token_id)
    generator = torch.Generator().manual_seed(5)
    scheduler.set_timesteps(steps)
    for left, t in zip(range(steps - 1, -1, -1), scheduler.timesteps, strict=True):
        both, time = torch.cat([sample] * 2), torch.tensor([left])
        logits = reference(both, outputs.hidden_states[-2], outputs.text_embeds, micro_conds, time.float())
        negative, positive = logits.chunk(2)
        logits = negative + scale * (positive - negative)
        sample = scheduler.step(logits, t, sample, generator=generator).prev_sample
    return sample


@pytest.mark.parametrize("steps", [5, 12])
def test_the_authors_loop_to_the_code(steps: int, published: tuple[Path, MeissonicReference], converted: Path) -> None:
    pipe = opened(converted)
    call = {"negative_prompt": "bad hands", "num_inference_steps": steps, "output_type": "latent"}
    codes = pipe("a red house", **SIZE, **call, generator=torch.Generator().manual_seed(5)).images
    scheduler = MaskGITScheduler.from_config(pipe.scheduler.config)
    expected = authors_codes(*published, scheduler, steps, scale=9.0)
    assert (codes != ROWS - 1).all()
    assert torch.equal(codes, expected)
    time_matters = authors_codes(*published, scheduler, steps + 1, scale=9.0)
    assert not torch.equal(codes, time_matters)


def test_prompts_size_and_score_matter(converted: Path) -> None:
    pipe, results = opened(converted), []
    plain: dict[str, Any] = {"prompt": "a red house", **SIZE, "num_inference_steps": 4}
    changes = ({}, {"prompt": "a cat"}, {"negative_prompt": "mud"}, {"micro_conditioning_aesthetic_score": 2})
    for change in changes:
        generator = torch.Generator().manual_seed(0)
        results.append(pipe(**(plain | change), generator=generator, output_type="latent").images)
    assert all(not torch.equal(results[0], other) for other in results[1:])
    image = pipe(**plain, output_type="pt").images
    assert image.shape == (1, 3, 16, 24)
    assert (image.min() >= 0, image.max() <= 1) == (True, True)


def test_images_are_edited(converted: Path) -> None:
    pipe = opened(converted)
    image = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 16, 24)
    mask[:, :, 12:] = 1
    codes = pipe.encode_image(image)
    call: dict[str, Any] = {
        "prompt": "a cat",
        **SIZE,
        "num_inference_steps": 4,
        "image": image,
        "output_type": "latent",
    }
    painted = pipe(**call, mask_image=mask, generator=torch.Generator().manual_seed(1)).images
    assert torch.equal(painted[..., :6], codes[..., :6])
    assert not torch.equal(painted, codes)
    varied = pipe(**call, strength=0.5, generator=torch.Generator().manual_seed(1)).images
    assert 0 < (varied == codes).sum() < codes.numel()


@torch.no_grad()
@pytest.mark.parametrize("downsample", [False, True])
def test_a_transformer_for_one_pass_draws_as_di_m_o(downsample: bool, tmp_path: Path) -> None:
    """Random codes and masks, noise on what they are looked up as, no step left: over the reference, to the code."""
    reference = save_meissonic(tmp_path / "whole", downsample)
    shutil.copytree(tmp_path / "whole" / "transformer", tmp_path / "alone" / "transformer")
    pipe = opened(convert(tmp_path / "alone", tmp_path / "out", tmp_path / "whole"))
    settings = {"mask_token_id": ROWS - 1, "codebook_size": CODES, "initial_mask_ratio": 0.6, "embedding_noise": 0.3}
    pipe.scheduler = OneStepScheduler(**settings)
    call = {**SIZE, "num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}
    codes = pipe("a red house", **call, generator=torch.Generator().manual_seed(3)).images

    scheduler, generator = OneStepScheduler(**settings), torch.Generator().manual_seed(3)
    scheduler.set_timesteps(1)
    masked = torch.full((1, SIZE["height"] // 2, SIZE["width"] // 2), ROWS - 1)
    start = scheduler.start_run(masked, None, generator)

    def disturb(module: Any, args: Any, states: Tensor) -> Tensor:  # (batch, width, rows, columns)
        return start.embedding_noise(states.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(states)

    reference.embed.register_forward_hook(disturb)
    pooled, hidden = pipe.encode_prompt("a red house")
    micro_conds = torch.tensor([[SIZE["width"], SIZE["height"], 0.0, 0.0, 6.0]])
    logits = reference(start.sample, hidden, pooled, micro_conds, torch.zeros(1))
    kept = torch.zeros_like(start.sample, dtype=torch.bool)  # all codes are drawn, those of the start too
    last = (logits, scheduler.timesteps[0], start.sample)
    expected = scheduler.step(*last, generator=generator, given=kept).prev_sample
    assert torch.equal(codes, expected)
    without = OneStepScheduler(**(settings | {"embedding_noise": 0.0}))
    pipe.scheduler = without
    assert not torch.equal(pipe("a red house", **call, generator=torch.Generator().manual_seed(3)).images, codes)


def test_a_folder_in_a_repository_of_the_hub(
    published: tuple[Path, MeissonicReference], hub: LoopbackHub, tmp_path: Path
) -> None:
    """Di[M]O's holds two models; only the folder that is asked for is fetched."""
    folder, one, whole = published[0], Repository(), Repository()
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    transformer = {f"meissonic/{name}": data for name, data in files.items() if name.startswith("transformer/")}
    one.commit({**transformer, "maskgit/pytorch_model.bin": b"not fetched"}, "weights")
    whole.commit(files, "weights")
    hub.repositories |= {"them/dimo": one, "they/meissonic": whole}
    output = convert("them/dimo/meissonic", tmp_path / "out", "they/meissonic")
    assert opened(output).transformer.config.downsample
    card = ModelCard.load(output / "README.md")
    assert "Converted from `them/dimo/meissonic` at revision" in card.text
    assert "Its tokenizer is that of `they/meissonic` at revision" in card.text
    assert not any("maskgit" in str(request) for request in hub.requests)


# --- partial caching --------------------------------------------------------------------------------------------------


def codes_of(pipe: MaskedDiffusionTextToImagePipeline, **changes: Any) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    call = SIZE | {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"} | changes
    return pipe(["a red house", "mud"], **call, generator=generators).images


@pytest.mark.parametrize("scheduler", [MomentScheduler, HaltonScheduler])
def test_groups_of_one_and_full_passes_are_what_they_say(scheduler: type, converted: Path) -> None:
    pipe = opened(converted)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    plain = codes_of(pipe)
    pipe.enable_cache(PartialCacheConfig(num_substeps=1))
    assert torch.equal(codes_of(pipe), plain)
    pipe.disable_cache()
    pipe.enable_cache(PartialCacheConfig(num_substeps=3))
    partial = codes_of(pipe)
    assert not torch.equal(partial, plain)
    assert (partial != ROWS - 1).all()
    alone = pipe(
        ["mud"],
        **SIZE,
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="latent",
        generator=torch.Generator().manual_seed(1),
    ).images
    assert torch.equal(alone[0], partial[1])


@pytest.mark.parametrize("downsample", [False, True])
def test_with_one_layer_partial_passes_are_exact(downsample: bool, tmp_path: Path) -> None:
    """Keys and values of the first layer depend on a position's own codes alone."""
    save_meissonic(tmp_path / "in", downsample, num_layers=1, num_single_layers=0)
    pipe, results = opened(convert(tmp_path / "in", tmp_path / "out")), []
    pipe.scheduler = MomentScheduler.from_config(pipe.scheduler.config, choice_temperature=4.0)
    for threshold in (0.0, 1.0):
        pipe.enable_cache(PartialCacheConfig(num_substeps=3, full_pass_threshold=threshold))
        results.append(codes_of(pipe))
        pipe.disable_cache()
    assert torch.equal(*results)
    assert not torch.equal(results[0], codes_of(pipe))


# --- what is refused --------------------------------------------------------------------------------------------------


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def settings(part: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def weights(part: str, change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        (file,) = (folder / part).glob("*.safetensors")
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, {"format": "pt"})

    return changed


def pickled(folder: Path) -> None:
    (file,) = (folder / "transformer").glob("*.safetensors")
    file.rename(file.with_suffix(".bin"))


NAN = {"embed.conv.weight": torch.full((32, 32, 1, 1), float("nan"))}
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "part": (lambda folder: shutil.rmtree(folder / "vqvae"), r"must hold all parts of a Meissonic, \['vqvae'\]"),
    "setting": (settings("transformer", num_layers=None), r"must name its sizes, \['num_layers'\] are not there"),
    "size": (settings("transformer", num_layers=2), r"(?s)they are not\. .*transformer_blocks\.1\."),
    "huge": (settings("transformer", joint_attention_dim=2**40), "`joint_attention_dim` in config.json must be"),
    "up": (settings("transformer", upsample=False), "must have `upsample` as it has `downsample`"),
    "guided": (settings("transformer", guidance_embeds=True), "no `guidance_embeds`, got .*True"),
    "heads": (settings("transformer", axes_dims_rope=[4, 4, 4]), "add up to `attention_head_dim` = 16"),
    "codes": (settings("vqvae", num_vq_embeddings=15), "'vqvae' must be what its config.json says"),
    "mask": (settings("scheduler", mask_token_id=ROWS), "`mask_token_id` must be a row of the model, 0 .. 18, got 19"),
    "lost": (weights("transformer", lambda held: held.pop("embed.conv.weight")), "'code_in.proj.weight' is missing"),
    "lost square": (weights("transformer", lambda held: held.pop("up_block.upsample.conv.weight")), "square_out"),
    "unknown": (weights("transformer", lambda held: held.update(t5=torch.zeros(1))), "1 unknown: 't5'"),
    "nan": (weights("transformer", lambda held: held.update(NAN)), r"finite numbers, got NaN in 'transformer\."),
    "nan in text": (
        weights("text_encoder", lambda held: held["text_projection.weight"].fill_(float("inf"))),
        r"finite numbers, got infinity in 'text_encoder\.",
    ),
    "pickle": (pickled, "'transformer' must have its weights in safetensors"),
    "cut": (lambda folder: cut(folder / "transformer"), "must hold whole safetensors"),
}


def cut(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_is_refused_with_one_error(
    what: str, published: tuple[Path, MeissonicReference], tmp_path: Path
) -> None:
    spoil, message = REFUSED[what]
    folder = copied(published[0], tmp_path / "in")
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        convert(folder, tmp_path / "made" / "out")
    assert not (tmp_path / "made").exists()


def test_text_encoder_and_transformer_must_fit(published: tuple[Path, MeissonicReference], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    save_meissonic(folder, joint_attention_dim=20)
    with pytest.raises(ValueError, match=r"`joint_attention_dim` must be those of the text_encoder, got 20 and 24"):
        convert(folder, tmp_path / "out")
    shutil.copytree(published[0] / "transformer", tmp_path / "alone" / "transformer")
    with pytest.raises(MissingOptions, match=r"there is a transformer alone.*'MeissonFlow/Meissonic'"):
        convert(tmp_path / "alone", tmp_path / "out")
    with pytest.raises(ValueError, match=r"`--tokenizer` must be left out for a whole Meissonic, got \['vqvae', "):
        convert(published[0], tmp_path / "out", published[0])
    with pytest.raises(
        ValueError, match=r"`tokenizer` must hold all parts .* \['vqvae', 'text_encoder', 'tokenizer'\]"
    ):
        convert(tmp_path / "alone", tmp_path / "out", tmp_path / "alone")
    with pytest.raises(ValueError, match="`--block_size` must be left out for Meissonic"):
        convert(published[0], tmp_path / "out", block_size=4)
