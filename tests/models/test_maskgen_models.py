"""MaskGen's denoiser and TA-TiTok's tokenizer: parity with models of diffusers' and torch's own layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from maskgen_reference import MaskGenReference, TATiTokReference
from meissonic_folder import randomised
from torch import Tensor

from hf_maskdiff import MaskGenTransformer1DModel, TATiTokVQModel
from hf_maskdiff.conversion.maskgen import convert_generator, convert_tokenizer
from hf_maskdiff.pipelines.image_codes import nearest_codes

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
TOKENS, CODES, TEXT, POOLED, SCORE = 6, 11, 10, 12, 8
SHAPE = (TOKENS, CODES, 32, 3, 4, TEXT, POOLED, SCORE)  # ... width, layers, heads ...
Told = tuple[Tensor, Tensor, Tensor]


def told(rows: int = 3, words: int = 5) -> Told:
    """Hidden and pooled features, and what pipelines tell of a picture."""
    noise = torch.Generator().manual_seed(1)
    hidden, pooled = torch.randn(rows, words, TEXT, generator=noise), torch.randn(rows, POOLED, generator=noise)
    return hidden, pooled, torch.tensor([[256.0, 256, 0, 0, 3 + row] for row in range(rows)])


def codes(rows: int = 3) -> Tensor:
    return torch.randint(0, CODES + 1, (rows, TOKENS), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def test_parity_of_the_denoiser() -> None:
    original = randomised(MaskGenReference(*SHAPE), std=0.2)
    component = convert_generator(original.state_dict(), CODES, 4, SCORE)
    sizes = {"num_tokens": TOKENS, "codebook_size": CODES, "hidden_size": 32, "num_layers": 3}
    sizes |= {"joint_attention_dim": TEXT, "pooled_projection_dim": POOLED, "micro_cond_encode_dim": SCORE}
    assert {name: component.config[name] for name in sizes} == sizes
    model, (hidden, pooled, numbers) = component.build(), told()
    expected = original(codes(), hidden, pooled, numbers[:, -1])
    assert expected.std() > 0.3
    torch.testing.assert_close(model(codes(), hidden, pooled, numbers).sample, expected, **CLOSE)
    others = ((hidden.flip(0), pooled, numbers), (hidden, pooled.flip(0), numbers), (hidden, pooled, numbers.flip(0)))
    for other in others:
        assert (model(codes(), *other).sample - expected)[0].abs().max() > 1e-2
    model.fuse_qkv_projections()
    torch.testing.assert_close(model(codes(), hidden, pooled, numbers).sample, expected, **CLOSE)


@torch.no_grad()
def test_parity_of_the_tokenizer(tmp_path: Path) -> None:
    original = randomised(TATiTokReference(2, TOKENS, CODES, 4, 128, 64, words=5, text=TEXT), std=0.2)
    image = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    vectors = original.encoder(image, original.latent_tokens).flatten(0, 1)
    original.quantize.embedding.weight.copy_(vectors[::4][:CODES])  # else all lie next to the same code
    model = convert_tokenizer(original.state_dict()).build()
    assert (model.config.sample_size, model.config.patch_size, model.image_size) == (6, 3, (6, 6))
    assert (model.config.num_attention_heads, model.config.num_decoder_attention_heads) == (2, 1)
    rows, text = codes().clamp(max=CODES - 1), told()[0]
    expected = original.decode(rows, text)
    assert (expected[0] - original.decode(rows, text.flip(0))[0]).abs().max() > 1e-2
    torch.testing.assert_close(model.decode(rows, encoder_hidden_states=text).sample, expected, **CLOSE)
    latents, read = model.encode(image).latents, original.encode(image)
    assert torch.equal(nearest_codes(model, latents), read)
    assert read.unique().numel() > 3
    again = model(image[:3], text).sample
    torch.testing.assert_close(again, original.decode(read[:3], text), **CLOSE)
    model.save_pretrained(tmp_path)
    loaded = TATiTokVQModel.from_pretrained(tmp_path)
    both = (one.decode(rows, encoder_hidden_states=text).sample for one in (loaded, model))
    assert torch.equal(*both)
    for wrong in (None, text[:, :4], text[:2]):
        with pytest.raises(ValueError, match=r"`encoder_hidden_states` must have shape \(3, 5, 10\), a text for each"):
            model.decode(rows, encoder_hidden_states=wrong)


def make(**changes: Any) -> MaskGenTransformer1DModel:
    sizes = {"num_tokens": TOKENS, "codebook_size": CODES, "hidden_size": 32, "num_layers": 3}
    sizes |= {"num_attention_heads": 4, "joint_attention_dim": TEXT, "pooled_projection_dim": POOLED}
    return randomised(MaskGenTransformer1DModel(**(sizes | {"micro_cond_encode_dim": SCORE} | changes)))


def test_every_weight_learns_with_checkpointing_too() -> None:
    model, gradients = make().train(), []
    for _ in range(2):
        model(codes(), *told()).sample.square().mean().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        model.zero_grad()
        model.enable_gradient_checkpointing()
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-4)


def test_half_precision_is_finite_and_saved_weights_are_the_same(tmp_path: Path) -> None:
    model = make()
    with torch.no_grad():
        for dtype in (torch.float16, torch.bfloat16):
            hidden, pooled, numbers = told()
            logits = make().to(dtype)(codes(), hidden.to(dtype), pooled.to(dtype), numbers).sample
            assert logits.dtype == dtype
            assert torch.isfinite(logits).all()
    model.save_pretrained(tmp_path)
    loaded = MaskGenTransformer1DModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(codes(), *told()).sample, model(codes(), *told()).sample)


def test_bad_input_is_one_clear_error() -> None:
    model, (hidden, pooled, numbers) = make(), told()
    for call, message in (
        ((codes()[:, :5], hidden, pooled, numbers), r"`sample` must have shape \(batch_size, 6\), got \(3, 5\)"),
        ((codes().float(), hidden, pooled, numbers), r"`sample` must hold ids as torch.int64, got torch.float32"),
        ((codes(), hidden[..., :9], pooled, numbers), r"`encoder_hidden_states` must have shape \(3, 5, 10\)"),
        ((codes(), hidden[:2], pooled, numbers), r"`encoder_hidden_states` must have shape \(3, 5, 10\)"),
        ((codes(), hidden, pooled[:, :3], numbers), r"`pooled_projections` must have shape \(3, 12\)"),
        ((codes(), hidden, pooled, numbers[:, -1]), r"`micro_conds` must have shape \(3, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model(*call)
    for changes, message in (
        ({"num_attention_heads": 5}, "must divide the width 32, got 5"),
        ({"num_layers": 0}, "`num_layers` must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**changes)
    with pytest.raises(ValueError, match="`patch_size` must divide `sample_size` = 10, got 3"):
        TATiTokVQModel(10, 3, 6, CODES, 4, 64, 1, 1, 64, 1, 1)
