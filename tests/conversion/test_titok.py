"""TiTok's generators and tokenizers as published, converted: their logits, their loop, their images; and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from titok_reference import BertGenerator, Tokenizer, UViTGenerator
from torch import Tensor, nn

from hf_maskdiff import (
    AnnealedScheduler,
    MaskGITPipeline,
    MomentScheduler,
    PartialCacheConfig,
    TiTokTransformer1DModel,
    TiTokVQModel,
)
from hf_maskdiff.conversion.convert import convert
from hf_maskdiff.conversion.options import MissingOptions
from hf_maskdiff.conversion.titok import titok

TOKENS, CODES, CLASSES, HEADS = 5, 13, 4, 4
Published = tuple[Path, Path, nn.Module, Tokenizer]


def randomised(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def save(model: nn.Module, folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    settings = {"model": {"vq_model": {"codebook_size": CODES, "use_l2_norm": True} | changes, "generator": {}}}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module", params=[BertGenerator, UViTGenerator])
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Published:
    root = tmp_path_factory.mktemp("titok")
    generator = randomised(request.param(TOKENS, CODES, CLASSES, 32, 5, HEADS, 48))
    tokenizer = randomised(Tokenizer(3, TOKENS, CODES, token=4, reading=64, writing=64, pixels=20))
    return save(generator, root / "generator"), save(tokenizer, root / "tokenizer"), generator, tokenizer


@pytest.fixture(scope="module")
def pipe(published: Published, tmp_path_factory: pytest.TempPathFactory) -> MaskGITPipeline:
    output = tmp_path_factory.mktemp("titok") / "out"
    convert(published[0], output, published[1], num_attention_heads=[HEADS])
    opened = MaskGITPipeline.from_pretrained(output)
    opened.set_progress_bar_config(disable=True)
    return opened


def codes_of(pipe: MaskGITPipeline, **changes: Any) -> Tensor:
    call = {"class_labels": [1, 3], "num_inference_steps": 4, "output_type": "latent"} | changes
    return pipe(generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)], **call).images


@torch.no_grad()
def test_what_comes_out_computes_what_went_in(pipe: MaskGITPipeline, published: Published) -> None:
    assert type(pipe.transformer) is TiTokTransformer1DModel
    assert type(pipe.vqvae) is TiTokVQModel
    assert type(pipe.scheduler) is AnnealedScheduler
    assert pipe.config.call_defaults == {"num_inference_steps": 8, "guidance_scale": [1.0, 4.9375]}
    sample, labels = torch.randint(0, CODES + 1, (2, TOKENS)), torch.tensor([0, CLASSES])
    logits = pipe.transformer(sample, labels).sample
    torch.testing.assert_close(logits, published[2](sample, labels), atol=2e-5, rtol=2e-5)
    codes = codes_of(pipe)
    images = pipe.decode_latents(codes)
    torch.testing.assert_close(images, published[3].decode(codes).clamp(0, 1), atol=2e-5, rtol=2e-5)
    assert images.shape == (2, 3, 12, 12)
    card = ModelCard.load(Path(pipe.config._name_or_path) / "README.md")
    assert (card.data.license, "bytedance/1d-tokenizer" in card.text) == ("apache-2.0", True)


@torch.no_grad()
@pytest.mark.parametrize("rise", ["constant", "linear", "power-cosine"])
def test_the_authors_loop_to_the_code(rise: str, pipe: MaskGITPipeline, published: Published) -> None:
    """Their guidance in their words, over their generator; the draws are the scheduler's."""
    steps, weight, labels = 6, 3.0, torch.tensor([2])
    ours = {"constant": 1 + weight, "linear": (1, 1 + weight * (steps - 1) / steps), "power-cosine": (1, weight, 3.0)}
    scheduler = AnnealedScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    sample, generator = torch.full((1, TOKENS), CODES), torch.Generator().manual_seed(5)
    for n, t in enumerate(scheduler.timesteps):
        with_class, without = (published[2](sample, ids) for ids in (labels, torch.tensor([CLASSES])))
        if rise == "power-cosine":
            scale = (weight - 1) * (1 - torch.cos(torch.tensor((n / steps) ** 3) * torch.pi)) / 2 + 1
            logits = without + (with_class - without) * scale
        else:
            scale = weight if rise == "constant" else weight * n / steps
            logits = with_class + (with_class - without) * scale
        sample = scheduler.step(logits, t, sample, generator=generator).prev_sample
    call = {"num_inference_steps": steps, "guidance_scale": ours[rise], "output_type": "latent"}
    codes = pipe([2], generator=torch.Generator().manual_seed(5), **call).images
    assert torch.equal(codes, sample)


