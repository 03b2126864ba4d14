"""TiTok's denoiser and tokenizer: parity with models made of transformers' and torch's own layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from titok_reference import BertGenerator, Tokenizer, UViTGenerator
from torch import Tensor, nn

from hf_maskdiff import TiTokTransformer1DModel, TiTokVQModel
from hf_maskdiff.conversion.titok import convert_generator, convert_tokenizer
from hf_maskdiff.pipelines.image_codes import nearest_codes

CLOSE = {"atol": 2e-5, "rtol": 2e-5}
TOKENS, CODES, CLASSES = 6, 11, 3
SHAPE = (TOKENS, CODES, CLASSES, 32, 5, 4, 48)  # ... width, layers, heads, inner width
SIZES: dict[str, Any] = {"hidden_size": 32, "num_layers": 5, "num_attention_heads": 4, "intermediate_size": 48}


def randomised(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def inputs(rows: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randint(0, CODES + 1, (rows, TOKENS), generator=generator)
    return sample, torch.arange(rows) + CLASSES + 1 - rows  # the last is the null label


@torch.no_grad()
@pytest.mark.parametrize("reference", [BertGenerator, UViTGenerator])
def test_parity_of_the_denoiser(reference: type) -> None:
    original = randomised(reference(*SHAPE))
    component = convert_generator(original.state_dict(), CODES, [4])
    model = component.build()
    sizes = SIZES | {"num_tokens": TOKENS, "codebook_size": CODES, "num_classes": CLASSES}
    assert {name: component.config[name] for name in sizes} == sizes
    assert component.config["num_skips"] == (2 if reference is UViTGenerator else 0)
    expected = original(*inputs())
    assert expected.std() > 0.3
    torch.testing.assert_close(model(*inputs()).sample, expected, **CLOSE)


@pytest.fixture(scope="module")
def tokenizers() -> tuple[Tokenizer, TiTokVQModel]:
    original = randomised(Tokenizer(side=3, latent=5, codes=13, token=4, reading=128, writing=64, pixels=20))
    return original, convert_tokenizer(original.state_dict()).build()


@torch.no_grad()
def test_parity_of_the_tokenizer(tokenizers: tuple[Tokenizer, TiTokVQModel]) -> None:
    original, model = tokenizers
    assert (model.config.sample_size, model.config.patch_size, model.config.num_latent_tokens) == (12, 4, 5)
    assert (model.config.num_attention_heads, model.config.num_decoder_attention_heads) == (2, 1)
    assert model.image_size == (12, 12)
    codes = torch.randint(0, 13, (4, 5), generator=torch.Generator().manual_seed(0))
    expected = original.decode(codes)
    assert expected.std() > 0.1
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    torch.testing.assert_close(model.decode(codes).sample, expected, **CLOSE)
    image = torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    latents = model.encode(image).latents
    assert torch.equal(nearest_codes(model, latents), original.encode(image))
    assert original.encode(image).unique().numel() > 3
    torch.testing.assert_close(latents.norm(dim=1), torch.ones(8, 5))
    torch.testing.assert_close(model(image).sample, original.decode(original.encode(image)), **CLOSE)


def make(**changes: Any) -> TiTokTransformer1DModel:
    sizes = {"num_tokens": TOKENS, "codebook_size": CODES, "num_classes": CLASSES} | SIZES
    return randomised(TiTokTransformer1DModel(**(sizes | changes)))


@pytest.mark.parametrize("changes", [{}, {"norm_first": True, "num_skips": 2}])
def test_every_weight_learns_with_checkpointing_too(changes: dict[str, Any]) -> None:
    model = make(**changes).train()
    gradients = []
    for _ in range(2):
        model(*inputs()).sample.square().mean().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        model.zero_grad()
        model.enable_gradient_checkpointing()
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, **CLOSE)


def test_save_and_load(tokenizers: tuple[Tokenizer, TiTokVQModel], tmp_path: Path) -> None:
    model, codes = make(), torch.arange(10).view(2, 5)
    model.save_pretrained(tmp_path / "transformer")
    loaded = TiTokTransformer1DModel.from_pretrained(tmp_path / "transformer")
    assert torch.equal(loaded(*inputs()).sample, model(*inputs()).sample)
    tokenizers[1].save_pretrained(tmp_path / "vqvae")
    again = TiTokVQModel.from_pretrained(tmp_path / "vqvae")
    assert torch.equal(again.decode(codes).sample, tokenizers[1].decode(codes).sample)


def test_bad_input_is_one_clear_error() -> None:
    model, (sample, labels) = make(), inputs()
    with pytest.raises(ValueError, match=r"`sample` must have shape \(batch_size, 6\), got \(3, 5\)"):
        model(sample[:, :5], labels)
    with pytest.raises(ValueError, match=r"`sample` must have shape \(batch_size, 6\), got \(3, 2, 3\)"):
        model(sample.view(3, 2, 3), labels)
    with pytest.raises(ValueError, match=r"`class_labels` must have shape \(3,\)"):
        model(sample, labels[:2])
    with pytest.raises(ValueError, match="partial caching off"):
        model(sample[:, :2], labels, positions=torch.arange(2).expand(3, -1).clone())
    for changes, message in (
        ({"num_skips": 3}, "at most half of `num_layers` = 5, got 3"),
        ({"num_attention_heads": 5}, "must divide the width 32, got 5"),
        ({"num_tokens": 0}, "`num_tokens` must be at least 1, got 0"),
        ({"dropout": 1.0}, r"in \[0, 1\), got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**changes)
    with pytest.raises(ValueError, match=r"`patch_size` must divide `sample_size` = 10 and be 4"):
        TiTokVQModel(10, 4, 5, 13, 4, 64, 1, 1, 64, 1, 1, block_out_channels=(32, 32, 64))
