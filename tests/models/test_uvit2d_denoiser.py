"""Partial passes of diffusers' `UVit2DModel`: what they keep exactly, and that its own forward runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_text_to_image import CODES, MASK, transformer

from hf_maskdiff import DelayedCacheConfig
from hf_maskdiff.denoisers import UVit2DDenoiser, image_denoiser

SIZES = [{}, {"downsample": True, "upsample": True}, {"num_hidden_layers": 3, "num_res_blocks": 2}]
HEIGHT, WIDTH = 4, 6
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def condition(model: Any, batch_size: int = 2) -> dict[str, torch.Tensor]:
    noise, config = torch.Generator().manual_seed(3), model.config
    return {
        "encoder_hidden_states": torch.randn(batch_size, 3, config.encoder_hidden_size, generator=noise),
        "pooled_projections": torch.randn(batch_size, config.cond_embed_dim, generator=noise),
        "micro_conds": torch.tensor([[12.0, 8.0, 0, 0, 6]]).expand(batch_size, -1),
    }


def codes(batch_size: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, CODES, (batch_size, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(seed))


def at(logits: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[-1]))


def positions_of(batch_size: int, count: int, seed: int = 1) -> torch.Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(HEIGHT * WIDTH, generator=noise)[:count] for _ in range(batch_size)])


def num_hooks(model: Any) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


@pytest.fixture(params=SIZES, ids=["full grid", "halved grid", "deeper"])
def model(request: pytest.FixtureRequest) -> Any:
    return transformer(**request.param)


@torch.no_grad()
def test_a_full_pass_is_the_models_own(model: Any) -> None:
    denoiser, sample, given = image_denoiser(model), codes().index_fill(2, torch.tensor([1]), MASK), condition(model)
    own = model(
        sample,
        encoder_hidden_states=given["encoder_hidden_states"],
        pooled_text_emb=given["pooled_projections"],
        micro_conds=given["micro_conds"],
    )
    (logits,) = denoiser(sample, **given)
    assert torch.equal(logits, own.flatten(2).transpose(1, 2))
    assert torch.equal(denoiser(sample, **given, cache=denoiser.new_cache())[0], logits)
    assert num_hooks(model) == 0


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 5, HEIGHT * WIDTH])
def test_a_partial_pass_where_nothing_has_changed(model: Any, count: int) -> None:
    denoiser, given = UVit2DDenoiser(model), condition(model)
    cache, sample, positions = denoiser.new_cache(), codes(), positions_of(2, count)
    (logits,) = denoiser(sample, **given, cache=cache)
    (partial,) = denoiser(sample.flatten(1).gather(1, positions), **given, positions=positions, cache=cache)
    assert partial.shape == (2, count, CODES)
    torch.testing.assert_close(partial, at(logits, positions), **CLOSE)
    assert num_hooks(model) == 0


@torch.no_grad()
def test_a_partial_pass_of_all_positions_is_a_full_one(model: Any) -> None:
    denoiser, given = UVit2DDenoiser(model), condition(model)
    cache, positions = denoiser.new_cache(), positions_of(2, HEIGHT * WIDTH)
    denoiser(codes(), **given, cache=cache)
    new = codes(seed=5)
    (logits,) = denoiser(new, **given)
    (partial,) = denoiser(new.flatten(1).gather(1, positions), **given, positions=positions, cache=cache)
    torch.testing.assert_close(partial, at(logits, positions), **CLOSE)


@torch.no_grad()
def test_a_partial_pass_is_nearer_than_the_last_full_one_and_computes_the_queries_alone(model: Any) -> None:
    denoiser, given = UVit2DDenoiser(model), condition(model)
    cache, positions, sample = denoiser.new_cache(), positions_of(2, 5), codes()
    (before,) = denoiser(sample, **given, cache=cache)
    new = sample.flatten(1).scatter(1, positions, codes(seed=7).flatten(1)[:, :5]).view_as(sample)
    (exact,) = denoiser(new, **given)
    lengths = []
    hook = model.transformer_layers[0].register_forward_hook(lambda part, given, out: lengths.append(out.shape[1]))
    (partial,) = denoiser(new.flatten(1).gather(1, positions), **given, positions=positions, cache=cache)
    hook.remove()
    assert lengths == [5]
    wrong = [(logits - at(exact, positions)).abs().mean() for logits in (partial, at(before, positions))]
    assert 0 < wrong[0] < wrong[1]


@torch.no_grad()
def test_what_is_computed_but_not_kept(model: Any) -> None:
    denoiser, given = UVit2DDenoiser(model), condition(model)
    sample, positions = codes(), positions_of(2, 4)
    caches = [denoiser.new_cache() for _ in range(2)]
    for cache in caches:
        denoiser(sample, **given, cache=cache)
    new = codes(seed=9).flatten(1)
    denoiser(new.gather(1, positions), **given, positions=~positions, cache=caches[0])
    asked = positions_of(2, 6, seed=2)
    tokens = new.gather(1, asked)
    found = [denoiser(tokens, **given, positions=asked, cache=cache)[0] for cache in caches]
    assert torch.equal(*found)
    denoiser(new.gather(1, positions), **given, positions=positions, cache=caches[0])
    again = denoiser(tokens, **given, positions=asked, cache=caches[0])[0]
    assert not torch.allclose(again, found[1])


@torch.no_grad()
def test_what_partial_passes_gave_is_there_for_the_next(model: Any) -> None:
    denoiser, given = UVit2DDenoiser(model), condition(model)
    cache, positions, new = denoiser.new_cache(), positions_of(2, 8), codes(seed=6).flatten(1)
    denoiser(codes(), **given, cache=cache)
    (first,) = denoiser(new.gather(1, positions), **given, positions=positions, cache=cache)
    some = positions[:, :2]
    (again,) = denoiser(new.gather(1, some), **given, positions=some, cache=cache)
    torch.testing.assert_close(again, first[:, :2], **CLOSE)


@torch.no_grad()
def test_the_text_is_read_once(model: Any) -> None:
    denoiser, given = UVit2DDenoiser(model), condition(model)
    cache, positions, sample = denoiser.new_cache(), positions_of(2, 5), codes()
    (logits,) = denoiser(sample, **given, cache=cache)
    lengths = []
    hook = model.encoder_proj.register_forward_hook(lambda part, given, out: lengths.append(out.shape[1]))
    told = given | {"encoder_hidden_states": torch.full_like(given["encoder_hidden_states"], torch.nan)}
    (partial,) = denoiser(sample.flatten(1).gather(1, positions), **told, positions=positions, cache=cache)
    hook.remove()
    assert lengths == [0]
    torch.testing.assert_close(partial, at(logits, positions), **CLOSE)


@torch.no_grad()
def test_rows_that_are_taken_and_put_back(model: Any) -> None:
    denoiser, given = UVit2DDenoiser(model), condition(model)
    whole, row = denoiser.new_cache(), torch.tensor([1])
    denoiser(codes(), **given, cache=whole)
    part, own = whole.take(row), {name: values[1:] for name, values in given.items()}
    positions, tokens = positions_of(1, 5), codes(1, seed=8).flatten(1)[:, :5]
    (alone,) = denoiser(tokens, **own, positions=positions, cache=part)
    assert all(len(states) == 1 for states in part.text)
    both = whole.take(torch.tensor([0, 1]))
    (together,) = denoiser(tokens.expand(2, -1), **given, positions=positions.expand(2, -1), cache=both)
    torch.testing.assert_close(together[1:], alone, **CLOSE)
    whole.put(row, part)
    asked = positions_of(2, 3, seed=4)
    new = codes(seed=10).flatten(1).gather(1, asked)
    (after,) = denoiser(new, **given, positions=asked, cache=whole)
    (same,) = denoiser(new, **given, positions=asked, cache=both)
    torch.testing.assert_close(after[1], same[1], **CLOSE)
    assert not torch.allclose(after[0], same[0])


@torch.no_grad()
def test_cells_of_a_halved_grid_are_computed_once() -> None:
    denoiser = UVit2DDenoiser(transformer(downsample=True, upsample=True))
    positions = torch.tensor([[0, 1, WIDTH, 3], [5, ~0, ~2, WIDTH + 5]])
    cells = denoiser._cells_of(positions, (HEIGHT, WIDTH))
    assert [sorted(row[row >= 0].tolist()) for row in cells] == [[0, 1], [2]]
    assert all(len({cell if cell >= 0 else ~cell for cell in row.tolist()}) == 4 for row in cells)
    everywhere = torch.arange(HEIGHT * WIDTH).expand(2, -1)
    assert denoiser._cells_of(everywhere, (HEIGHT, WIDTH)).sort(1)[0].tolist() == [list(range(6))] * 2


@torch.no_grad()
def test_an_error_leaves_no_hook() -> None:
    model = transformer()
    denoiser, given = UVit2DDenoiser(model), condition(model)
    with pytest.raises(RuntimeError):
        denoiser(codes(), **given | {"encoder_hidden_states": torch.zeros(2, 3, 5)}, cache=denoiser.new_cache())
    assert num_hooks(model) == 0
    with pytest.raises(ValueError, match=r"`positions` need a full pass over the same 2 rows before them"):
        denoiser(codes().flatten(1)[:, :2], **given, positions=positions_of(2, 2), cache=denoiser.new_cache())
    assert num_hooks(model) == 0


def test_caches_of_diffusers_are_refused() -> None:
    denoiser = UVit2DDenoiser(transformer())
    with pytest.raises(
        ValueError, match=r"takes a PartialCacheConfig, DelayedCacheConfig or GreedyCacheConfig, got str"
    ):
        denoiser.enable_cache("first block")
    denoiser.enable_cache(DelayedCacheConfig())
    assert denoiser.is_cache_enabled
    denoiser.disable_cache()
    assert not denoiser.is_cache_enabled
