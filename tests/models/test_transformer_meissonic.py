"""Meissonic's denoiser: parity with a model built from diffusers' blocks, partial passes, and what users expect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.hooks import FirstBlockCacheConfig
from meissonic_reference import MeissonicReference
from torch import Tensor, nn

from hf_maskdiff import MeissonicTransformer2DModel, PartialCacheConfig
from hf_maskdiff.conversion.meissonic import convert_weights
from hf_maskdiff.models import KeyValueSlot

SIZES: dict[str, Any] = {
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 32,  # the original works only where it is the model's width
    "axes_dims_rope": (4, 6, 6),
    "vocab_size": 19,
    "codebook_size": 14,
}
MASK = 18
CLOSE = {"atol": 2e-5, "rtol": 2e-5}
ROWS, TEXT = 3, 7


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval()


def make_model(downsample: bool = False, **changes: Any) -> MeissonicTransformer2DModel:
    torch.manual_seed(0)
    return randomised(MeissonicTransformer2DModel(sample_size=4, downsample=downsample, **(SIZES | changes)))


def make_inputs(height: int = 4, width: int = 4, rows: int = ROWS, seed: int = 1, **changes: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = SIZES | changes
    sample = torch.randint(0, sizes["codebook_size"] + 1, (rows, height, width), generator=generator)
    return {
        "sample": torch.where(sample == sizes["codebook_size"], sizes["vocab_size"] - 1, sample),
        "encoder_hidden_states": torch.randn(rows, TEXT, sizes["joint_attention_dim"], generator=generator),
        "pooled_projections": torch.randn(rows, sizes["pooled_projection_dim"], generator=generator),
        "micro_conds": torch.tensor([[512.0, 768, 3, 5, 6]]).expand(rows, -1) + torch.arange(rows)[:, None],
        "timestep": torch.arange(rows).float() * 7 + 2,
    }


@torch.no_grad()
def run(model: nn.Module, inputs: dict[str, Tensor], **changes: Any) -> Tensor:
    return model(**(inputs | changes), return_dict=False)[0]


@pytest.mark.parametrize("downsample", [False, True])
@pytest.mark.parametrize("size", [(4, 4), (6, 4), (2, 8)])
def test_parity_with_a_model_of_diffusers_blocks(downsample: bool, size: tuple[int, int]) -> None:
    reference = randomised(MeissonicReference(**SIZES, downsample=downsample, upsample=downsample))
    model = MeissonicTransformer2DModel(sample_size=4, downsample=downsample, **SIZES)
    model.load_state_dict(convert_weights(reference.state_dict()))
    inputs = make_inputs(*size)
    expected = reference(*inputs.values()).flatten(2).transpose(1, 2)
    assert expected.std() > 0.3
    torch.testing.assert_close(run(model.eval(), inputs), expected, **CLOSE)


@pytest.mark.parametrize("downsample", [False, True])
def test_the_published_sizes_have_the_published_names_and_shapes(downsample: bool) -> None:
    published = {"num_layers": 14, "num_single_layers": 28, "attention_head_dim": 128, "num_attention_heads": 8}
    published |= {"joint_attention_dim": 1024, "pooled_projection_dim": 1024, "axes_dims_rope": (16, 56, 56)}
    published |= {"vocab_size": 8256, "codebook_size": 8192}
    with torch.device("meta"):
        reference = MeissonicReference(**published, downsample=downsample, upsample=downsample)
        model = MeissonicTransformer2DModel(sample_size=64, downsample=downsample, **published)
    converted = {name: tensor.shape for name, tensor in convert_weights(reference.state_dict()).items()}
    assert converted == {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e9, 2) in (1.0, 1.01)  # the paper's 1 B


def test_every_input_matters_and_rows_do_not_see_each_other() -> None:
    model, inputs = make_model(), make_inputs()
    logits = run(model, inputs)
    assert logits.shape == (ROWS, 16, SIZES["codebook_size"])
    assert torch.equal(model(**inputs).sample, logits)
    for name, value in inputs.items():
        changed = value.clone()
        changed[0] = (value[0] + 1) % 14 if name == "sample" else value[0] + 1
        other = run(model, inputs, **{name: changed})
        assert (other[0] - logits[0]).abs().amax(-1).min() > 1e-5, name
        torch.testing.assert_close(other[1:], logits[1:], **CLOSE)
    transposed = run(model, inputs, sample=inputs["sample"].transpose(1, 2))
    assert (transposed.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2) - logits).abs().max() > 1e-2
    torch.testing.assert_close(run(model, inputs, sample=inputs["sample"].flatten(1)), logits)


def test_half_precision_has_no_nan_at_any_number_of_steps() -> None:
    model, inputs = make_model().to(torch.bfloat16), make_inputs()
    halves = {name: inputs[name].bfloat16() for name in ("encoder_hidden_states", "pooled_projections")}
    assert run(model, inputs, **halves).isfinite().all()
    model = make_model().half()
    halves = {name: inputs[name].half() for name in ("encoder_hidden_states", "pooled_projections")}
    logits = run(model, inputs, **halves, timestep=torch.tensor([999.0, 66, 0]))
    assert logits.dtype == torch.float16
    assert logits.isfinite().all()
    expected = run(make_model(), inputs, timestep=torch.tensor([999.0, 66, 0]))
    assert (logits - expected).abs().mean() < 0.05 * expected.std()


def test_gradient_checkpointing_and_fused_projections_change_nothing() -> None:
    model, inputs = make_model().train(), make_inputs()
    weight = model.transformer_blocks[0].attn.add_k_proj.weight
    gradients = []
    for _ in range(2):
        model(**inputs).sample.square().mean().backward()
        gradients.append(weight.grad.clone())
        model.zero_grad()
        model.enable_gradient_checkpointing()
    torch.testing.assert_close(gradients[0], gradients[1], **CLOSE)
    assert gradients[0].abs().max() > 0
    logits = run(model.eval(), inputs)
    model.fuse_qkv_projections()
    torch.testing.assert_close(run(model, inputs), logits, **CLOSE)


def test_every_weight_learns() -> None:
    model, inputs = make_model(downsample=True).train(), make_inputs()
    target = inputs["sample"].flatten(1).clamp(max=13)
    F.cross_entropy(model(**inputs).sample.flatten(0, 1), target.flatten()).backward()
    still = {name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0}
    assert still == set()


def test_save_and_load(tmp_path: Path) -> None:
    model, inputs = make_model(downsample=True), make_inputs()
    model.save_pretrained(tmp_path)
    loaded = MeissonicTransformer2DModel.from_pretrained(tmp_path)
    assert torch.equal(run(loaded, inputs), run(model, inputs))


# --- partial passes over squares of codes -----------------------------------------------------------------------------


def positions_of(count: int, length: int, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(length, generator=generator)[:count] for _ in range(ROWS)])


def at(values: Tensor, positions: Tensor) -> Tensor:
    if values.ndim == 2:
        return values.gather(1, positions)
    return values.gather(1, positions[..., None].expand(-1, -1, values.shape[-1]))


def changed_at(inputs: dict[str, Tensor], positions: Tensor) -> Tensor:
    """The codes, with other ones at the positions."""
    sample = inputs["sample"]
    other = make_inputs(*sample.shape[1:], seed=9)["sample"].flatten(1)
    return sample.flatten(1).scatter(1, positions, at(other, positions)).view_as(sample)


def squares(positions: Tensor, width: int) -> Tensor:
    return positions // width // 2 * (width // 2) + positions % width // 2


@pytest.fixture(params=[1, 4])
def deep(request: pytest.FixtureRequest) -> dict[str, int]:
    return {"num_layers": 1, "num_single_layers": request.param - 1}


SIZE = (4, 6)


@pytest.mark.parametrize("downsample", [False, True])
def test_a_partial_pass_over_all_codes_is_a_full_pass(downsample: bool, deep: dict[str, int]) -> None:
    model, inputs = make_model(downsample, **deep), make_inputs(*SIZE)
    positions = positions_of(24, 24)
    after = changed_at(inputs, positions)
    expected = at(run(model, inputs, sample=after), positions)
    model.enable_cache(PartialCacheConfig())
    run(model, inputs)
    logits = run(model, inputs, sample=at(after.flatten(1), positions), positions=positions)
    torch.testing.assert_close(logits, expected, **CLOSE)


@pytest.mark.parametrize("count", [1, 5, 20])
def test_only_the_squares_of_the_codes_and_the_text_are_fresh(count: int, deep: dict[str, int]) -> None:
    """Against a whole pass in which all other squares have the keys and values of the pass before."""
    model, inputs = make_model(True, **deep), make_inputs(*SIZE)
    positions = positions_of(count, 24)
    after = changed_at(inputs, positions)
    fresh = torch.zeros(ROWS, 6, dtype=torch.bool).scatter_(1, squares(positions, 6), True)
    kept: dict[nn.Module, tuple[Tensor, ...]] = {}

    def keep(slot: nn.Module, args: tuple, output: tuple[Tensor, ...]) -> None:
        kept[slot] = output

    def mix(slot: nn.Module, args: tuple, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        new = F.pad(fresh, (0, TEXT), value=True)[..., None, None]
        return tuple(torch.where(new, now, then) for now, then in zip(output, kept[slot], strict=True))

    def hooked(hook: Callable, sample: Tensor) -> Tensor:
        slots = [module for module in model.modules() if isinstance(module, KeyValueSlot)]
        handles = [slot.register_forward_hook(hook) for slot in slots]
        logits = run(model, inputs, sample=sample)
        for handle in handles:
            handle.remove()
        return logits

    hooked(keep, inputs["sample"])
    expected = at(hooked(mix, after), positions)
    model.enable_cache(PartialCacheConfig())
    run(model, inputs)
    logits = run(model, inputs, sample=at(after.flatten(1), positions), positions=positions)
    torch.testing.assert_close(logits, expected, **CLOSE)


def test_later_passes_see_the_codes_of_earlier_ones() -> None:
    """In one square, one code after the other: with one layer the second pass is exact."""
    model, inputs = make_model(True, num_layers=1, num_single_layers=0), make_inputs(*SIZE)
    first, second = torch.tensor([[0, 9]] * ROWS), torch.tensor([[7, 1]] * ROWS)  # 0, 1, 6, 7 are a square
    middle = changed_at(inputs, first)
    after = changed_at(inputs | {"sample": middle}, second)
    expected = at(run(model, inputs, sample=after), second)
    cache = model.new_cache()
    run(model, inputs, cache=cache)
    run(model, inputs, sample=at(middle.flatten(1), first), positions=first, cache=cache)
    logits = run(model, inputs, sample=at(after.flatten(1), second), positions=second, cache=cache)
    torch.testing.assert_close(logits, expected, **CLOSE)


def test_codes_that_are_not_kept_are_seen_by_nobody_else() -> None:
    model, inputs = make_model(True), make_inputs(*SIZE)
    positions = torch.tensor([[0, 7, 20]] * ROWS)  # the first two in one square
    codes = at(changed_at(inputs, positions).flatten(1), positions)
    cache = model.new_cache()
    run(model, inputs, cache=cache)
    alone = run(model, inputs, sample=codes[:, :1], positions=positions[:, :1], cache=cache)
    keys = [layer.key.states.clone() for layer in cache.layers]
    run(model, inputs, cache=cache)
    not_kept = torch.cat([positions[:, :1], ~positions[:, 1:]], 1)
    beside = run(model, inputs, sample=codes, positions=not_kept, cache=cache)
    torch.testing.assert_close(beside[:, :1], alone, **CLOSE)
    for layer, key in zip(cache.layers, keys, strict=True):
        torch.testing.assert_close(layer.key.states, key, **CLOSE)
    run(model, inputs, cache=cache)  # where they stand their own code counts: 7's query sees 7's code
    before = at(inputs["sample"].flatten(1), positions)
    mixed = torch.where(torch.tensor([True, False, True]), codes, before)
    other = run(model, inputs, sample=mixed, positions=not_kept, cache=cache)
    assert (other[:, 1] - beside[:, 1]).abs().max() > 1e-3


def test_rows_of_a_cache_can_be_taken_and_put_back() -> None:
    model, inputs, rows = make_model(True), make_inputs(*SIZE), torch.tensor([2, 0])
    first, second = positions_of(10, 24).split(5, 1)
    middle = changed_at(inputs, first)
    after = changed_at(inputs | {"sample": middle}, second)
    whole, parted = model.new_cache(), model.new_cache()
    for cache in (whole, parted):
        run(model, inputs, cache=cache)
    codes = at(middle.flatten(1), first)
    expected = run(model, inputs, sample=codes, positions=first, cache=whole)
    taken = parted.take(rows)
    some = {name: value[rows] for name, value in inputs.items()} | {"sample": codes[rows]}
    torch.testing.assert_close(run(model, some, positions=first[rows], cache=taken), expected[rows], **CLOSE)
    parted.put(rows, taken)
    results = []
    for cache in (whole, parted):
        results.append(run(model, inputs, sample=at(after.flatten(1), second), positions=second, cache=cache))
    torch.testing.assert_close(results[0][rows], results[1][rows], **CLOSE)
    assert (results[0][1] - results[1][1]).abs().max() > 1e-3  # the other row has missed a pass


def test_diffusers_first_block_cache_runs_on_it() -> None:
    model, inputs = make_model(), make_inputs()
    logits = run(model, inputs)
    model.enable_cache(FirstBlockCacheConfig(threshold=1e-9))
    with model.cache_context("cond"):
        torch.testing.assert_close(run(model, inputs), logits, **CLOSE)
    model.disable_cache()


# --- errors -----------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_clear_error() -> None:
    model, inputs = make_model(True), make_inputs()
    positions = positions_of(3, 16)
    with pytest.raises(ValueError, match=r"multiples of 2, got \(3, 4, 5\)"):
        run(model, make_inputs(4, 5))
    with pytest.raises(ValueError, match=r"\(batch_size, height, width\).*got \(3, 15\)"):
        run(model, inputs, sample=inputs["sample"].flatten(1)[:, :15])
    with pytest.raises(ValueError, match=r"must hold ids as torch.int64, got torch.int32"):
        run(model, inputs, sample=inputs["sample"].int())
    for name in ("encoder_hidden_states", "pooled_projections", "micro_conds", "timestep"):
        with pytest.raises(ValueError, match=rf"`{name}` must have shape \(3"):
            run(model, inputs, **{name: inputs[name][:2]})
    with pytest.raises(ValueError, match="partial caching off"):
        run(model, inputs, sample=at(inputs["sample"].flatten(1), positions), positions=positions)
    with pytest.raises(ValueError, match="need a full pass over the same 3 rows"):
        run(model, inputs, sample=positions, positions=positions, cache=model.new_cache())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes_dims_rope": (4, 4, 6)}, r"add up to `attention_head_dim` = 16, got \(4, 4, 6\)"),
        ({"axes_dims_rope": (5, 5, 6)}, "three even numbers"),
        ({"vocab_size": 14}, "must be above `codebook_size` = 14"),
        ({"micro_cond_embed_dim": 1281}, "a multiple of `micro_cond_encode_dim` = 256"),
        ({"num_attention_heads": 0}, "`num_attention_heads` must be at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeissonicTransformer2DModel(sample_size=4, **(SIZES | changes))
    with pytest.raises(ValueError, match="must be even with `downsample`, got 3"):
        MeissonicTransformer2DModel(sample_size=3, downsample=True, **SIZES)
