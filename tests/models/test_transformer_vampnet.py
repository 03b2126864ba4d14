"""VampNet's denoiser: its distances, whole frames in partial passes, and what users expect of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5Attention

from hf_maskdiff import PartialCacheConfig, VampNetTransformer
from hf_maskdiff.models import KeyValueSlot
from hf_maskdiff.models.vampnet_layers import distance_buckets

SIZES: dict[str, Any] = {
    "num_codebooks": 3,
    "codebook_size": 12,
    "latent_dim": 4,
    "hidden_size": 24,
    "num_layers": 2,
    "num_attention_heads": 2,
    "num_conditioning_codebooks": 2,
}
ROWS, FRAMES, CODES = 3, 7, 21
CLOSE = {"atol": 2e-5, "rtol": 2e-5}


def make_model(**changes: Any) -> VampNetTransformer:
    model = VampNetTransformer(**(SIZES | changes))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return model.eval()


def make_inputs(seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, SIZES["codebook_size"] + 1, (ROWS, 5, FRAMES), generator=generator)
    return {"sample": codes[:, 2:], "conditioning_codes": codes[:, :2]}


@torch.no_grad()
def run(model: nn.Module, inputs: dict[str, Tensor], **changes: Any) -> Tensor:
    return model(**(inputs | changes), return_dict=False)[0]


def at(values: Tensor, positions: Tensor) -> Tensor:
    index = positions if values.ndim == 2 else positions[..., None].expand(-1, -1, values.shape[-1])
    return values.gather(1, index)


def positions_of(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.stack([torch.randperm(CODES, generator=generator)[:count] for _ in range(ROWS)])


def changed_at(sample: Tensor, positions: Tensor) -> Tensor:
    other = make_inputs(seed=9)["sample"].flatten(1)
    return sample.flatten(1).scatter(1, positions, at(other, positions)).view_as(sample)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20)])
def test_distances_are_those_of_t5(num_buckets: int, max_distance: int) -> None:
    found = distance_buckets(150, num_buckets, max_distance, torch.device("cpu"))
    relative = torch.arange(-149, 150)
    expected = T5Attention._relative_position_bucket(relative, True, num_buckets, max_distance)
    assert torch.equal(found, expected)
    assert len(found.unique()) == num_buckets - 1  # the distance 0 is on one side alone


def test_every_code_matters_and_rows_do_not_see_each_other() -> None:
    model, inputs = make_model(), make_inputs()
    logits = run(model, inputs)
    assert logits.shape == (ROWS, CODES, SIZES["codebook_size"])
    torch.testing.assert_close(model(**inputs).sample, logits, **CLOSE)
    assert torch.equal(run(model, inputs, sample=inputs["sample"].flatten(1)), logits)
    for name, codes in inputs.items():
        for codebook in range(codes.shape[1]):
            changed = codes.clone()
            changed[0, codebook, 2] = (codes[0, codebook, 2] + 1) % 12
            other = run(model, inputs, **{name: changed})
            assert (other[0] - logits[0]).abs().amax(-1).min() > 1e-5
            torch.testing.assert_close(other[1:], logits[1:], **CLOSE)


def test_a_place_is_known_by_its_distances_alone() -> None:
    """Backwards in time, with the buckets of both sides exchanged, is the same backwards."""
    model, inputs = make_model(), make_inputs()
    logits = run(model, inputs).unflatten(1, (3, FRAMES))
    table = model.relative_bias.embedding.weight.data
    half = len(table) // 2
    table.copy_(torch.cat([table[:1], table[half + 1 :], table[half : half + 1], table[1:half]]))
    backwards = run(model, {name: codes.flip(-1) for name, codes in inputs.items()}).unflatten(1, (3, FRAMES))
    torch.testing.assert_close(backwards.flip(2), logits, **CLOSE)
    assert (backwards - logits).abs().max() > 1e-2


def test_gradient_checkpointing_and_fused_projections_change_nothing() -> None:
    model, inputs = make_model().train(), make_inputs()
    gradients = []
    for _ in range(2):
        model(**inputs).sample.square().mean().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        model.zero_grad()
        model.enable_gradient_checkpointing()
    torch.testing.assert_close(gradients[0], gradients[1], **CLOSE)
    assert all(gradient.abs().max() > 0 for gradient in gradients[0].values())
    logits = run(model.eval(), inputs)
    model.fuse_qkv_projections()
    torch.testing.assert_close(run(model, inputs), logits, **CLOSE)


def test_dropout_only_in_training() -> None:
    model, inputs = make_model(dropout=0.5), make_inputs()
    logits = run(model, inputs)
    torch.testing.assert_close(logits, run(make_model(), inputs))
    model.train()
    assert (run(model, inputs) - logits).abs().max() > 1e-2


def test_half_precision() -> None:
    inputs = make_inputs()
    logits = run(make_model().bfloat16(), inputs)
    assert logits.dtype == torch.bfloat16
    expected = run(make_model(), inputs)
    assert (logits - expected).abs().mean() < 0.1 * expected.std()


def test_save_and_load(tmp_path: Path) -> None:
    model, inputs = make_model(), make_inputs()
    model.save_pretrained(tmp_path)
    loaded = VampNetTransformer.from_pretrained(tmp_path)
    assert torch.equal(run(loaded, inputs), run(model, inputs))
    assert loaded.mask_token_id == SIZES["codebook_size"]


def test_diffusers_first_block_cache_runs_on_it() -> None:
    model, inputs = make_model(), make_inputs()
    logits = run(model, inputs)
    model.enable_cache(FirstBlockCacheConfig(threshold=1e-9))
    with model.cache_context("cond"):
        torch.testing.assert_close(run(model, inputs), logits, **CLOSE)


# --- partial passes over frames of several codes ----------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5, CODES])
def test_only_the_frames_of_the_codes_are_fresh(count: int) -> None:
    """Against a whole pass in which all other frames have the keys and values of the pass before."""
    model, inputs, positions = make_model(), make_inputs(), positions_of(count)
    after = changed_at(inputs["sample"], positions)
    fresh = torch.zeros(ROWS, FRAMES, dtype=torch.bool).scatter_(1, positions % FRAMES, True)[..., None, None]
    kept: dict[nn.Module, tuple[Tensor, ...]] = {}

    def mix(slot: nn.Module, args: tuple, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        before = kept.setdefault(slot, output)
        return tuple(torch.where(fresh, now, then) for now, then in zip(output, before, strict=True))

    handles = [module.register_forward_hook(mix) for module in model.modules() if isinstance(module, KeyValueSlot)]
    run(model, inputs)
    expected = at(run(model, inputs, sample=after), positions)
    for handle in handles:
        handle.remove()
    model.enable_cache(PartialCacheConfig())
    run(model, inputs)
    logits = run(model, inputs, sample=at(after.flatten(1), positions), positions=positions)
    torch.testing.assert_close(logits, expected, **CLOSE)


def test_later_passes_see_the_codes_of_earlier_ones() -> None:
    """In one frame, one code after the other: with one layer the second pass is exact."""
    model, inputs = make_model(num_layers=1), make_inputs()
    first, second = torch.tensor([[2, 12]] * ROWS), torch.tensor([[9, 5]] * ROWS)  # 2 and 9, 12 and 5 are frames
    middle = changed_at(inputs["sample"], first)
    after = changed_at(middle, second)
    expected = at(run(model, inputs, sample=after), second)
    cache = model.new_cache()
    run(model, inputs, cache=cache)
    run(model, inputs, sample=at(middle.flatten(1), first), positions=first, cache=cache)
    logits = run(model, inputs, sample=at(after.flatten(1), second), positions=second, cache=cache)
    torch.testing.assert_close(logits, expected, **CLOSE)


def test_codes_that_are_not_kept_are_seen_by_nobody_else() -> None:
    model, inputs = make_model(), make_inputs()
    positions = torch.tensor([[0, 7, 20]] * ROWS)  # the first two in one frame
    codes = at(changed_at(inputs["sample"], positions).flatten(1), positions)
    cache = model.new_cache()
    run(model, inputs, cache=cache)
    alone = run(model, inputs, sample=codes[:, :1], positions=positions[:, :1], cache=cache)
    run(model, inputs, cache=cache)
    not_kept = torch.cat([positions[:, :1], ~positions[:, 1:]], 1)
    beside = run(model, inputs, sample=codes, positions=not_kept, cache=cache)
    torch.testing.assert_close(beside[:, :1], alone, **CLOSE)
    assert (beside[:, 1] - at(run(make_model(), inputs), positions)[:, 1]).abs().max() > 1e-3  # 7 sees itself


# --- errors -----------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_clear_error() -> None:
    model, inputs, positions = make_model(), make_inputs(), positions_of(3)
    sample, given = inputs["sample"], inputs["conditioning_codes"]
    for wrong in (sample[:, :2], sample.flatten(1)[:, :20], sample[..., :0]):
        with pytest.raises(ValueError, match=r"`sample` must have shape \(batch_size, 3, num_frames\), got \(3, "):
            run(model, inputs, sample=wrong)
    with pytest.raises(ValueError, match=r"must hold ids as torch.int64, got torch.int32"):
        run(model, inputs, sample=sample.int())
    for wrong in (None, given[:, :1], given[:2], given[..., 1:], given.int()):
        with pytest.raises(ValueError, match=r"`conditioning_codes` must be int64 of shape \(3, 2, 7\), got"):
            run(model, inputs, conditioning_codes=wrong)
    with pytest.raises(ValueError, match="`conditioning_codes` must be None for a model that predicts every"):
        run(make_model(num_conditioning_codebooks=0), inputs)
    with pytest.raises(ValueError, match="`positions` must be int64 of the shape"):
        run(model, inputs, positions=positions)
    with pytest.raises(ValueError, match="partial caching off"):
        run(model, inputs, sample=positions, positions=positions)
    with pytest.raises(ValueError, match="need a full pass over the same 3 rows"):
        run(model, inputs, sample=positions, positions=positions, cache=model.new_cache())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_codebooks": 0}, "`num_codebooks` must be at least 1, got 0"),
        ({"num_conditioning_codebooks": -1}, "`num_conditioning_codebooks` must be at least 0, got -1"),
        ({"num_attention_heads": 5}, "`num_attention_heads` must divide the width 24, got 5"),
        ({"num_buckets": 30}, "`num_buckets` must be a multiple of 4, got 30"),
        ({"max_distance": 8}, "`max_distance` must be above a quarter of `num_buckets` = 32, got 8"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VampNetTransformer(**(SIZES | changes))


def test_a_class_is_seen_by_every_frame_and_none_is_the_null_label() -> None:
    model, inputs = make_model(num_classes=3), make_inputs()
    labels = torch.tensor([0, 2, 1])
    logits = run(model, inputs, class_labels=labels)
    none = run(model, inputs)
    assert torch.equal(none, run(model, inputs, class_labels=torch.full((ROWS,), 3)))
    assert (logits - none).abs().amax(-1).min() > 1e-3
    one = run(model, {name: codes[1:2] for name, codes in inputs.items()}, class_labels=labels[1:2])
    torch.testing.assert_close(one, logits[1:2], **CLOSE)
    cache, positions = model.new_cache(), positions_of(5)
    run(model, inputs, class_labels=labels, cache=cache)
    sample = at(inputs["sample"].flatten(1), positions)
    partial = run(model, inputs, class_labels=labels, sample=sample, positions=positions, cache=cache)
    torch.testing.assert_close(partial, at(logits, positions), **CLOSE)


def test_wrong_class_labels() -> None:
    labels = torch.zeros(ROWS, dtype=torch.int64)
    with pytest.raises(ValueError, match="`class_labels` must be None for a model without classes"):
        run(make_model(), make_inputs(), class_labels=labels)
    for wrong in (labels[:1], labels.int()):
        with pytest.raises(ValueError, match=r"int64 of shape \(3,\), one per row of `sample`"):
            run(make_model(num_classes=3), make_inputs(), class_labels=wrong)
    with pytest.raises(ValueError, match="`num_classes` must be at least 0, got -1"):
        make_model(num_classes=-1)
