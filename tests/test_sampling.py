"""Noise that belongs to a position, draws that are exact, filters that are those of transformers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_data import later_cases, read
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TopKLogitsWarper, TopPLogitsWarper, TypicalLogitsWarper

from hf_maskdiff.draws import draw_index, tempered_
from hf_maskdiff.orders import log_confidence, log_moment, negative_entropy
from hf_maskdiff.sampling import (
    Marginals,
    Purpose,
    chunked_inverse_cdf,
    draw_keys,
    gumbel,
    inverse_cdf,
    position_noise,
)

CPU = torch.device("cpu")
SMALLEST = 2.0**-52


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- keys and noise ---------------------------------------------------------------------------------------------------


def reference_noise(key: int, position: int, purpose: int) -> float:
    """SplitMix64 in Python's integers."""
    wide = 2**64 - 1
    value = (key + 0x9E3779B97F4A7C15 * (position * len(Purpose) + purpose)) & wide
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & wide
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & wide
    value ^= value >> 31
    signed = value - 2**64 if value >= 2**63 else value
    return ((signed >> 13) + 2**50 + 0.5) / 2**51


@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 40), st.sampled_from(list(Purpose)))
def test_noise_is_a_function_of_key_position_and_purpose(key: int, length: int, purpose: Purpose) -> None:
    noise = position_noise(torch.tensor([key]), length, purpose)
    assert noise.dtype == torch.float64
    assert noise.tolist() == [[[reference_noise(key, position, purpose) for position in range(length)]]]


def test_noise_is_the_same_in_any_batch_and_at_any_length() -> None:
    keys = draw_keys(seeded(0), 7, CPU)
    noise = position_noise(keys, 50, *Purpose)
    assert noise.shape == (len(Purpose), 7, 50)
    shuffled = torch.randperm(7, generator=seeded(1))
    assert torch.equal(position_noise(keys[shuffled], 30, *Purpose), noise[:, shuffled, :30])
    for purpose in Purpose:
        assert torch.equal(position_noise(keys[3:4], 50, purpose)[0], noise[purpose, 3:4])


def test_noise_is_uniform_and_purposes_and_keys_are_independent() -> None:
    keys = torch.arange(200)  # alike but for a few bits
    noise = position_noise(keys, 200, *Purpose)
    for stream in noise:
        assert kstest(stream.flatten().numpy(), "uniform").pvalue > 1e-4
    flat = noise.flatten(1)
    neighbours = [noise[:, :, :-1].flatten(), noise[:, :, 1:].flatten()]
    rows = [noise[:, :-1].flatten(), noise[:, 1:].flatten()]
    streams = [(flat[a], flat[b]) for a in range(len(Purpose)) for b in range(a)]
    for first, second in [*streams, neighbours, rows]:
        assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 5 / len(first) ** 0.5
    assert len(noise.unique()) == noise.numel()