def test_every_mode_of_a_row_of_codes(pipe: MaskGITPipeline) -> None:
    assert pipe([1], num_inference_steps=2).images[0].size == (12, 12)
    plain = codes_of(pipe)
    assert plain.shape == (2, TOKENS)
    alone = pipe([3], num_inference_steps=4, output_type="latent", generator=torch.Generator().manual_seed(1)).images
    assert torch.equal(alone[0], plain[1])
    start = plain.clone()
    start[:, 1:3] = CODES
    filled = codes_of(pipe, latents=start)
    assert torch.equal(filled[:, 3:], plain[:, 3:])
    image = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(3))
    varied = codes_of(pipe, image=image, strength=0.5)
    read = pipe.encode_image(pipe.preprocess_image(image))
    assert read.shape == (1, TOKENS)
    assert (varied == read).any()
    with pytest.raises(ValueError, match="`mask_image` must be left out for a TiTokVQModel"):
        codes_of(pipe, image=image, mask_image=torch.ones(1, 20, 20))
    with pytest.raises(ValueError, match=rf"`latents` must be int64 codes of shape \(2, {TOKENS}\)"):
        codes_of(pipe, latents=plain[:, :4])

    def stop(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        pipe._interrupt = True
        return tensors

    grey = pipe([1], num_inference_steps=4, callback_on_step_end=stop, output_type="pt").images
    assert (grey == 0.5).all()


def test_every_order_and_partial_caching(pipe: MaskGITPipeline) -> None:
    own = pipe.scheduler
    try:
        pipe.scheduler = MomentScheduler.from_config(own.config, choice_temperature=4.0)
        plain = codes_of(pipe)
        pipe.enable_cache(PartialCacheConfig(num_substeps=1))
        assert torch.equal(codes_of(pipe), plain)
        pipe.disable_cache()
        pipe.enable_cache(PartialCacheConfig(num_substeps=3))
        assert (codes_of(pipe, num_inference_steps=2) != CODES).all()
    finally:
        pipe.disable_cache()
        pipe.scheduler = own


def test_presets_of_the_published_sizes() -> None:
    assert [titok(length).num_inference_steps for length in (32, 64, 128)] == [8, 8, 64]
    assert [titok(length).scheduler.config.choice_temperature for length in (32, 64, 128)] == [9.5, 11.0, 2.8]
    assert titok(128).guidance_scale == [1.0, 6.9, 3.0]
    scheduler = titok().scheduler
    assert (scheduler.config.mask_token_id, scheduler.config.masking_schedule) == (4096, "arccos")


@pytest.mark.parametrize(
    ("reference", "shape", "parameters"),
    [
        (BertGenerator, (32, 4096, 1000, 768, 24, 16, 3072), 177),
        (UViTGenerator, (128, 4096, 1000, 1024, 20, 16, 4096), 287),
    ],
)
def test_published_sizes_fit_name_by_name(reference: type, shape: tuple, parameters: int) -> None:
    """At the sizes of the published configurations; the paper gives 177 and 287 million parameters."""
    from hf_maskdiff.conversion.titok import convert_generator

    with torch.device("meta"):
        original = reference(*shape)
    upstream = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in original.state_dict().items()}
    component = convert_generator(upstream, 4096)
    with torch.device("meta"):
        model = component.model_class(**component.config)
    assert {name: tensor.shape for name, tensor in component.state_dict.items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }
    assert sum(parameter.numel() for parameter in original.parameters()) / 1e6 == pytest.approx(parameters, rel=0.03)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_files_of_torch_save(published: Published, pipe: MaskGITPipeline, tmp_path: Path) -> None:
    for number, name in ((2, "generator.bin"), (3, "tokenizer.bin")):
        torch.save(published[number].state_dict(), tmp_path / name)
    tokenizer = tmp_path / "tokenizer.bin"
    again = MaskGITPipeline.from_pretrained(
        convert(tmp_path / "generator.bin", tmp_path / "out", tokenizer, num_attention_heads=[HEADS])
    )
    state = pipe.transformer.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.transformer.state_dict().items())


def without(part: int, key: str) -> Callable[[list[Path]], object]:
    def change(folders: list[Path]) -> None:
        tensors = load_file(folders[part] / "model.safetensors")
        key_of = next(name for name in tensors if name.endswith(key))
        del tensors[key_of]
        save_file(tensors, folders[part] / "model.safetensors")

    return change


def filled(part: int, key: str, value: float) -> Callable[[list[Path]], object]:
    def change(folders: list[Path]) -> None:
        tensors = load_file(folders[part] / "model.safetensors")
        tensors[key].fill_(value)
        save_file(tensors, folders[part] / "model.safetensors")

    return change


def set_to(**changes: Any) -> Callable[[list[Path]], object]:
    def change(folders: list[Path]) -> None:
        (folders[1] / "config.json").write_text(json.dumps({"model": {"vq_model": changes}}))

    return change


REFUSED: dict[str, tuple[Callable[[list[Path]], object], str]] = {
    "head": (without(0, "lm_head.bias"), "head.bias"),
    "decoder": (without(1, "decoder.mask_token"), "'mask_token' is missing"),
    "nan": (filled(1, "quantize.embedding.weight", float("nan")), r"finite numbers, got NaN in 'vqvae\."),
    "vae": (set_to(quantize_mode="vae"), "a TiTok must have .* got {'quantize_mode': 'vae'}"),
    "distances": (set_to(use_l2_norm=False), "got {'use_l2_norm': False}"),
    "no settings": (lambda folders: (folders[1] / "config.json").unlink(), "`tokenizer` must hold 'model.safetensors'"),
    "two tokenizers": (lambda folders: replaced(folders), "must hold one transformer, .* holds none"),
}


def replaced(folders: list[Path]) -> None:
    shutil.rmtree(folders[0])
    shutil.copytree(folders[1], folders[0])


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_wrong_is_refused_with_one_error(what: str, published: Published, tmp_path: Path) -> None:
    spoil, message = REFUSED[what]
    folders = [Path(shutil.copytree(published[part], tmp_path / str(part))) for part in (0, 1)]
    spoil(folders)
    with pytest.raises(ValueError, match=message):
        convert(folders[0], tmp_path / "made" / "out", folders[1], num_attention_heads=[HEADS])
    assert not (tmp_path / "made").exists()


def test_what_is_missing_is_said_at_once(published: Published, tmp_path: Path) -> None:
    with pytest.raises(MissingOptions, match="tokenizer_titok_l32_imagenet") as error:
        convert(published[0], tmp_path / "out")
    assert set(error.value.options) == {"tokenizer", "num_attention_heads"}
    with pytest.raises(ValueError, match="`--block_size` must be left out for TiTok"):
        convert(published[0], tmp_path / "out", published[1], block_size=4)
