"""The image tokenizers: parity with the originals, with `VQModel` itself, and what a pipeline asks of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import VQModel
from golden_data import COMMITTED, Model, cases, image_tokenizer
from safetensors.torch import load_file

from hf_maskdiff import MaskGITPipeline, MaskGITVQModel, VQGANModel
from hf_maskdiff.conversion import mage, maskgit_jax
from hf_maskdiff.conversion.checkpoints import read_checkpoint
from hf_maskdiff.conversion.vqgan import llamagen_vq, taming_vqgan
from hf_maskdiff.models.vq_maskgit import BranchShortcutBlock

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def decode(model: VQModel | MaskGITVQModel, codes: torch.Tensor) -> torch.Tensor:
    """As the pipelines do."""
    shape = (*codes.shape, model.quantize.vq_embed_dim)
    return model.decode(codes, force_not_quantize=True, shape=shape).sample


def nearest(model: VQModel | MaskGITVQModel, latents: torch.Tensor) -> torch.Tensor:
    vectors = latents.permute(0, 2, 3, 1)
    return torch.cdist(vectors.flatten(1, 2), model.quantize.embedding.weight).argmin(-1).view(vectors.shape[:-1])


def make_model() -> MaskGITVQModel:
    torch.manual_seed(0)
    model = MaskGITVQModel(block_out_channels=(8, 16, 16), latent_channels=4, num_vq_embeddings=12, norm_num_groups=4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


# --- parity -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_parity_with_the_committed_original() -> None:
    """Stored in float16, so to its precision; a shortcut that began at the block's input would be off by far more."""
    pipe = MaskGITPipeline.from_pretrained(COMMITTED / "maskgit_jax")
    model, golden = pipe.vqvae.float(), load_file(COMMITTED / "maskgit_jax" / "golden.safetensors")
    image = decode(model, golden["image_codes"])
    assert (image - golden["decoded"]).abs().max() < 0.01 * golden["decoded"].abs().max()
    assert torch.equal(pipe.encode_image(golden["image"]), golden["encoded_codes"])


@torch.no_grad()
def test_parity_with_maskgit(golden_folder: Path) -> None:
    golden = Model(golden_folder / "maskgit_jax")
    inputs, expected = golden.inputs, golden.expected
    model = maskgit_jax.UPSTREAM.vqvae(read_checkpoint(golden.folder / "tokenizer_checkpoint")).build()
    torch.testing.assert_close(decode(model, inputs["codes"].long()), expected["decoded"].permute(0, 3, 1, 2), **CLOSE)
    latents = model.encode(inputs["image"].permute(0, 3, 1, 2)).latents
    torch.testing.assert_close(latents, expected["encoder_features"].permute(0, 3, 1, 2), **CLOSE)
    assert torch.equal(nearest(model, latents), expected["encoded_codes"].long())


# Of an upstream's folder: which model holds the tokenizer, what its checkpoint is made into, how near it comes.
OTHERS = {
    "mage": (Model, mage.UPSTREAM.vqvae, 1e-4),
    "maskgit_pytorch_v1": (image_tokenizer, lambda tree: taming_vqgan(tree["state_dict"]), 5e-5),
    "halton_maskgit": (image_tokenizer, lambda tree: llamagen_vq(tree["model"]), 5e-5),
}


@torch.no_grad()
@pytest.mark.parametrize("name", OTHERS)
def test_parity_with_the_others(golden_folder: Path, name: str) -> None:
    find, make, tolerance = OTHERS[name]
    golden, close = find(golden_folder / name), {"atol": tolerance, "rtol": tolerance}
    inputs, expected = golden.inputs, golden.expected
    model = make(read_checkpoint(golden.checkpoint)).build()
    torch.testing.assert_close(decode(model, inputs["codes"]), expected["decoded"], **close)
    latents = model.encode(inputs["image"]).latents
    torch.testing.assert_close(latents, expected["encoder_prequant"], **close)
    assert torch.equal(nearest(model, latents), expected["encoded_codes"])
    if name == "halton_maskgit":  # what it normalises at each use is normalised once
        rows = model.quantize.embedding(inputs["codes"]).permute(0, 3, 1, 2)
        torch.testing.assert_close(rows, expected["codebook_entries"], **close)
        torch.testing.assert_close(decode(model, nearest(model, latents)), expected["reconstruction"], **close)