def test_noise_lies_in_the_open_interval() -> None:
    """No key can give 0 or 1: the mapping from bits is tried at its ends, by undoing the hash."""

    def undo_xor_shift(value: int, bits: int) -> int:
        result = value
        for _ in range(64 // bits + 1):
            result = value ^ (result >> bits)
        return result

    wide = 2**64 - 1
    for hashed, expected in ((2**63, SMALLEST), (2**63 - 1, 1 - SMALLEST), (0, 0.5 + SMALLEST), (wide, 0.5 - SMALLEST)):
        value = undo_xor_shift(hashed, 31)
        value = undo_xor_shift(value * pow(0x94D049BB133111EB, -1, 2**64) & wide, 27)
        key = undo_xor_shift(value * pow(0xBF58476D1CE4E5B9, -1, 2**64) & wide, 30)
        key = key - 2**64 if key >= 2**63 else key
        noise = position_noise(torch.tensor([key]), 1, Purpose.CHOICE)
        assert noise.item() == expected
        assert gumbel(noise).isfinite().all()


def test_gumbel_noise() -> None:
    uniform = position_noise(torch.arange(100), 100, Purpose.CHOICE).flatten()
    noise = gumbel(uniform.clone())
    torch.testing.assert_close(noise, -torch.log(-torch.log(uniform)))
    assert kstest(noise.numpy(), "gumbel_r").pvalue > 1e-4


def test_a_row_draws_its_key_from_its_own_generator() -> None:
    keys = draw_keys([seeded(seed) for seed in range(5)], 5, CPU)
    alone = [draw_keys([seeded(seed)], 1, CPU) for seed in (4, 0, 3, 1, 2)]
    assert keys[[4, 0, 3, 1, 2]].tolist() == torch.cat(alone).tolist()
    one = seeded(3)
    first, second = draw_keys(one, 5, CPU), draw_keys(one, 5, CPU)
    assert len({*first.tolist(), *second.tolist()}) == 10
    assert torch.equal(draw_keys(seeded(3), 5, CPU), first)
    # One generator for one row is the same as a list of it.
    assert torch.equal(draw_keys(seeded(9), 1, CPU), draw_keys([seeded(9)], 1, CPU))


def test_global_generator_is_the_default() -> None:
    torch.manual_seed(5)
    keys = draw_keys(None, 4, CPU)
    assert not torch.equal(draw_keys(None, 4, CPU), keys)
    torch.manual_seed(5)
    assert torch.equal(draw_keys(None, 4, CPU), keys)


# --- exact draws ------------------------------------------------------------------------------------------------------


Inverse = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
both_inverses = pytest.mark.parametrize("inverse", [inverse_cdf, chunked_inverse_cdf])


def grid(size: int) -> torch.Tensor:
    return (torch.arange(size, dtype=torch.float64) + 0.5) / size


@both_inverses
@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 8, 9, 15, 16, 17, 63, 64, 65, 255, 300, 1025])
def test_a_grid_of_uniforms_gives_the_exact_frequencies(inverse: Inverse, tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    for zeros in (0.0, 0.5, 0.95):
        masses = rng.integers(1, 20, tokens) * (rng.random(tokens) >= zeros)
        masses[rng.integers(tokens)] += 1  # at least one
        total = int(masses.sum())
        probs = torch.tensor(masses, dtype=torch.float32)  # not normalised: the draw is relative to the total
        drawn = inverse(probs.expand(3 * total, tokens), grid(3 * total))
        assert np.array_equal(np.bincount(drawn.numpy(), minlength=tokens), 3 * masses)
        assert (drawn.diff() >= 0).all()


@both_inverses
def test_the_cumulative_mass_must_exceed_the_level(inverse: Inverse) -> None:
    probs = torch.tensor([[1.0, 1.0, 0.0, 2.0, 4.0]]).expand(8, 5)
    assert inverse(probs, torch.arange(8).double() / 8 + SMALLEST).tolist() == [0, 1, 3, 3, 4, 4, 4, 4]
    assert inverse(probs[1:], torch.arange(1, 8).double() / 8).tolist() == [1, 3, 3, 4, 4, 4, 4]
    assert inverse(probs[1:], torch.arange(1, 8).double() / 8 - SMALLEST).tolist() == [0, 1, 3, 3, 4, 4, 4]


@both_inverses
def test_impossible_tokens_are_never_drawn(inverse: Inverse) -> None:
    extremes = [SMALLEST, 3 * SMALLEST, 0.25, 0.5, 0.75, 1 - 3 * SMALLEST, 1 - SMALLEST]
    extremes = torch.tensor(extremes, dtype=torch.float64)
    for tokens in (5, 64, 100, 4097):
        for only in (0, 1, tokens // 2, tokens - 2, tokens - 1):
            probs = torch.zeros(len(extremes), tokens)
            probs[:, only] = 0.3
            assert (inverse(probs, extremes) == only).all()
        alternating = (torch.arange(tokens) % 2).float().expand(len(extremes), tokens) / 3
        assert (inverse(alternating, extremes) % 2 == 1).all()
        # Masses of all magnitudes, in blocks that end in zeros.
        probs = torch.rand(400, tokens, generator=seeded(tokens)) ** 20
        probs *= torch.rand(400, tokens, generator=seeded(1)) < 0.2
        probs[:, 1] = 1e-38
        for uniform in extremes:
            drawn = inverse(probs, uniform.expand(400))
            assert (probs.gather(1, drawn[:, None]) > 0).all()


@both_inverses
def test_a_tail_keeps_its_mass(inverse: Inverse) -> None:
    """1e-3 over 50,000 tokens after one that has the rest: a thousandth of the grid falls into it, and spreads."""
    probs = torch.full((1, 50_001), 1e-3 / 50_000)
    probs[0, 0] = 0.999
    drawn = inverse(probs.expand(100, -1), 0.999 + 1e-3 * grid(100))
    assert (drawn > 0).all()
    torch.testing.assert_close(drawn.double(), 50_000 * grid(100), atol=50, rtol=0)


@both_inverses
def test_rows_without_a_distribution_are_marked(inverse: Inverse) -> None:
    nothing = torch.tensor([[0.5, torch.nan], [0.0, 0.0], [0.5, 0.5]])
    assert inverse(nothing, torch.full((3,), 0.3).double()).tolist() == [2, 2, 0]


def test_drawing_at_a_temperature() -> None:
    logits = torch.randn(1, 1, 6, generator=seeded(0)) * 2
    marginals = Marginals(logits, mask_token_id=5)
    size = 20_000
    for beta in (1.0, 1.5, 4.0, 1e6):
        drawn = marginals.draw(torch.zeros(size, dtype=torch.int64), grid(size), torch.full((size,), beta).double())
        share = torch.bincount(drawn, minlength=6).double() / size
        expected = torch.softmax(logits[0, 0, :5].double() * beta, -1)
        torch.testing.assert_close(share[:5], expected, atol=1.01 / size, rtol=0)
        assert share[5] == 0


@pytest.mark.parametrize("tokens", [300, 2000])
def test_a_sharp_draw_is_that_of_any_other(tokens: int) -> None:
    """Where one token has all the mass, nothing is summed; ties and broken rows are drawn as at any temperature."""
    logits = torch.randn(12, tokens, generator=seeded(0))
    logits[1, :-1] = -torch.inf
    tied, broken = logits.clone(), logits.clone()
    tied[3, [5, 7, 200]], broken[4, 9], broken[5], broken[6, [1, 2]] = 9.0, torch.nan, -torch.inf, 9.0
    for sharpness in (1e6, 1e30):
        beta, found, rows = torch.full((12,), sharpness), set(), torch.arange(12)
        for uniform in torch.rand(9, 12, dtype=torch.float64, generator=seeded(1)):
            for block in (logits, tied, broken):
                marginals = Marginals(block[None], mask_token_id=tokens)
                made = list[int]()

                def make(noise: torch.Tensor = uniform, made: list[int] = made) -> torch.Tensor:
                    made.append(1)
                    return noise

                drawn = marginals.draw(rows, make, beta)
                assert bool(made) == (block is not logits)  # nothing is left to chance there
                assert torch.equal(drawn, draw_index(tempered_(block.clone(), beta[:, None]), uniform))
                assert block is not logits or torch.equal(drawn, logits.argmax(-1))
                found.add(int(drawn[3])) if block is tied else None
        assert found == {5, 7, 200}


def test_draw_all_gives_tokens_and_their_log_probabilities() -> None:
    logits = 3 * torch.randn(4, 9, 12, generator=seeded(0))
    wanted = torch.rand(4, 9, generator=seeded(1)) < 0.6
    uniform = torch.rand(4, 9, generator=seeded(2), dtype=torch.float64)
    marginals = Marginals(logits, mask_token_id=3, codebook_size=10)
    tokens, log_probs = marginals.draw_all(wanted, uniform)
    allowed = logits[..., :10].double().clone()
    allowed[..., 3] = -torch.inf
    exact = allowed.log_softmax(-1)
    drawn = exact.gather(-1, tokens[..., None])[..., 0]
    torch.testing.assert_close(log_probs[wanted], drawn[wanted], atol=1e-6, rtol=0)
    expected = torch.searchsorted(exact[wanted].exp().cumsum(-1), uniform[wanted][:, None], right=True)[:, 0]
    assert torch.equal(tokens[wanted], expected)
    # One at a time, as `draw` does at beta 1.
    rows = wanted.flatten().nonzero()[:, 0]
    assert torch.equal(marginals.draw(rows, uniform.flatten()[rows], torch.ones(len(rows))), tokens[wanted])


# --- what may be drawn ------------------------------------------------------------------------------------------------


def all_blocks(marginals: Marginals) -> torch.Tensor:
    batch_size, length, _ = marginals.logits.shape
    rows = torch.arange(batch_size * length)
    return marginals.reduce(lambda block: (block,), rows)[0].view(batch_size, length, -1)


@pytest.mark.parametrize(
    ("mask_token_id", "codebook_size", "allowed"),
    [
        (11, None, range(11)),  # the last column
        (11, 10, range(10)),
        (20, None, range(12)),  # outside the columns, as aMUSEd has it
        (20, 8, range(8)),
        (20, 30, range(12)),  # a codebook larger than the columns
        (4, None, [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]),
        (0, 6, [1, 2, 3, 4, 5]),
        (7, 8, range(7)),
    ],
)
@pytest.mark.parametrize("layout", ["row", "channel"])
def test_mask_and_padding_are_out_of_reach(
    mask_token_id: int, codebook_size: int | None, allowed: list[int], layout: str
) -> None:
    logits = torch.randn(2, 3, 12, generator=seeded(0))
    if layout == "channel":  # a view with other strides, as from (batch_size, V, height, width)
        logits = logits.transpose(1, 2).contiguous().transpose(1, 2)
    before = logits.clone()
    blocks = all_blocks(Marginals(logits, mask_token_id, codebook_size))
    expected = torch.full((2, 3, 12), -torch.inf)
    expected[..., list(allowed)] = logits[..., list(allowed)]
    torch.testing.assert_close(blocks.softmax(-1), expected.softmax(-1)[..., : blocks.shape[-1]], rtol=0, atol=0)
    assert not expected.softmax(-1)[..., blocks.shape[-1] :].any()
    assert torch.equal(logits, before)


def test_forbidden_columns_are_not_even_read() -> None:
    logits = torch.randn(2, 3, 12, generator=seeded(0))
    spoiled = logits.clone()
    spoiled[..., 4] = torch.nan
    spoiled[..., 10:] = torch.inf
    rows, uniform = torch.arange(6), torch.rand(6, generator=seeded(1), dtype=torch.float64)
    clean, dirty = (Marginals(z, 4, 10).draw(rows, uniform, torch.ones(6)) for z in (logits, spoiled))
    assert torch.equal(clean, dirty)
    assert (clean >= 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize(("top_k", "top_p"), [(5, None), (1, None), (None, 0.7), (None, 1.0), (None, 1e-9), (20, 0.8)])
def test_filters_are_those_of_transformers(temperature: float, top_k: int | None, top_p: float | None) -> None:
    logits = 2 * torch.randn(8, 16, 50, generator=seeded(0))
    scores = (logits / temperature).flatten(0, 1)
    if top_k is not None:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p is not None:
        scores = TopPLogitsWarper(top_p)(None, scores)
    blocks = all_blocks(Marginals(logits, 50, temperature=temperature, top_k=top_k, top_p=top_p))
    assert torch.equal(blocks.flatten(0, 1), scores)


@pytest.mark.parametrize("typical_p", [0.15, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("others", [{}, {"top_k": 20}, {"top_k": 30, "top_p": 0.8, "temperature": 0.7}])
def test_typical_tokens_are_those_of_transformers(typical_p: float, others: dict[str, Any]) -> None:
    logits = 3 * torch.randn(8, 16, 50, generator=seeded(0))
    logits[..., 7] = 30.0  # the mask, which counts for nothing
    scores = logits.masked_fill(torch.arange(50) == 7, -torch.inf).flatten(0, 1) / others.get("temperature", 1.0)
    if "top_k" in others:
        scores = TopKLogitsWarper(others["top_k"])(None, scores)
    if "top_p" in others:
        scores = TopPLogitsWarper(others["top_p"])(None, scores)
    if typical_p < 1:
        scores = TypicalLogitsWarper(typical_p)(None, scores)
    blocks = all_blocks(Marginals(logits, 7, typical_p=typical_p, **others))
    assert torch.equal(blocks.flatten(0, 1), scores)


def test_the_most_probable_token_may_not_be_typical() -> None:
    """Here the entropy is 1.98 nats, next to which the information of the 0.4 is 0.92 and of the others 2.30."""
    logits = torch.tensor([[[0.4, *[0.1] * 6]]]).log()
    assert all_blocks(Marginals(logits, 99, typical_p=0.3)).isfinite().tolist() == [[[False] + [True] * 6]]


def test_broken_rows_go_through_the_filters_as_they_are() -> None:
    logits = torch.tensor([[[0.0, torch.nan, 1.0], [0.0, torch.inf, 1.0], [1.0, 2.0, 3.0]]])
    blocks = all_blocks(Marginals(logits, 99, typical_p=0.4))
    assert blocks[0, :2].softmax(-1).isnan().all()
    assert blocks[0, 2].isfinite().any()


@pytest.mark.parametrize("path", later_cases("vampnet/typical_filter.safetensors"))
def test_the_typical_filter_is_vampnet_s(path: Path) -> None:
    tensors, _ = read(path)
    found = {re.fullmatch(r"filtered_mass([\d.]+)_min(\d+)", name) for name in tensors} - {None}
    assert found
    for match in found:
        logits, typical = tensors["logits"], {"typical_p": float(match[1]), "typical_min_tokens": int(match[2])}
        blocks = all_blocks(Marginals(logits, logits.shape[-1], **typical))
        assert torch.equal(blocks.isfinite(), tensors[match[0]].isfinite())


def test_so_many_typical_tokens_at_least() -> None:
    """Those nearest to the entropy: the 0.2, then the 0.4, then all others at once, which tie."""
    logits = torch.tensor([[[0.4, 0.2, *[0.1] * 4]]]).log()
    kept = lambda least: all_blocks(Marginals(logits, 99, typical_p=0.05, typical_min_tokens=least)).isfinite()  # noqa: E731
    assert kept(1).tolist() == [[[False, True, False, False, False, False]]]
    assert kept(2).tolist() == [[[True, True, False, False, False, False]]]
    assert kept(3).all()
    assert kept(99).all()


def test_filters_at_the_edges() -> None:
    logits = torch.tensor([[[3.0, 1.0, 3.0, 2.0, 9.0]]])  # column 4 is the mask, and counts for nothing
    kept = lambda **filters: all_blocks(Marginals(logits, 4, **filters)).isfinite()[0, 0].tolist()  # noqa: E731
    assert kept(top_k=1) == [True, False, True, False]  # ties with the k-th stay
    assert kept(top_k=100) == [True, True, True, True]
    assert kept(top_p=0.1).count(True) == 1
    assert kept(top_k=3, top_p=1.0) == [True, False, True, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_dtype_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits = (4 * torch.randn(3, 5, 40, generator=seeded(0))).to(dtype)
    wanted = torch.ones(3, 5, dtype=torch.bool)
    ours, upcast = Marginals(logits, 39), Marginals(logits.float(), 39)
    for function in (log_confidence, negative_entropy):
        assert torch.equal(ours.score(function, wanted), upcast.score(function, wanted))
    score = ours.score(lambda block: log_moment(block, 3.0), wanted)
    assert score.dtype == torch.float32
    exact = torch.logsumexp(3.0 * logits[..., :39].double().log_softmax(-1), -1) / 3.0
    torch.testing.assert_close(score.double(), exact, atol=2e-5, rtol=0)
    uniform = torch.rand(15, generator=seeded(1), dtype=torch.float64)
    rows = torch.arange(15)
    assert torch.equal(ours.draw(rows, uniform, torch.ones(15)), upcast.draw(rows, uniform, torch.ones(15)))


def test_scores_are_of_the_wanted_positions_and_of_any_block_size() -> None:
    logits = torch.randn(3, 700, 1000, generator=seeded(0))  # 2.1M elements: several blocks
    wanted = torch.rand(3, 700, generator=seeded(1)) < 0.5
    score = Marginals(logits, 1000).score(log_confidence, wanted)
    expected = logits.log_softmax(-1).amax(-1)
    torch.testing.assert_close(score[wanted], expected[wanted])
    assert not score[~wanted].any()


@pytest.mark.parametrize("nothing", ["nothing wanted", "no position"])
def test_nothing_to_score(nothing: str) -> None:
    length = 4 if nothing == "nothing wanted" else 0
    marginals = Marginals(torch.randn(2, length, 6), 5)
    wanted = torch.zeros(2, length, dtype=torch.bool)
    score = marginals.score(log_confidence, wanted)
    assert score.dtype == torch.float32
    assert score.tolist() == [[0.0] * length] * 2
    tokens, log_probs = marginals.draw_all(wanted, torch.rand(2, length, dtype=torch.float64))
    assert tokens.shape == log_probs.shape == (2, length)


class LargestTensor(TorchDispatchMode):
    """The most memory that any one operation's result has taken, views of its input not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().data_ptr() not in given:
                self.bytes = max(self.bytes, leaf.numel() * leaf.element_size())
        return result


@pytest.mark.parametrize("layout", ["row", "channel"])
def test_no_copy_of_the_logits_is_made(layout: str) -> None:
    shape = (2, 512, 8192)  # 8.4M logits
    logits = torch.zeros(shape, dtype=torch.bfloat16)
    if layout == "channel":
        logits = torch.zeros(2, 8192, 512, dtype=torch.bfloat16).transpose(1, 2)
    wanted, uniform = torch.ones(2, 512, dtype=torch.bool), torch.rand(2, 512, dtype=torch.float64)
    marginals = Marginals(logits, mask_token_id=100, codebook_size=8000)
    with LargestTensor() as largest:
        marginals.score(lambda block: log_moment(block, 1.5), wanted)
        marginals.draw_all(wanted, uniform)
        marginals.draw(torch.arange(1024), uniform.flatten(), torch.ones(1024))
    assert 0 < largest.bytes <= 8 * 2**18  # a block, at most in float64


def test_blocks_cover_the_rows_once_and_in_order() -> None:
    marginals = Marginals(torch.arange(2 * 300.0).view(2, 300, 1).expand(2, 300, 5000), 5000)
    rows = torch.randperm(600, generator=seeded(0))[:450]
    sizes = []

    def parts(block: torch.Tensor, column: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(block))
        return block[:, 0].long(), column

    first, column = marginals.reduce(parts, rows, rows.double())
    assert len(sizes) > 1
    assert torch.equal(first, rows)
    assert torch.equal(column, rows.double())
