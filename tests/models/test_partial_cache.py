"""A partial pass is what it says: the chosen positions anew, all else from the last full pass, exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig
from torch import Tensor, nn

from hf_maskdiff import (
    HaltonMaskGITTransformer2DModel,
    MaskGenTransformer1DModel,
    MaskGITTransformer2DModel,
    MDLMTransformer,
    MeissonicTransformer2DModel,
    PartialCacheConfig,
    TiTokTransformer1DModel,
    VampNetTransformer,
)
from hf_maskdiff.models import KeyValueSlot

LENGTH, TOKENS, ROWS = 16, 12, 3
CLOSE = {"atol": 2e-6, "rtol": 2e-6}
Run = Callable[..., Tensor]


def mdlm(num_layers: int) -> nn.Module:
    return MDLMTransformer(TOKENS + 1, LENGTH, hidden_dim=32, cond_dim=8, n_blocks=num_layers, n_heads=4)


def halton(num_layers: int) -> nn.Module:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_register_tokens": 2}
    return HaltonMaskGITTransformer2DModel(
        sample_size=4, codebook_size=TOKENS, num_classes=3, num_layers=num_layers, **sizes
    )


def maskgit(num_layers: int, norm_first: bool = False, num_decoder_layers: int = 0) -> nn.Module:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "position_bias": norm_first}
    halves = {"num_layers": num_layers, "num_decoder_layers": num_decoder_layers}
    return MaskGITTransformer2DModel(4, TOKENS, num_classes=3, norm_first=norm_first, **sizes, **halves)


def maskgit_v1(num_layers: int) -> nn.Module:
    return maskgit(num_layers, norm_first=True)


def mage(num_layers: int) -> nn.Module:
    if num_layers == 1:
        pytest.skip("encoder and decoder are two layers at least")
    return maskgit(num_layers, norm_first=True, num_decoder_layers=1)


def meissonic(num_layers: int) -> nn.Module:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6)}
    sizes |= {"joint_attention_dim": 8, "pooled_projection_dim": 8, "micro_cond_encode_dim": 4}
    blocks = {"num_layers": 1, "num_single_layers": num_layers - 1}
    return MeissonicTransformer2DModel(4, TOKENS, TOKENS + 1, micro_cond_embed_dim=20, **sizes, **blocks)


def titok(num_layers: int) -> nn.Module:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    skips = {"norm_first": True, "num_skips": num_layers // 2}
    return TiTokTransformer1DModel(LENGTH, TOKENS, 3, num_layers=num_layers, **sizes, **skips)


def maskgen(num_layers: int) -> nn.Module:
    text = {"joint_attention_dim": 8, "pooled_projection_dim": 8, "micro_cond_encode_dim": 4}
    return MaskGenTransformer1DModel(LENGTH, TOKENS, 32, num_layers, 4, **text)


def vampnet(num_layers: int) -> nn.Module:
    return VampNetTransformer(1, TOKENS, 4, hidden_size=32, num_layers=num_layers, num_attention_heads=4)


def of_text(num_rows: int) -> dict[str, Tensor]:
    numbers = torch.randn(ROWS, 5, 8, generator=torch.Generator().manual_seed(2))[:num_rows]
    micro_conds = torch.full((num_rows, 5), 4.0)
    text = {"encoder_hidden_states": numbers, "pooled_projections": numbers[:, 0], "micro_conds": micro_conds}
    return text | {"timestep": torch.full((num_rows,), 3.0)}


@pytest.fixture(params=[mdlm, halton, maskgit, maskgit_v1, mage, meissonic, titok, maskgen, vampnet])
def make(request: pytest.FixtureRequest) -> Callable[[int], tuple[nn.Module, Run]]:
    """A model with weights that all matter, and how it is called."""

    def make(num_layers: int) -> tuple[nn.Module, Run]:
        torch.manual_seed(0)
        model = request.param(num_layers).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        labels = torch.arange(ROWS)

        @torch.no_grad()
        def run(tokens: Tensor, positions: Tensor | None = None, context: str = "cond", **extra: object) -> Tensor:
            extra |= {} if positions is None else {"positions": positions}
            with model.cache_context(context):
                if request.param in (mdlm, vampnet):
                    return model(tokens, return_dict=False, **extra)[0]
                if request.param in (meissonic, maskgen):
                    return model(tokens, **of_text(len(tokens)), return_dict=False, **extra)[0]
                return model(tokens, labels[: len(tokens)], return_dict=False, **extra)[0]

        return model, run

    return make


def random_tokens(seed: int) -> Tensor:
    return torch.randint(0, TOKENS + 1, (ROWS, LENGTH), generator=torch.Generator().manual_seed(seed))


def random_positions(count: int, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(LENGTH, generator=generator)[:count] for _ in range(ROWS)])


def at(values: Tensor, positions: Tensor) -> Tensor:
    return (
        values.gather(1, positions[..., None].expand(-1, -1, values.shape[-1]))
        if values.ndim == 3
        else (values.gather(1, positions))
    )


def changed_at(tokens: Tensor, positions: Tensor, seed: int = 9) -> Tensor:
    return tokens.scatter(1, positions, at(random_tokens(seed), positions))


def with_stale_others(model: nn.Module, run: Run, before: Tensor, after: Tensor, positions: Tensor) -> Tensor:
    """The reference: a whole pass over `after` in which all other positions' keys and values are those of `before`."""
    slots = [module for module in model.modules() if isinstance(module, KeyValueSlot)]
    kept: dict[KeyValueSlot, tuple[Tensor, Tensor]] = {}
    fresh = torch.zeros(ROWS, LENGTH, dtype=torch.bool).scatter_(1, positions, True)

    def keep(slot: KeyValueSlot, args: tuple, output: tuple[Tensor, Tensor]) -> None:
        kept[slot] = output

    def mix(slot: KeyValueSlot, args: tuple, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        extra = output[0].shape[1] - LENGTH  # registers and class tokens are always computed
        new = nn.functional.pad(fresh, (0, extra), value=True)[..., None, None]
        return tuple(torch.where(new, now, then) for now, then in zip(output, kept[slot], strict=True))

    for hook, tokens in ((keep, before), (mix, after)):
        handles = [slot.register_forward_hook(hook) for slot in slots]
        logits = run(tokens)
        for handle in handles:
            handle.remove()
    return at(logits, positions)


def test_with_all_positions_it_is_a_full_pass(make: Callable) -> None:
    model, run = make(3)
    before, after, positions = random_tokens(1), random_tokens(2), random_positions(LENGTH)
    expected = at(run(after), positions)
    model.enable_cache(PartialCacheConfig())
    run(before)
    torch.testing.assert_close(run(at(after, positions), positions), expected, **CLOSE)


def test_where_no_token_changed_it_repeats_the_full_pass(make: Callable) -> None:
    model, run = make(3)
    tokens, positions = random_tokens(1), random_positions(5)
    model.enable_cache(PartialCacheConfig())
    logits = run(tokens)
    torch.testing.assert_close(run(at(tokens, positions), positions), at(logits, positions), **CLOSE)


@pytest.mark.parametrize("count", [1, 6, 15])
def test_with_one_layer_it_is_exact(make: Callable, count: int) -> None:
    model, run = make(1)
    before, positions = random_tokens(1), random_positions(count)
    after = changed_at(before, positions)
    expected = at(run(after), positions)
    model.enable_cache(PartialCacheConfig())
    run(before)
    torch.testing.assert_close(run(at(after, positions), positions), expected, **CLOSE)


@pytest.mark.parametrize("count", [1, 6, 15])
def test_with_more_layers_the_others_are_stale_and_nothing_else(make: Callable, count: int) -> None:
    model, run = make(3)
    before, positions = random_tokens(1), random_positions(count)
    after = changed_at(before, positions)
    expected = with_stale_others(model, run, before, after, positions)
    assert not torch.allclose(expected, at(run(after), positions), atol=1e-3)
    model.enable_cache(PartialCacheConfig())
    run(before)
    torch.testing.assert_close(run(at(after, positions), positions), expected, **CLOSE)


def test_passes_one_after_the_other_keep_what_is_newest(make: Callable) -> None:
    """After a partial pass its positions are fresh: with one layer the next one sees them."""
    model, run = make(1)
    before, first, second = random_tokens(1), random_positions(6)[:, :3], random_positions(6)[:, 3:]
    middle = changed_at(before, first)
    after = changed_at(middle, second)
    expected = at(run(after), second)
    model.enable_cache(PartialCacheConfig())
    run(before)
    run(at(middle, first), first)
    torch.testing.assert_close(run(at(after, second), second), expected, **CLOSE)


def test_a_position_that_is_not_valid_writes_nothing(make: Callable) -> None:
    model, run = make(3)
    before, positions = random_tokens(1), random_positions(6)
    after = changed_at(before, positions)
    valid = torch.arange(6) < torch.tensor([2, 6, 0])[:, None]
    model.enable_cache(PartialCacheConfig())
    full = at(run(before), positions)
    torch.testing.assert_close(run(at(before, positions), ~positions), full, **CLOSE)  # it is computed where it stands
    run(before)
    logits = run(at(after, positions), torch.where(valid, positions, ~positions))
    run(before)
    few = run(at(after, positions)[:1, :2].expand(ROWS, -1), positions[:1, :2].expand(ROWS, -1).clone())
    torch.testing.assert_close(logits[0, :2], few[0], **CLOSE)
    run(before)  # the row whose positions are all invalid has nothing fresh: what it kept is the full pass
    run(at(after, positions), ~positions)
    partial = kept_keys(model)
    run(before)
    for now, expected in zip(partial, kept_keys(model), strict=True):
        torch.testing.assert_close(now, expected, rtol=0, atol=0)


def kept_keys(model: nn.Module) -> list[Tensor]:
    """What each layer keeps in the context "cond", registers and class tokens aside."""
    with model.cache_context("cond"):
        return [layer.key.states[:, :LENGTH].clone() for layer in model._contexts.current.layers]


def test_a_cache_of_one_s_own_is_used_in_place_of_the_model_s(make: Callable) -> None:
    """Two callers with a cache each do not meet, and nothing is left on the model."""
    model, run = make(1)
    positions, befores, expected = random_positions(4), (random_tokens(1), random_tokens(4)), []
    for before in befores:
        expected.append(at(run(changed_at(before, positions)), positions))
    caches = [model.new_cache() for _ in befores]
    for before, cache in zip(befores, caches, strict=True):
        run(before, cache=cache)
    for before, cache, logits in zip(befores, caches, expected, strict=True):
        after = at(changed_at(before, positions), positions)
        torch.testing.assert_close(run(after, positions, cache=cache), logits, **CLOSE)
    assert model._contexts is None
    assert not model.is_cache_enabled


def test_contexts_do_not_mix_and_switching_off_restores_the_model(make: Callable) -> None:
    model, run = make(1)
    before, other, positions = random_tokens(1), random_tokens(4), random_positions(4)
    plain = run(before)
    after = changed_at(before, positions)
    expected = at(run(after), positions)
    model.enable_cache(PartialCacheConfig(num_substeps=3))
    assert (model.partial_cache.num_substeps, model.is_cache_enabled) == (3, True)
    assert torch.equal(run(before), plain)
    run(other, context="uncond")
    torch.testing.assert_close(run(at(after, positions), positions), expected, **CLOSE)
    model.disable_cache()
    assert (model.partial_cache, model.is_cache_enabled) == (None, False)
    assert torch.equal(run(before), plain)
    assert not any(hasattr(slot, "_diffusers_hook") and slot._diffusers_hook.hooks for slot in model.modules())


def test_diffusers_own_caches_are_its_own(make: Callable) -> None:
    model, _ = make(2)
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    assert model.partial_cache is None
    with pytest.raises(ValueError, match="already been enabled"):
        model.enable_cache(PartialCacheConfig())
    model.disable_cache()
    model.enable_cache(PartialCacheConfig())
    with pytest.raises(ValueError, match="already been enabled"):
        model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match="already been enabled"):
        model.enable_cache(PartialCacheConfig())


def test_bad_input_is_one_clear_error(make: Callable) -> None:
    model, run = make(2)
    tokens, positions = random_tokens(1), random_positions(4)
    with pytest.raises(ValueError, match="partial caching off"):
        run(at(tokens, positions), positions)
    model.enable_cache(PartialCacheConfig())
    with pytest.raises(ValueError, match="need a full pass over the same 3 rows"):
        run(at(tokens, positions), positions)
    run(tokens[:2])
    with pytest.raises(ValueError, match="need a full pass over the same 3 rows"):
        run(at(tokens, positions), positions)
    for wrong in (positions[:, :2], positions.int()):
        with pytest.raises(ValueError, match=r"`positions` must be int64 of the shape of"):
            run(at(tokens, positions), wrong)
    for value in (0, 1.5):
        with pytest.raises(ValueError, match=r"`num_substeps` must be an integer of at least 1"):
            PartialCacheConfig(num_substeps=value)
    for value in (0.0, 1.0, -1):
        with pytest.raises(ValueError, match=r"`first_group_fraction` must be in \(0, 1\)"):
            PartialCacheConfig(first_group_fraction=value)
    for value in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"`full_pass_threshold` must be in \[0, 1\]"):
            PartialCacheConfig(full_pass_threshold=value)
