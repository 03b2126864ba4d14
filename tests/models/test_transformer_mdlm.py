"""The MDLM denoiser: parity with the original, both layouts of files, padding, and what diffusers' users expect."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from diffusers import FirstBlockCacheConfig
from diffusers.models import attention_dispatch
from golden_data import cases
from safetensors.torch import load_file, save_file

from hf_maskdiff.evaluation.likelihood import nelbo, subs_log_probs
from hf_maskdiff.models import KeyValueSlot, MDLMTransformer
from hf_maskdiff.models.transformer_mdlm import AdaLayerNorm, log_linear_noise, rotate

CONFIG = {"vocab_size": 12, "model_length": 16, "hidden_dim": 32, "cond_dim": 8, "n_blocks": 2, "n_heads": 4}
MASK = CONFIG["vocab_size"] - 1
PARITY = {"atol": 2e-5, "rtol": 2e-5}


@pytest.fixture
def golden(golden_folder: Path) -> Path:
    return golden_folder / "mdlm"


def make_model(seed: int = 0, random_weights: bool = True, **config: float) -> MDLMTransformer:
    torch.manual_seed(seed)
    model = MDLMTransformer(**(CONFIG | config)).eval()
    if random_weights:  # a new model's blocks are the identity: nothing in them would matter to a test
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def make_ids(batch_size: int = 3, length: int = 10, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, MASK + 1, (batch_size, length), generator=torch.Generator().manual_seed(seed))


# --- parity -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_parity_with_the_original(golden: Path) -> None:
    inputs, expected = (load_file(golden / f"{name}.safetensors") for name in ("input", "expected"))
    model = MDLMTransformer.from_pretrained(golden)
    torch.testing.assert_close(model(inputs["input_ids"]).logits, expected["logits"], **PARITY)
    torch.testing.assert_close(model(inputs["input_ids_short"]).logits, expected["logits_short"], **PARITY)

    times = -torch.expm1(-inputs["sigma"].double()) / 0.999
    told = MDLMTransformer.from_config(model.config, time_conditioning=True)
    told.load_state_dict(model.state_dict())
    torch.testing.assert_close(told.eval()(inputs["input_ids"], times).logits, expected["logits_sigma"], **PARITY)
    torch.testing.assert_close(model(inputs["input_ids"], times).logits, expected["logits"], **PARITY)


@torch.no_grad()
@pytest.mark.parametrize("time_conditioning", [False, True])
def test_parity_of_log_probabilities(golden: Path, time_conditioning: bool) -> None:
    inputs, expected = (load_file(golden / f"{name}.safetensors") for name in ("input", "expected"))
    model = MDLMTransformer.from_pretrained(golden)
    model.register_to_config(time_conditioning=time_conditioning)
    times = -torch.expm1(-inputs["sigma"].double()) / 0.999
    ids, mask = inputs["input_ids"], model.config.vocab_size - 1
    log_probs = subs_log_probs(model(ids, times).logits, ids, mask)
    # The original writes about -1e6 where a token is impossible.
    name = "log_p_subs_time_conditioned" if time_conditioning else "log_p_subs"
    impossible = expected[name] < -9e5
    assert torch.equal(log_probs == -torch.inf, impossible)
    torch.testing.assert_close(log_probs[~impossible], expected[name][~impossible], **PARITY)


@torch.no_grad()
def test_parity_of_the_bound_and_of_the_noise(golden: Path) -> None:
    inputs, expected = (load_file(golden / f"{name}.safetensors") for name in ("input", "expected"))
    model = MDLMTransformer.from_pretrained(golden)
    torch.testing.assert_close(log_linear_noise(inputs["noise_t"]), expected["noise_total"], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(log_linear_noise(inputs["nelbo_t"]), expected["nelbo_sigma"], atol=1e-6, rtol=1e-4)

    noisy, clean, times = expected["nelbo_xt"], inputs["nelbo_x0"], inputs["nelbo_t"]
    mask = model.config.vocab_size - 1
    per_token = nelbo(model(noisy).logits, noisy, clean, times, mask)
    torch.testing.assert_close(per_token, expected["nelbo_per_token"], atol=1e-5, rtol=1e-4)
    log_likelihood = subs_log_probs(model(noisy).logits, noisy, mask).gather(-1, clean[..., None])[..., 0]
    torch.testing.assert_close(per_token, -log_likelihood / times[:, None], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", cases("released_keys/mdlm/*.json"))
def test_the_released_weights_fit_name_by_name_and_shape_by_shape(path: Path) -> None:
    released = json.loads(path.read_text())
    with torch.device("meta"):
        model = MDLMTransformer(
            vocab_size=50258, model_length=1024, hidden_dim=768, cond_dim=128, n_blocks=12, n_heads=12
        )
    ours = {f"backbone.{key}": [list(t.shape), "float32"] for key, t in model.state_dict().items()}
    assert ours == released
    assert model.num_parameters() == 169_627_218


# --- published folders ------------------------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder in the layout in which MDLM's authors publish."""
    folder = tmp_path / "published"
    folder.mkdir()
    config = CONFIG | {"model_type": "mdlm", "architectures": ["MDLM"], "dropout": 0.1, "time_conditioning": False}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {f"backbone.{key}": tensor for key, tensor in make_model().state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_published_folder_loads_and_is_saved_as_ours(published: Path, tmp_path: Path) -> None:
    random_state = torch.get_rng_state()
    model = MDLMTransformer.from_pretrained(str(published))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not model.training
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in model.parameters())
    logits = model(make_ids()).logits
    torch.testing.assert_close(logits, make_model()(make_ids()).logits)

    model.save_pretrained(tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert not {"model_type", "architectures"} & config.keys()
    again, info = MDLMTransformer.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(again(make_ids()).logits, logits)


def test_a_published_folder_inside_another_and_in_half_precision(published: Path) -> None:
    for name in ("torch_dtype", "dtype"):
        model = MDLMTransformer.from_pretrained(published.parent, subfolder="published", **{name: torch.bfloat16})
        assert model.dtype == torch.bfloat16


def test_shards_of_a_published_model(published: Path) -> None:
    weights = load_file(published / "model.safetensors")
    (published / "model.safetensors").unlink()
    names, weight_map = sorted(weights), {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{i:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, published / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (published / "model.safetensors.index.json").write_text(json.dumps(index))
    model = MDLMTransformer.from_pretrained(published)
    torch.testing.assert_close(model(make_ids()).logits, make_model()(make_ids()).logits)


def test_what_a_published_folder_lacks_or_has_too_much_is_said(published: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['device_map'\] cannot be used with the published layout.*save_pretrained"):
        MDLMTransformer.from_pretrained(published, device_map="cpu")
    weights = load_file(published / "model.safetensors")
    wrong = {name: tensor for name, tensor in weights.items() if "blocks.1.norm1" not in name}
    save_file(wrong | {"backbone.extra": torch.zeros(1)}, published / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"(?s)do not fit.*Missing.*blocks\.1\.norm1.*Unexpected.*extra"):
        MDLMTransformer.from_pretrained(published)
    (published / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"must hold `model\.safetensors`, whole or in shards"):
        MDLMTransformer.from_pretrained(published)
    config = json.loads((published / "config.json").read_text())
    del config["cond_dim"]
    (published / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"must name its sizes, \['cond_dim'\] are not there"):
        MDLMTransformer.from_pretrained(published)
    shutil.rmtree(published)
    with pytest.raises(OSError, match=r"config\.json"):
        MDLMTransformer.from_pretrained(tmp_path)


# --- the forward pass -------------------------------------------------------------------------------------------------


def test_output_forms_agree_at_any_length() -> None:
    model = make_model()
    for length in (1, 10, 40):
        ids = make_ids(length=length)
        logits = model(ids).logits
        assert logits.shape == (3, length, 12)
        assert torch.equal(model(ids, return_dict=False)[0], logits)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_padding_changes_nothing_that_is_real(side: str, dtype: torch.dtype) -> None:
    model, ids = make_model(), make_ids(length=7)
    padding, real = make_ids(length=5, seed=2), torch.ones(3, 7, dtype=dtype)
    parts = [(ids, real), (padding, torch.zeros(3, 5, dtype=dtype))]
    padded, mask = (torch.cat(part, 1) for part in zip(*(parts if side == "right" else parts[::-1]), strict=True))
    expected = model(ids).logits
    logits = model(padded, attention_mask=mask).logits
    torch.testing.assert_close(logits[mask.bool()].view_as(expected), expected, atol=1e-4, rtol=1e-4)
    assert (model(padded).logits[mask.bool()].view_as(expected) - expected).abs().max() > 1e-2


def test_a_row_of_padding_only_stays_finite() -> None:
    model, ids = make_model(), make_ids()
    mask = torch.tensor([True, False, True])[:, None].expand(3, 10)
    logits = model(ids, attention_mask=mask).logits
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[::2], model(ids[::2]).logits)


def test_rows_do_not_see_each_other_and_every_token_matters() -> None:
    model, ids = make_model(), make_ids(batch_size=5)
    logits = model(ids).logits
    torch.testing.assert_close(model(ids.flip(0)).logits, logits.flip(0))
    torch.testing.assert_close(model(ids[:1]).logits, logits[:1])
    changed = ids.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 12
    assert ((model(changed).logits - logits).abs().amax(-1) > 1e-4).all()
    assert (model(ids.flip(1)).logits.flip(1) - logits).abs().max() > 1e-2


def test_time_is_read_only_where_it_conditions() -> None:
    ids = make_ids()
    plain, told = make_model(), make_model(time_conditioning=True)
    assert torch.equal(plain(ids, 0.3).logits, plain(ids).logits)
    torch.testing.assert_close(told(ids, 0.0).logits, plain(ids).logits)
    logits = told(ids, 0.3).logits
    assert (logits - told(ids, 0.9).logits).abs().max() > 1e-2
    for time in (torch.tensor(0.3), torch.tensor([0.3]), torch.full((3,), 0.3, dtype=torch.float64)):
        torch.testing.assert_close(told(ids, time).logits, logits)
    rows = told(ids, torch.tensor([0.3, 0.9, 1])).logits
    torch.testing.assert_close(rows[0], logits[0])
    torch.testing.assert_close(rows[2], told(ids, 1).logits[2])
    with pytest.raises(ValueError, match="`timestep` must be given to a model with `time_conditioning`"):
        told(ids)
    with pytest.raises(ValueError, match=r"`timestep` must be one time or one per row \(3,\), got \(2,\)"):
        told(ids, torch.rand(2))


def test_a_constant_condition_is_computed_for_one_row() -> None:
    model, ids = make_model(), make_ids()
    shapes = []
    hook = lambda module, args, output: shapes.append(tuple(output.shape))  # noqa: E731
    for block in model.blocks:
        block.adaLN_modulation.register_forward_hook(hook)
    model(ids)
    assert shapes == [(1, 6 * 32)] * 2


def test_rotation_turns_pairs_and_depends_on_distance_only() -> None:
    rotary = make_model().rotary_emb
    torch.testing.assert_close(rotary.inv_freq, torch.tensor([1, 1e-1, 1e-2, 1e-3])[: len(rotary.inv_freq)])
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 8, generator=generator).expand(2, 1, 30, 1, 8)
    cos, sin = rotary(torch.arange(30))
    query, key = rotate(query, cos, sin)[0, :, 0], rotate(key, cos, sin)[0, :, 0]
    products = query @ key.T
    for distance in (-7, 0, 3):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=1e-5)
    assert not math.isclose(products[0, 0], products[0, 5], rel_tol=1e-2)


def test_norm_is_computed_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    norm = AdaLayerNorm(64)
    torch.nn.init.normal_(norm.weight, generator=generator)
    states = torch.randn(2, 5, 64, generator=generator).half() * 1000  # squares beyond float16
    shift, scale = torch.randn(2, 2, 1, 64, generator=generator).half()
    result = norm.half()(states, shift, scale)
    assert result.dtype == torch.float16
    norm, states, shift, scale = norm.float(), states.float(), shift.float(), scale.float()
    expected = F.layer_norm(states, (64,)) * norm.weight * (1 + scale) + shift
    torch.testing.assert_close(norm(states, shift, scale), expected)
    assert torch.equal(result, norm(states, shift, scale).half())  # rounded once, at the end


# --- what diffusers' users expect -------------------------------------------------------------------------------------


def test_a_new_model_is_reproducible_and_starts_as_the_identity() -> None:
    first, again, other = (make_model(seed, random_weights=False) for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in first.state_dict().items())
    assert not torch.equal(first.vocab_embed.embedding, other.vocab_embed.embedding)
    ids = make_ids()
    expected = F.layer_norm(first.vocab_embed.embedding[ids], (32,)) @ first.output_layer.linear.weight.T
    torch.testing.assert_close(first(ids).logits, expected)
    wide = make_model(random_weights=False, hidden_dim=256)
    for weight in (wide.vocab_embed.embedding, wide.blocks[0].attn_qkv.weight, wide.output_layer.linear.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_few_steps_of_training_fit_a_batch_and_reach_every_weight() -> None:
    model, ids = make_model(random_weights=False, time_conditioning=True).train(), make_ids(batch_size=8).clamp(max=10)
    times = torch.linspace(0.2, 0.9, 8)
    masked = torch.where(torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < times[:, None], MASK, ids)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = nelbo(model(masked, times).logits, masked, ids, times, MASK).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_dropout_acts_in_training_only() -> None:
    ids = make_ids()
    model = make_model(dropout=0.5)
    assert torch.equal(model(ids).logits, make_model(dropout=0.0)(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)


def test_gradients_are_the_same_with_checkpointing() -> None:
    gradients = []
    mask = torch.arange(10) < torch.tensor([[4], [10], [7]])
    for checkpointing in (False, True):
        model, calls = make_model(dropout=0.2).train(), []
        model.blocks[1].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        if checkpointing:
            model.enable_gradient_checkpointing()
        torch.manual_seed(5)
        model(make_ids(), attention_mask=mask).logits.square().mean().backward()
        assert len(calls) == 1 + checkpointing
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.fixture
def default_attention_backend() -> Iterator[None]:
    registry = attention_dispatch._AttentionBackendRegistry
    before = registry._active_backend  # `set_attention_backend` also changes the process's default
    yield
    registry._active_backend = before


def test_attention_backend_can_be_chosen(default_attention_backend: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids, mask = make_model(), make_ids(), torch.arange(10) < torch.tensor([[4], [10], [7]])
    expected = [model(ids).logits, model(ids, attention_mask=mask).logits[mask]]
    backends = attention_dispatch._AttentionBackendRegistry._backends
    name = attention_dispatch.AttentionBackendName._NATIVE_MATH
    math_attention, calls = backends[name], []
    monkeypatch.setitem(backends, name, lambda **kwargs: calls.append(1) or math_attention(**kwargs))
    default = attention_dispatch._AttentionBackendRegistry._active_backend
    model.set_attention_backend("_native_math")
    attention_dispatch._AttentionBackendRegistry._active_backend = default  # the model's own choice must be enough
    torch.testing.assert_close(model(ids).logits, expected[0])
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[mask], expected[1])
    assert len(calls) == 2 * CONFIG["n_blocks"]


def test_slots_see_final_keys_and_values_and_can_replace_them() -> None:
    model, ids = make_model(), make_ids()
    logits = model(ids).logits
    slots = [module for module in model.modules() if isinstance(module, KeyValueSlot)]
    assert len(slots) == CONFIG["n_blocks"]
    assert not any("slot" in key for key in model.state_dict())
    seen, projected = [], []
    slots[0].register_forward_hook(lambda module, args, output: seen.append(output))
    model.blocks[0].attn_qkv.register_forward_hook(lambda module, args, output: projected.append(output))
    assert torch.equal(model(ids).logits, logits)
    (key, value), (_, raw_key, raw_value) = seen[0], projected[0].unflatten(-1, (3, 4, 8)).unbind(2)
    assert torch.equal(value, raw_value)
    assert torch.equal(key, rotate(raw_key, *model.rotary_emb(torch.arange(10))))  # after the rotation

    slots[1].register_forward_hook(lambda module, args, output: tuple(states.flip(0) for states in output))
    swapped = model(ids).logits
    torch.testing.assert_close(swapped[1], logits[1])
    assert (swapped[0] - logits[0]).abs().max() > 1e-2


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    model, ids = make_model(dropout=0.2, time_conditioning=True), make_ids()
    model.save_pretrained(tmp_path)
    loaded, info = MDLMTransformer.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    expected = CONFIG | {"dropout": 0.2, "time_conditioning": True, "block_size": None}
    assert {key: value for key, value in loaded.config.items() if not key.startswith("_")} == expected
    assert torch.equal(loaded(ids, 0.5).logits, model(ids, 0.5).logits)


def test_half_precision_stays_near_float32(tmp_path: Path) -> None:
    model, ids = make_model(), make_ids(length=200)
    model.save_pretrained(tmp_path)
    exact = model(ids).logits
    for dtype, tolerance in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
        half = MDLMTransformer.from_pretrained(tmp_path, torch_dtype=dtype)
        logits = half(ids).logits
        assert logits.dtype == dtype
        assert (logits.float() - exact).norm() < tolerance * exact.norm()
        assert all(
            torch.equal(a, b)
            for a, b in zip(half.rotary_emb(torch.arange(200)), model.rotary_emb(torch.arange(200)), strict=True)
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (model(ids).logits.float() - exact).norm() < 0.05 * exact.norm()


def test_weights_that_live_elsewhere_between_calls() -> None:
    model, ids = make_model(), make_ids()
    logits = model(ids).logits
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(model(ids).logits, logits)


def test_weights_stored_in_eight_bits() -> None:
    model, ids = make_model(), make_ids()
    exact = model(ids).logits
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert model.blocks[0].attn_qkv.weight.dtype == model.sigma_map.mlp[0].weight.dtype == torch.float8_e4m3fn
    assert (model(ids).logits - exact).norm() < 0.3 * exact.norm()


def test_diffusers_own_caches_know_the_blocks() -> None:
    model, ids = make_model(), make_ids()
    logits = model(ids).logits
    model.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    with model.cache_context("text"):
        assert torch.equal(model(ids).logits, logits)
        calls = []
        model.blocks[1].mlp.register_forward_hook(lambda *_: calls.append(1))
        model(ids)
    assert not calls  # the second pass took the later blocks from the first


def test_compiles_as_one_graph() -> None:
    model, ids = make_model(), make_ids()
    mask = torch.arange(10) < torch.tensor([[4], [10], [7]])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)
    torch._dynamo.reset()


def test_wrong_inputs() -> None:
    model, ids = make_model(), make_ids()
    with pytest.raises(ValueError, match=r"torch\.int64 of shape \(batch_size, sequence_length\), got torch\.float32"):
        model(ids.float())
    with pytest.raises(ValueError, match=r"torch\.int64 \(10,\)"):
        model(ids[0])
    with pytest.raises(ValueError, match=r"must have the shape of `input_ids`, \(3, 10\), got \(3, 9\)"):
        model(ids, attention_mask=torch.ones(3, 9))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vocab_size": 0}, "`vocab_size` must be at least 1, got 0"),
        ({"n_blocks": -1}, "`n_blocks` must be at least 1, got -1"),
        ({"n_heads": 3}, r"`hidden_dim` must be a multiple of 2 \* `n_heads` = 6, got 32"),
        ({"hidden_dim": 12}, r"`hidden_dim` must be a multiple of 2 \* `n_heads` = 8, got 12"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_configurations(config: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MDLMTransformer(**(CONFIG | config))