PARAMETERS = {
    "maskgit_jax": 54.5e6,
    "mage": 54.5e6,
    "maskgit_pytorch_v1": 72.142e6,
    "halton_maskgit": 71.88e6,
}


def has_tokenizer(path: Path) -> bool:
    """MAGE's checkpoints of all sizes hold the same."""
    return path.parent.name in PARAMETERS and path.stem.endswith(("tokenizer", "vqgan", "vq_ds16_c2i", "vitb"))


@pytest.mark.parametrize("path", cases("released_keys/*/*.json", has_tokenizer))
def test_released_checkpoints_fit_name_by_name_and_shape_by_shape(path: Path) -> None:
    keys, upstream = json.loads(path.read_text()), path.parent.name
    shapes = {key: value if isinstance(value[0], int) else value[0] for key, value in keys.items()}
    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    convert = {
        "maskgit_jax": maskgit_jax.convert_vqvae,
        "mage": lambda weights: mage.UPSTREAM.vqvae({"model": weights}),
        "maskgit_pytorch_v1": taming_vqgan,
        "halton_maskgit": llamagen_vq,
    }
    component = convert[upstream](weights)
    with torch.device("meta"):
        model = component.model_class(**component.config)
    ours = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert ours == {key: tensor.shape for key, tensor in component.state_dict.items()}
    assert type(model) is (MaskGITVQModel if upstream in ("maskgit_jax", "mage") else VQModel)
    assert tuple(model.config.block_out_channels) == (128, 128, 256, 256, 512)
    assert model.num_parameters() == pytest.approx(PARAMETERS[upstream], rel=2e-3)


def test_vqgan_model_is_a_vq_model_where_widths_agree() -> None:
    config = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    config |= {"block_out_channels": [8, 16], "latent_channels": 4, "num_vq_embeddings": 12, "norm_num_groups": 4}
    ours, theirs = VQGANModel(base_channels=8, **config), VQModel(lookup_from_codebook=True, **config)
    theirs.load_state_dict(ours.state_dict())
    codes, image = torch.randint(0, 12, (2, 5, 5)), torch.rand(2, 3, 10, 10)
    assert torch.equal(decode(ours, codes), decode(theirs, codes))
    assert torch.equal(ours.encode(image).latents, theirs.encode(image).latents)
    assert {key: value for key, value in ours.config.items() if key in theirs.config and key[0] != "_"} == {
        key: value for key, value in theirs.config.items() if key[0] != "_"
    }


# --- what it computes -------------------------------------------------------------------------------------------------


def test_the_shortcut_begins_at_the_branch() -> None:
    torch.manual_seed(0)
    changing, staying, states = BranchShortcutBlock(8, 16, 4), BranchShortcutBlock(8, 8, 4), torch.randn(2, 8, 5, 5)
    for block in (changing, staying):
        torch.nn.init.zeros_(block.conv2.weight)  # the branch is zero
    assert torch.equal(changing(states), torch.zeros(2, 16, 5, 5))
    assert torch.equal(staying(states), states)


def test_sides_and_forms() -> None:
    model, image = make_model(), torch.rand(2, 3, 12, 20)
    latents = model.encode(image).latents
    assert latents.shape == (2, 4, 3, 5)
    assert torch.equal(model.encode(image, return_dict=False)[0], latents)
    codes = nearest(model, latents)
    decoded = model.decode(codes).sample
    assert decoded.shape == image.shape
    assert torch.equal(model.decode(codes, return_dict=False)[0], decoded)
    torch.testing.assert_close(model.decode(latents).sample, decoded)  # vectors are quantized first
    torch.testing.assert_close(model(image).sample, decoded)
    assert math.prod(codes.shape) == 30


def test_neighbours_are_averaged() -> None:
    model = make_model()
    seen: list[torch.Tensor] = []
    model.encoder.down_blocks[0].register_forward_hook(lambda module, args, output: seen.append(output))
    model.encoder.down_blocks[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.encode(torch.rand(1, 3, 8, 8))
    torch.testing.assert_close(seen[1][0, 0, 0, 0], seen[0][0, 0, :2, :2].mean())


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    model, codes = make_model(), torch.randint(0, 12, (2, 3, 3))
    model.save_pretrained(tmp_path)
    loaded, info = MaskGITVQModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded.decode(codes).sample, model.decode(codes).sample)


def test_gradients_reach_every_weight() -> None:
    model = make_model().train()
    model(torch.rand(2, 3, 8, 8)).sample.square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for key, p in model.named_parameters() if not key.startswith("quantize"))
