"""MaskGIT's denoiser and its relatives: parity with the originals, and what diffusers' users expect of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from diffusers import FirstBlockCacheConfig
from golden_data import COMMITTED, Model, cases, sampled_model
from safetensors.torch import load_file

from hf_maskdiff import MaskGITTransformer2DModel
from hf_maskdiff.conversion import mage, maskgit_jax, maskgit_pytorch_v1
from hf_maskdiff.conversion.checkpoints import read_checkpoint
from hf_maskdiff.models import KeyValueSlot

SIZES = {"sample_size": 4, "codebook_size": 10, "num_classes": 3, "hidden_size": 32, "num_layers": 2}
SIZES |= {"num_attention_heads": 4, "intermediate_size": 48}
# The published models' settings, at small sizes.
MODELS: dict[str, dict[str, Any]] = {
    "MaskGIT": {"norm_first": False, "activation": "gelu_tanh", "mask_token_id": 13, "class_token_offset": 10}
    | {"vocab_size": 14},
    "v1.0": {"project_embeddings": True, "position_bias": True},
    "MAGE": {"num_classes": 0, "mask_token_id": 19, "class_token_offset": 11, "vocab_size": 20}
    | {"num_decoder_layers": 1, "decoder_hidden_size": 24, "num_decoder_attention_heads": 2},
}


def make_model(name: str = "v1.0", seed: int = 0, random_weights: bool = True, **config: Any) -> Any:
    torch.manual_seed(seed)
    model = MaskGITTransformer2DModel(**(SIZES | MODELS[name] | config)).eval()
    if random_weights:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def make_inputs(model: Any, batch_size: int = 3, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randint(0, 10, (batch_size, 4, 4), generator=generator)
    masked = torch.rand(sample.shape, generator=generator) < 0.4
    last = model.config.num_classes + model.has_null_class
    return sample.masked_fill(masked, model.mask_token_id), torch.randint(0, last, (batch_size,), generator=generator)


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


# --- parity -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("upstream", "tolerance"),
    [("maskgit_jax", 5e-5), ("maskgit_pytorch_v1", 5e-3), ("mage", 5e-3)],  # the last two are stored in float16
)
def test_parity_with_the_committed_originals(upstream: str, tolerance: float) -> None:
    model = MaskGITTransformer2DModel.from_pretrained(COMMITTED / upstream / "transformer").float()
    golden = load_file(COMMITTED / upstream / "golden.safetensors")
    logits = model(golden["codes"], golden["labels"]).sample
    rows = golden.get("rows", torch.arange(logits.shape[1]))
    assert (logits[:, rows] - golden["logits"]).abs().max() < tolerance * golden["logits"].abs().max()


@torch.no_grad()
def test_parity_with_maskgit(golden_folder: Path) -> None:
    golden = Model(golden_folder / "maskgit_jax")
    config, expected = golden.config["transformer"], golden.expected["logits"]
    size, classes = config["codebook_size"], config["num_class"]
    tree = read_checkpoint(golden.folder / "transformer_checkpoint")
    model = maskgit_jax.UPSTREAM.transformer(tree, size, ()).build()
    assert (model.config.num_classes, model.mask_token_id) == (classes, config["vocab_size"] - 1)
    assert not model.has_null_class
    ids = golden.inputs["input_ids"].long()
    assert config["mask_token_id"] == -1
    logits = model(ids[:, 1:].where(ids[:, 1:] >= 0, model.mask_token_id), ids[:, 0] - size).sample
    torch.testing.assert_close(logits, expected[:, 1:, :size], atol=1e-4, rtol=1e-4)
    # What it leaves out, the other columns and the class slot's row, is in its weights all the same.
    states: list[torch.Tensor] = []
    model.transformer_blocks[-1].register_forward_hook(lambda module, args, output: states.append(output))
    model(ids[:, 1:].where(ids[:, 1:] >= 0, model.mask_token_id), ids[:, 0] - size)
    everything = F.linear(model.head(states[0]), model.token_embedding.weight, model.token_embedding.bias)
    torch.testing.assert_close(everything.roll(1, 1), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_parity_with_maskgit_pytorch_v1(golden_folder: Path) -> None:
    golden = sampled_model(golden_folder / "maskgit_pytorch_v1")
    config, inputs, tree = golden.config, golden.inputs, read_checkpoint(golden.checkpoint)
    model = maskgit_pytorch_v1.UPSTREAM.transformer(tree, config["codebook_size"], [config["heads"]]).build()
    sizes = {"sample_size": "f_factor", "num_classes": "nclass", "hidden_size": "hidden_dim", "num_layers": "depth"}
    assert {key: model.config[key] for key in sizes} == {key: config[value] for key, value in sizes.items()}
    assert (model.has_null_class, model.mask_token_id) == (True, config["mask_value"])
    labels = inputs["labels"].where(~inputs["drop_label"], config["nclass"])
    expected = golden.expected["logits"]
    torch.testing.assert_close(model(inputs["codes"], labels).sample, expected, atol=5e-5, rtol=5e-5)


@torch.no_grad()
def test_parity_with_mage(golden_folder: Path) -> None:
    golden = Model(golden_folder / "mage")
    config, inputs, expected = golden.config, golden.inputs, golden.expected
    size, heads = config["codebook_size"], [config["num_heads"], config["decoder_num_heads"]]
    model = mage.UPSTREAM.transformer(read_checkpoint(golden.checkpoint), size, heads).build()
    assert (model.has_null_class, model.mask_token_id) == (True, config["mask_token_label"])
    ids, rows = inputs["token_indices"], expected["rows"]
    none, is_code = torch.zeros_like(ids[:, 0]), rows > 0  # row 0 is the class slot's
    close = {"atol": 1e-4, "rtol": 1e-4}
    assert (ids[:, 0] == config["fake_class_label"]).all()

    features: list[torch.Tensor] = []
    model.norm_out.register_forward_hook(lambda module, args, output: features.append(output))
    logits = model(ids[:, 1:], none).sample
    torch.testing.assert_close(features[0].roll(1, 1), expected["encoder"], **close)
    wanted = expected["logits_rows"][:, is_code, :size]
    torch.testing.assert_close(logits[:, rows[is_code] - 1], wanted, **close)

    # Its training: tokens are dropped before the encoder. Ours does not do that by itself, but its parts do.
    tokens, dropped, masked = (
        inputs["drop_tokens"].roll(-1, 1),
        *(inputs[name].roll(-1, 1).bool() for name in ("drop_mask", "all_mask")),
    )
    places = torch.arange(ids.shape[1])
    embedded = model.norm_in(model.token_embedding(tokens) + model.position_embedding(places))
    kept = embedded[~dropped].view(len(tokens), -1, embedded.shape[-1])
    encoded = model.norm_out(model.transformer_blocks.run(kept, None))
    torch.testing.assert_close(encoded.roll(1, 1), expected["encoder_drop"], **close)
    whole = torch.zeros_like(embedded).masked_scatter(~dropped[..., None], encoded)
    decoded = model.decoder(whole, masked | dropped, places)
    states = model.head(decoded).roll(1, 1)
    everything = F.linear(states, model.token_embedding.weight, model.token_embedding.bias)
    torch.testing.assert_close(everything[:, rows], expected["logits_drop_rows"], **close)


def on_meta(path: Path) -> dict[str, torch.Tensor]:
    shapes = {key: value if isinstance(value[0], int) else value[0] for key, value in load_keys(path).items()}
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def load_keys(path: Path) -> dict[str, list]:
    return {key: value if value else [[]] for key, value in json.loads(path.read_text()).items()}


PARAMETERS = {
    "released_keys_maskgit_imagenet256": 172.46e6,
    "released_keys_maskgit_imagenet512": 173.05e6,
    "released_keys_MaskGIT_ImageNet_256": 174.161e6,
    "released_keys_MaskGIT_ImageNet_512": 176.307e6,
}
RELEASED = {"maskgit_jax": maskgit_jax, "maskgit_pytorch_v1": maskgit_pytorch_v1, "mage": mage}


def is_transformer(path: Path) -> bool:
    return path.parent.name in RELEASED and not path.stem.endswith(("tokenizer", "vqgan"))


@pytest.mark.parametrize("path", cases("released_keys/*/*.json", is_transformer))
def test_released_checkpoints_fit_name_by_name_and_shape_by_shape(path: Path) -> None:
    upstream = path.parent.name
    component = RELEASED[upstream].convert_transformer(on_meta(path), 1024)
    with torch.device("meta"):
        model = MaskGITTransformer2DModel(**component.config)
    ours = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert ours == {key: tensor.shape for key, tensor in component.state_dict.items()}
    sample_size = 32 if path.stem.endswith("512") else 16
    assert (model.config.sample_size, model.config.num_classes) == (sample_size, 0 if upstream == "mage" else 1000)
    if upstream != "mage":
        assert model.num_parameters() == pytest.approx(PARAMETERS[path.stem], rel=1e-4)


# --- what it computes -------------------------------------------------------------------------------------------------


def test_output_forms_agree_and_leave_classes_out(name: str) -> None:
    model = make_model(name)
    sample, labels = make_inputs(model)
    logits = model(sample, labels).sample
    assert logits.shape == (3, 16, 11 if name == "v1.0" else 10)  # there the mask's row follows the codes'
    (from_tuple,) = model(sample.flatten(1), labels, return_dict=False)
    assert torch.equal(from_tuple, logits)


def test_rows_do_not_see_each_other(name: str) -> None:
    model = make_model(name)
    sample, labels = make_inputs(model, batch_size=6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    logits = model(sample, labels).sample
    torch.testing.assert_close(model(sample[order], labels[order]).sample, logits[order])
    torch.testing.assert_close(model(sample[:1], labels[:1]).sample, logits[:1])


def test_every_token_the_class_and_the_place_matter(name: str) -> None:
    model = make_model(name)
    sample, labels = make_inputs(model)
    logits = model(sample, labels).sample
    changed = sample.clone()
    changed[:, 3, 1] = (changed[:, 3, 1].clamp(max=9) + 1) % 10
    assert ((model(changed, labels).sample - logits).abs().amax(-1) > 1e-4).all()
    if model.config.num_classes:
        assert ((model(sample, (labels + 1) % 3).sample - logits).abs().amax(-1) > 1e-4).all()
    transposed = model(sample.transpose(1, 2), labels).sample.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
    assert (transposed - logits).abs().max() > 1e-2


def test_what_mage_s_encoder_saw_of_masked_tokens_does_not_reach_the_decoder() -> None:
    model = make_model("MAGE")
    sample, labels = make_inputs(model)
    given: list[torch.Tensor] = []
    model.decoder.transformer_blocks[0].register_forward_pre_hook(lambda module, args: given.append(args[0]))
    model(sample, labels)
    states = given[0] - model.decoder.position_embedding.weight
    masked = (sample == model.mask_token_id).flatten(1)
    assert masked.any(-1).all()
    for row in range(3):
        torch.testing.assert_close(states[row, :16][masked[row]], states[row, 16:].expand(int(masked[row].sum()), -1))
        assert ((states[row, :16] - states[row, 16]).abs().amax(-1)[~masked[row]] > 1e-3).all()


def test_ids_and_null_class() -> None:
    default = make_model("v1.0", project_embeddings=False, position_bias=False)
    assert (default.mask_token_id, default.class_token_offset, default.has_null_class) == (10, 11, True)
    assert default.token_embedding.weight.shape == (15, 32)
    assert not make_model("MaskGIT").has_null_class
    assert make_model("MAGE").has_null_class
    assert not make_model("v1.0", vocab_size=14).has_null_class


def test_a_new_model_is_reproducible(name: str) -> None:
    first, again, other = (make_model(name, seed, random_weights=False) for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in first.state_dict().items())
    assert not torch.equal(first.token_embedding.weight, other.token_embedding.weight)
    wide = make_model(name, random_weights=False, hidden_size=256, intermediate_size=256)
    for weight in (wide.token_embedding.weight, wide.transformer_blocks[0].ff.net[2].weight, wide.head[0].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_few_steps_of_training_fit_a_batch_and_reach_every_weight(name: str) -> None:
    model = make_model(name, random_weights=False, dropout=0.1).train()
    sample, labels = make_inputs(model, batch_size=8)
    target = torch.randint(0, 10, sample.shape, generator=torch.Generator().manual_seed(2))
    masked = torch.where(sample == model.mask_token_id, sample, target)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(60):
        loss = F.cross_entropy(model(masked, labels).sample.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    for key, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, key


def test_gradients_are_the_same_with_checkpointing(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_model(name, dropout=0.2).train()
        sample, labels = make_inputs(model)
        calls: list[int] = []
        last = (model.transformer_blocks if model.decoder is None else model.decoder.transformer_blocks)[-1]
        last.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        if checkpointing:
            model.enable_gradient_checkpointing()
        torch.manual_seed(5)
        model(sample, labels).sample.square().mean().backward()
        assert len(calls) == 1 + checkpointing
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


# --- what diffusers' users expect -------------------------------------------------------------------------------------


def test_save_and_load_round_trip(name: str, tmp_path: Path) -> None:
    model = make_model(name)
    sample, labels = make_inputs(model)
    model.save_pretrained(tmp_path)
    loaded, info = MaskGITTransformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(sample, labels).sample, model(sample, labels).sample)
    assert all(loaded.config[key] == value for key, value in (SIZES | MODELS[name]).items())


def test_half_precision_stays_near_float32(name: str) -> None:
    model = make_model(name)
    sample, labels = make_inputs(model)
    exact = model(sample, labels).sample
    half = model.to(torch.bfloat16)(sample, labels).sample
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).norm() < 0.06 * exact.norm()


def test_fused_projections_change_nothing(name: str) -> None:
    model = make_model(name)
    sample, labels = make_inputs(model)
    logits = model(sample, labels).sample
    model.fuse_qkv_projections()
    torch.nn.init.zeros_(model.transformer_blocks[0].attn.to_q.weight)  # proof that the fused weights are used
    torch.testing.assert_close(model(sample, labels).sample, logits)


def test_weights_that_live_elsewhere_between_calls(name: str) -> None:
    model = make_model(name)
    sample, labels = make_inputs(model)
    logits = model(sample, labels).sample
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(model(sample, labels).sample, logits)


def test_compiles_as_one_graph(name: str) -> None:
    model = make_model(name)
    sample, labels = make_inputs(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(sample, labels).sample, model(sample, labels).sample)
    torch._dynamo.reset()


def test_diffusers_own_caches_know_the_blocks() -> None:
    model = make_model("v1.0", num_layers=3)
    sample, labels = make_inputs(model)
    calls: list[int] = []
    model.transformer_blocks[2].attn.register_forward_pre_hook(lambda *_: calls.append(1))
    model.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    with model.cache_context("cond"):
        model(sample, labels)
        model(sample, labels)
    assert len(calls) == 1


def test_slots_see_keys_and_values_of_every_layer_and_every_token(name: str) -> None:
    model = make_model(name)
    seen: list[tuple[int, ...]] = []
    slots = [module for module in model.modules() if isinstance(module, KeyValueSlot)]
    for slot in slots:
        slot.register_forward_hook(lambda module, args, output: seen.append(tuple(output[0].shape)))
    model(*make_inputs(model))
    decoder = [(3, 17, 2, 12)] if name == "MAGE" else []
    assert seen == [(3, 17, 4, 8)] * 2 + decoder  # 16 codes and the class


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((2, 5, 5), (2,), r"`sample` must have shape \(batch_size, 4, 4\) or \(batch_size, 16\), got \(2, 5, 5\)"),
        ((2, 4, 4), (3,), r"`class_labels` must have shape \(2,\), one per row of `sample`, got \(3,\)\. Pass 3 for"),
    ],
)
def test_wrong_shapes(shape: tuple[int, ...], labels: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model()(torch.zeros(shape, dtype=torch.long), torch.zeros(labels, dtype=torch.long))


def test_wrong_dtypes() -> None:
    model = make_model()
    sample, labels = make_inputs(model)
    with pytest.raises(ValueError, match=r"`sample` must hold ids as torch\.int64, got torch\.float32"):
        model(sample.float(), labels)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sample_size": 0}, "`sample_size` must be at least 1, got 0"),
        ({"num_classes": -1}, "`num_classes` must be at least 0, got -1"),
        ({"num_attention_heads": 5}, "`num_attention_heads` must divide the width 32, got 5"),
        ({"num_decoder_attention_heads": 5}, "`num_decoder_attention_heads` must divide the width 32, got 5"),
        ({"activation": "relu"}, r"`activation` must be one of \['gelu', 'gelu_tanh'\], got 'relu'"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
        ({"mask_token_id": 9}, "`mask_token_id` must be neither a code's nor a class's id, got 9 with codes below 10"),
        ({"mask_token_id": 12}, r"`mask_token_id` must be neither .*, got 12 .* classes in range\(11, 14\)"),
        ({"vocab_size": 13}, "`vocab_size` must cover codes, classes and mask, 14 rows, got 13"),
    ],
)
def test_wrong_configurations(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(**config)
