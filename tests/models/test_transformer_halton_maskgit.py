"""The Halton-MaskGIT denoiser: parity with the original, and what diffusers' users expect of a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload, init_empty_weights
from diffusers.models import attention_dispatch
from golden_data import COMMITTED, Model, cases
from safetensors.torch import load_file

from hf_maskdiff.conversion.halton_maskgit import convert_halton_maskgit_state_dict, halton_maskgit_config
from hf_maskdiff.models import HaltonMaskGITTransformer2DModel, KeyValueSlot
from hf_maskdiff.models.transformer_halton_maskgit import AdaRMSNorm

HALTON = COMMITTED / "halton_maskgit"
HEADS = {"tiny": 6, "small": 6, "base": 12, "large": 16}
CONFIG = {
    "sample_size": 4,
    "codebook_size": 10,
    "num_classes": 3,
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
}


def make_model(seed: int = 0, random_weights: bool = True, **config: float) -> HaltonMaskGITTransformer2DModel:
    torch.manual_seed(seed)
    model = HaltonMaskGITTransformer2DModel(**(CONFIG | config)).eval()
    if random_weights:  # a new model's blocks are the identity: nothing in them would matter to a test
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def make_inputs(batch_size: int = 3, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randint(0, CONFIG["codebook_size"] + 1, (batch_size, 4, 4), generator=generator)
    return sample, torch.randint(0, CONFIG["num_classes"] + 1, (batch_size,), generator=generator)


def load_upstream(state_dict: dict[str, torch.Tensor], heads: int) -> HaltonMaskGITTransformer2DModel:
    converted = convert_halton_maskgit_state_dict(state_dict)
    model = HaltonMaskGITTransformer2DModel(**halton_maskgit_config(converted, heads))
    model.load_state_dict(converted)
    return model.eval()


def assert_parity(golden: Model, state_dict: dict[str, torch.Tensor]) -> None:
    upstream, inputs = golden.config, golden.inputs
    model = load_upstream(state_dict, upstream["heads"])
    assert model.config.sample_size == upstream["input_size"]
    assert model.config.codebook_size == upstream["mask_value"]
    assert model.config.num_classes == upstream["uncond_label"]
    labels = torch.where(inputs["drop_label"], model.config.num_classes, inputs["labels"])
    with torch.no_grad():
        logits = model(inputs["codes"], labels).sample
    torch.testing.assert_close(logits, golden.expected["logits"], atol=5e-5, rtol=5e-5)


def test_parity_with_the_committed_original() -> None:
    assert_parity(Model(HALTON, "cls_oddhead."), load_file(HALTON / "cls_oddhead.weights.safetensors"))


def knows_classes(path: Path) -> bool:
    return "nclass" in json.loads(path.read_text())


@pytest.mark.parametrize("path", cases("halton_maskgit/*.config.json", knows_classes))
def test_parity_with_the_original_checkpoint_format(path: Path) -> None:
    golden = Model(path.parent, path.name.removesuffix("config.json"))
    checkpoint = torch.load(golden.checkpoint, map_location="cpu", weights_only=True)
    assert_parity(golden, checkpoint["model_state_dict"])


@pytest.mark.parametrize("path", cases("released_keys/halton_maskgit/released_keys_ImageNet_*.json"))
def test_released_checkpoints_fit_name_by_name_and_shape_by_shape(path: Path) -> None:
    pixels, size = path.stem.split("_")[-2:]
    # Expanded from one number: the shapes of 480M parameters without their memory.
    upstream = {key: torch.zeros(()).expand(shape) for key, (shape, _) in json.loads(path.read_text()).items()}
    converted = convert_halton_maskgit_state_dict(upstream)
    config = halton_maskgit_config(converted, HEADS[size])
    with torch.device("meta"):
        model = HaltonMaskGITTransformer2DModel(**config)
    ours = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert ours == {key: tensor.shape for key, tensor in converted.items()}
    assert config["sample_size"] == int(pixels) // 16
    assert (config["codebook_size"], config["num_classes"], config["num_register_tokens"]) == (16384, 1000, 1)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_conversion_sees_through_wrappers(prefix: str) -> None:
    state_dict = load_file(HALTON / "cls_oddhead.weights.safetensors")
    wrapped = {prefix + key: tensor for key, tensor in state_dict.items()}
    plain = convert_halton_maskgit_state_dict(state_dict)
    converted = convert_halton_maskgit_state_dict(wrapped)
    assert list(converted) == list(plain)
    assert all(converted[key] is plain[key] for key in plain)


def test_conversion_refuses_what_it_does_not_know() -> None:
    state_dict = load_file(HALTON / "cls_oddhead.weights.safetensors")
    with pytest.raises(ValueError, match=r"got the key 'transformer\.layers\.0\.attn\.wz\.weight'.*model_state_dict"):
        convert_halton_maskgit_state_dict(state_dict | {"transformer.layers.0.attn.wz.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"`head\.weight` must equal `tok_emb\.weight`"):
        convert_halton_maskgit_state_dict(state_dict | {"head.weight": state_dict["head.weight"] + 1})
    converted = convert_halton_maskgit_state_dict(state_dict)
    with pytest.raises(ValueError, match="must be 30 wide in all, got 4 heads"):
        halton_maskgit_config(converted, num_attention_heads=4)
    with pytest.raises(ValueError, match="must be a square, got 35"):
        halton_maskgit_config(converted | {"position_embedding.weight": torch.zeros(35, 32)}, 3)


def test_output_forms_agree() -> None:
    model, (sample, labels) = make_model(), make_inputs()
    logits = model(sample, labels).sample
    assert logits.shape == (3, 16, 11)
    (from_tuple,) = model(sample.flatten(1), labels, return_dict=False)
    assert torch.equal(from_tuple, logits)


@pytest.mark.parametrize("seed", range(3))
def test_rows_do_not_see_each_other(seed: int) -> None:
    model, (sample, labels) = make_model(seed), make_inputs(batch_size=6, seed=seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    logits = model(sample, labels).sample
    torch.testing.assert_close(model(sample[order], labels[order]).sample, logits[order])
    torch.testing.assert_close(model(sample[:1], labels[:1]).sample, logits[:1])


def test_every_token_the_class_and_the_place_matter() -> None:
    model, (sample, labels) = make_model(), make_inputs()
    logits = model(sample, labels).sample
    changed = sample.clone()
    changed[:, 3, 1] = (changed[:, 3, 1] + 1) % 11
    assert ((model(changed, labels).sample - logits).abs().amax(-1) > 1e-4).all()
    assert ((model(sample, (labels + 1) % 4).sample - logits).abs().amax(-1) > 1e-4).all()
    transposed = model(sample.transpose(1, 2), labels).sample.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
    assert (transposed - logits).abs().max() > 1e-2


@pytest.mark.parametrize("num_register_tokens", [0, 3])
def test_any_number_of_registers(num_register_tokens: int) -> None:
    model, (sample, labels) = make_model(num_register_tokens=num_register_tokens), make_inputs()
    logits = model(sample, labels).sample
    assert logits.shape == (3, 16, 11)
    converted_config = halton_maskgit_config(model.state_dict(), CONFIG["num_attention_heads"])
    assert converted_config == CONFIG | {"num_register_tokens": num_register_tokens}
    if num_register_tokens:
        torch.nn.init.zeros_(model.register_embedding.weight)
        assert (model(sample, labels).sample - logits).abs().max() > 1e-3


def test_a_new_model_is_reproducible_and_starts_as_the_identity() -> None:
    first, again, other = (make_model(seed, random_weights=False) for seed in (0, 0, 1))
    state = first.state_dict()
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in state.items())
    assert not torch.equal(first.token_embedding.weight, other.token_embedding.weight)

    sample, labels = make_inputs()
    tokens = first.token_embedding.weight[sample.flatten(1)] + first.position_embedding.weight
    expected = F.rms_norm(tokens, (32,), eps=1e-5) @ first.token_embedding.weight.T
    torch.testing.assert_close(first(sample, labels).sample, expected)

    wide = make_model(random_weights=False, hidden_size=256, intermediate_size=256)
    for module in (wide.token_embedding, wide.position_embedding, wide.transformer_blocks[0].ff.down_proj):
        assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_a_few_steps_of_training_fit_a_batch() -> None:
    model, (sample, labels) = make_model(random_weights=False, dropout=0.1).train(), make_inputs(batch_size=8)
    target = sample.clamp(max=9)
    masked = torch.where(torch.rand(sample.shape, generator=torch.Generator().manual_seed(0)) < 0.5, 10, target)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(model(masked, labels).sample.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_dropout_acts_in_training_only() -> None:
    model, (sample, labels) = make_model(dropout=0.5), make_inputs()
    without = make_model(dropout=0.0)
    assert torch.equal(model(sample, labels).sample, without(sample, labels).sample)
    block = model.train().transformer_blocks[0]
    for branch in (block.attn, block.ff):
        states = torch.randn(2, 5, 32)
        assert (branch(states) == 0).float().mean().item() == pytest.approx(0.5, abs=0.15)


def test_gradients_are_the_same_with_checkpointing() -> None:
    sample, labels = make_inputs()
    gradients = []
    for checkpointing in (False, True):
        model = make_model(dropout=0.2).train()
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        model.transformer_blocks[1].register_forward_pre_hook(count)
        if checkpointing:
            model.enable_gradient_checkpointing()
        torch.manual_seed(5)
        model(sample, labels).sample.square().mean().backward()
        assert calls == 1 + checkpointing
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
    model, (sample, labels) = make_model(), make_inputs()
    logits = model(sample, labels).sample
    backends = attention_dispatch._AttentionBackendRegistry._backends
    name = attention_dispatch.AttentionBackendName._NATIVE_MATH
    math, calls = backends[name], []
    monkeypatch.setitem(backends, name, lambda **kwargs: calls.append(1) or math(**kwargs))
    default = attention_dispatch._AttentionBackendRegistry._active_backend
    model.set_attention_backend("_native_math")
    attention_dispatch._AttentionBackendRegistry._active_backend = default  # the model's own choice must be enough
    torch.testing.assert_close(model(sample, labels).sample, logits)
    assert len(calls) == CONFIG["num_layers"]


def test_fused_projections_change_nothing() -> None:
    model, (sample, labels) = make_model(), make_inputs()
    logits = model(sample, labels).sample
    model.fuse_qkv_projections()
    torch.nn.init.zeros_(model.transformer_blocks[0].attn.to_q.weight)  # proof that the fused weights are used
    torch.testing.assert_close(model(sample, labels).sample, logits)


def test_lora_can_be_trained_saved_and_taken_off(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: it is what adds LoRA to a model")
    model, (sample, labels) = make_model(), make_inputs()
    plain = model(sample, labels).sample
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    adapted = model(sample, labels).sample
    assert (adapted - plain).abs().max() > 1e-2
    adapted.square().mean().backward()
    assert {name.rsplit(".", 3)[1] for name, p in model.named_parameters() if p.grad is not None} == {
        "lora_A",
        "lora_B",
    }

    model.save_lora_adapter(tmp_path)
    loaded = make_model()
    loaded.load_lora_adapter(tmp_path, prefix=None, weight_name="pytorch_lora_weights.safetensors")
    torch.testing.assert_close(loaded(sample, labels).sample, adapted)
    loaded.unload_lora()
    assert torch.equal(loaded(sample, labels).sample, plain)


def test_slots_see_final_keys_and_values_and_can_replace_them() -> None:
    model, (sample, labels) = make_model(), make_inputs()
    logits = model(sample, labels).sample
    slots = [module for module in model.modules() if isinstance(module, KeyValueSlot)]
    assert len(slots) == CONFIG["num_layers"]
    assert not any("slot" in key for key in model.state_dict())

    seen = []

    def look(module: KeyValueSlot, args: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
        seen.append(output)

    handles = [slot.register_forward_hook(look) for slot in slots]
    assert torch.equal(model(sample, labels).sample, logits)
    for key, value in seen:
        assert key.shape == value.shape == (3, 17, 3, 10)  # 16 tokens and a register, 3 heads of 32 // 3
        torch.testing.assert_close(key.square().mean((2, 3)), torch.ones(3, 17), atol=1e-3, rtol=0)
    for handle in handles:
        handle.remove()

    # Attention over the values of another image, by the keys of another image: nothing else reaches attention.
    slots[1].register_forward_hook(lambda module, args, output: tuple(states.flip(0) for states in output))
    swapped = model(sample, labels).sample
    torch.testing.assert_close(swapped[1], logits[1])
    assert (swapped[0] - logits[0]).abs().max() > 1e-2


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    model, (sample, labels) = make_model(dropout=0.1), make_inputs()
    model.save_pretrained(tmp_path)
    loaded, info = HaltonMaskGITTransformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    expected = CONFIG | {"num_register_tokens": 1, "dropout": 0.1, "norm_eps": 1e-5, "id2label": None}
    assert {key: value for key, value in loaded.config.items() if not key.startswith("_")} == expected
    assert not loaded.training
    assert torch.equal(loaded(sample, labels).sample, model(sample, labels).sample)

    # The table is stored once, and is still one table after loading: both ends move together.
    stored = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert [key for key, tensor in stored.items() if tensor.shape == (11, 32)] == ["token_embedding.weight"]
    with torch.no_grad():
        loaded.token_embedding.weight[10] = 0  # the mask token
    embedded = []
    loaded.transformer_blocks[0].register_forward_pre_hook(lambda module, args: embedded.append(args[0]))
    logits = loaded(torch.full_like(sample, 10), labels).sample
    assert torch.equal(embedded[0][0, :16], loaded.position_embedding.weight)
    torch.testing.assert_close(logits[..., 10], loaded.token_embedding.bias[10].expand(3, 16))


def test_half_precision_stays_near_float32_on_the_cpu(tmp_path: Path) -> None:
    sample, labels = make_inputs()
    model = make_model()
    model.save_pretrained(tmp_path)
    exact = model(sample, labels).sample
    for dtype, tolerance in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
        half = HaltonMaskGITTransformer2DModel.from_pretrained(tmp_path, torch_dtype=dtype)
        logits = half(sample, labels).sample
        assert logits.dtype == dtype
        assert (logits.float() - exact).norm() < tolerance * exact.norm()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(sample, labels).sample
    assert (logits.float() - exact).norm() < 0.05 * exact.norm()


def test_norm_is_computed_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    norm = AdaRMSNorm(64, eps=1e-5, bias=True)
    torch.nn.init.normal_(norm.weight, generator=generator)
    torch.nn.init.normal_(norm.bias, generator=generator)
    states = torch.randn(2, 5, 64, generator=generator).half() * 1000  # squares beyond float16
    shift, scale = torch.randn(2, 2, 1, 64, generator=generator).half()
    result = norm.half()(states, shift, scale)
    assert result.dtype == torch.float16
    norm, states, shift, scale = norm.float(), states.float(), shift.float(), scale.float()
    plain = states / (states.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = (plain * norm.weight + norm.bias) * (1 + scale) + shift
    torch.testing.assert_close(norm(states, shift, scale), expected)
    assert torch.equal(result, norm(states, shift, scale).half())  # rounded once, at the end


def test_meta_device() -> None:
    config = make_model(num_register_tokens=2).config
    with torch.device("meta"):
        on_meta = HaltonMaskGITTransformer2DModel.from_config(config)
    with init_empty_weights():
        empty = HaltonMaskGITTransformer2DModel.from_config(config)
    for model in (on_meta, empty):
        assert all(parameter.is_meta for parameter in model.parameters())
        assert model.config.num_register_tokens == 2


def test_weights_that_live_elsewhere_between_calls() -> None:
    model, (sample, labels) = make_model(), make_inputs()
    logits = model(sample, labels).sample
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(model(sample, labels).sample, logits)


def test_compiles_as_one_graph() -> None:
    model, (sample, labels) = make_model(), make_inputs()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(sample, labels).sample, model(sample, labels).sample)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [
        ((2, 5, 5), (2,), r"`sample` must have shape \(batch_size, 4, 4\) or \(batch_size, 16\), got \(2, 5, 5\)"),
        ((2, 15), (2,), r"got \(2, 15\)\. Pass the token ids of a grid of 4 x 4"),
        ((2, 2, 8), (2,), r"got \(2, 2, 8\)"),
        ((16,), (2,), r"got \(16,\)"),
        ((2, 4, 4), (3,), r"`class_labels` must have shape \(2,\), one per row of `sample`, got \(3,\)\. Pass 3 for"),
        ((2, 4, 4), (2, 1), r"`class_labels` must have shape \(2,\).*got \(2, 1\)"),
    ],
)
def test_wrong_shapes(shape: tuple[int, ...], labels: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model()(torch.zeros(shape, dtype=torch.long), torch.zeros(labels, dtype=torch.long))


def test_wrong_dtypes() -> None:
    model, (sample, labels) = make_model(), make_inputs()
    with pytest.raises(ValueError, match=r"`sample` must hold ids as torch\.int64, got torch\.float32"):
        model(sample.float(), labels)
    with pytest.raises(ValueError, match=r"`class_labels` must hold ids as torch\.int64, got torch\.float32"):
        model(sample, labels.float())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sample_size": 0}, "`sample_size` must be at least 1, got 0"),
        ({"num_layers": -1}, "`num_layers` must be at least 1, got -1"),
        ({"num_register_tokens": -1}, "`num_register_tokens` must be at least 0, got -1"),
        ({"num_attention_heads": 33}, "`num_attention_heads` must be at most `hidden_size` = 32, got 33"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_configurations(config: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HaltonMaskGITTransformer2DModel(**(CONFIG | config))
