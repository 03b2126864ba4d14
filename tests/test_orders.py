"""Scores against float64, fixed orders against golden ones, the merge against plain Python."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from math import inf, log
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from hf_maskdiff.orders import (
    apart_first,
    explore_first,
    halton_order,
    largest_prefix,
    log_confidence,
    log_margin,
    log_moment,
    negative_entropy,
    radical_inverse,
    ranking,
    spread_ranks,
)

CPU = torch.device("cpu")


def random_logits(rows: int = 64, tokens: int = 500, scale: float = 4.0, seed: int = 0) -> torch.Tensor:
    """Float32 logits, far from normalised, a third of them forbidden (-inf)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, tokens, generator=generator) * scale + 50 * torch.randn(rows, 1, generator=generator)
    forbidden = torch.rand(rows, tokens, generator=generator) < 1 / 3
    return logits.masked_fill(forbidden, -torch.inf)


def exact_log_probs(logits: torch.Tensor) -> torch.Tensor:
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize("scale", [0.01, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("beta", [1.0, 1.01, 1.1667, 2.0, 3.5, 5.0])
def test_log_moment_is_accurate(beta: float, scale: float) -> None:
    logits = random_logits(scale=scale)
    exact = torch.logsumexp(beta * exact_log_probs(logits), -1)
    score = log_moment(logits.clone(), beta).double() * beta
    assert (score - exact).abs().max() < 2e-5


def test_log_moment_tends_to_confidence() -> None:
    logits = random_logits()
    score = log_moment(logits.clone(), 1e6 + 1)
    assert score.isfinite().all()
    torch.testing.assert_close(score.double(), exact_log_probs(logits).amax(-1), atol=2e-5, rtol=0)
    # A certain position scores 0, the highest there is, also in the limit.
    certain = torch.tensor([[0.0, -torch.inf, -torch.inf], [100.0, 0.0, -torch.inf]])
    for beta in (1.5, 1e6):
        assert log_moment(certain.clone(), beta).tolist() == [0.0, 0.0]


def test_confidence_margin_and_entropy() -> None:
    logits = random_logits(scale=2.0)
    log_probs = exact_log_probs(logits)
    probs = log_probs.exp()
    two = probs.topk(2).values
    exact = {
        log_confidence: log_probs.amax(-1),
        log_margin: (two[:, 0] - two[:, 1]).log(),
        negative_entropy: (probs * log_probs.clamp(min=-1e300)).sum(-1),
    }
    for function, expected in exact.items():
        torch.testing.assert_close(function(logits.clone()).double(), expected, atol=3e-5, rtol=1e-4)


def test_certainties_at_the_edges() -> None:
    certain = torch.tensor([[-torch.inf, 3.0, -torch.inf]])
    uniform = torch.tensor([[5.0, 5.0, -torch.inf]])
    assert log_confidence(certain.clone()).item() == log_margin(certain.clone()).item() == 0
    assert negative_entropy(certain.clone()).item() == 0
    assert log_confidence(uniform.clone()).item() == pytest.approx(-log(2))
    assert log_margin(uniform.clone()).item() == -torch.inf
    assert negative_entropy(uniform.clone()).item() == pytest.approx(-log(2))
    one_token = torch.tensor([[2.0], [-3.0]])
    for function in (log_confidence, log_margin, negative_entropy):
        assert function(one_token.clone()).tolist() == [0.0, 0.0]


def test_nan_reaches_the_score() -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        block = torch.full((1, 3), bad)
        for function in (log_confidence, log_margin, negative_entropy):
            assert function(block.clone()).isnan().all(), (function, bad)
        assert log_moment(block.clone(), 2.0).isnan().all(), bad


# --- fixed orders -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(2, 5))
def test_radical_inverse_mirrors_the_digits(index: int, base: int) -> None:
    digits = []
    rest = index
    while rest:
        rest, digit = divmod(rest, base)
        digits.append(digit)
    mirrored = sum((Fraction(digit, base ** (k + 1)) for k, digit in enumerate(digits)), Fraction(0))
    assert Fraction(*radical_inverse(index, base)) == mirrored


@given(st.integers(1, 20), st.integers(1, 20))
def test_halton_order_visits_every_cell_once(height: int, width: int) -> None:
    order = halton_order(height, width)
    assert sorted(order) == [(row, column) for row in range(height) for column in range(width)]


def test_the_first_cells_of_the_halton_order_by_hand() -> None:
    """Points 1 to 4: halves, then quarters, of the rows; thirds, then ninths, of the columns. Point 0 is not there."""
    points = [(1 / 2, 1 / 3), (1 / 4, 2 / 3), (3 / 4, 1 / 9), (1 / 8, 4 / 9)]
    assert halton_order(16, 18)[:4] == [(round(16 * a), round(18 * b)) for a, b in points]
    assert halton_order(16, 16)[:4] == [(8, 5), (4, 10), (12, 1), (2, 7)]


def test_halton_order_is_that_of_the_original(golden_folder: Path) -> None:
    golden = load_file(golden_folder / "samplers" / "halton_orders.safetensors")
    sides = [int(key.split("_")[1]) for key in golden if key.endswith("_flat")]
    assert sides
    for side in sides:
        assert halton_order(side, side) == [tuple(cell) for cell in golden[f"halton_{side}"].tolist()]
        ranks = spread_ranks((side, side), CPU)
        assert ranks[golden[f"halton_{side}_flat"]].tolist() == list(range(side**2))


def test_halton_order_spreads() -> None:
    """A quarter of a grid, taken in this order, leaves no cell far from all taken ones."""
    taken = torch.tensor(halton_order(16, 16)[:64])
    cells = torch.cartesian_prod(torch.arange(16), torch.arange(16))
    nearest = torch.cdist(cells.float(), taken.float()).amin(1)
    in_rows = torch.cdist(cells.float(), cells[:64].float()).amin(1)
    assert nearest.max() <= 4 < in_rows.max()


@given(st.integers(1, 60), st.integers(1, 60))
def test_order_in_a_sequence_does_not_depend_on_its_length(length: int, longer: int) -> None:
    ranks, padded = spread_ranks((length,), CPU), spread_ranks((length + longer,), CPU)
    assert sorted(ranks.tolist()) == list(range(length))
    assert torch.equal(padded[:length].argsort(), ranks.argsort())


def test_bit_reversed_order() -> None:
    assert spread_ranks((8,), CPU).argsort().tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    assert spread_ranks((6,), CPU).argsort().tolist() == [0, 4, 2, 1, 5, 3]


# --- choosing and merging ---------------------------------------------------------------------------------------------


@given(st.data())
def test_ranking_is_a_sort(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 10))
    values = st.sampled_from([-torch.inf, -2.0, -1.0, 0.0, 0.5, 3.0])
    scores = data.draw(st.lists(values, min_size=length, max_size=length))
    candidates = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
    expected = sorted(range(length), key=lambda i: (not candidates[i], -scores[i] if candidates[i] else 0, i))
    for dtype in (torch.float32, torch.float64):
        ranked = ranking(torch.tensor([scores], dtype=dtype), torch.tensor([candidates]))
        assert ranked.tolist() == [expected]


def test_nan_ranks_first_among_candidates() -> None:
    scores = torch.tensor([[1.0, torch.nan, torch.nan, 2.0]])
    assert ranking(scores, torch.tensor([[True, False, True, True]]))[0, :3].tolist() == [2, 3, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(data=st.data())
def test_merging_is_taking_turns(dtype: torch.dtype, data: st.DataObject) -> None:
    length, rows = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
    order = st.permutations(range(length))
    exploration = data.draw(st.lists(order, min_size=rows, max_size=rows))
    exploitation = data.draw(st.lists(order, min_size=rows, max_size=rows))
    explored = data.draw(st.lists(st.integers(0, length), min_size=rows, max_size=rows))
    expected = []
    for first, second, m in zip(exploration, exploitation, explored, strict=True):
        merged = list(first[:m])
        merged += [position for position in second if position not in merged]
        expected.append(merged)
    scores = -torch.tensor(exploitation).argsort(-1).to(dtype)
    merged = explore_first(scores, torch.tensor(exploration), torch.tensor(explored))
    assert ranking(merged, torch.ones(rows, length, dtype=torch.bool)).tolist() == expected


def walked(order: list[int], candidates: list[bool], shape: tuple[int, ...], distance: int) -> list[int]:
    """Down the order in plain Python, one position after the other."""
    width = shape[-1] if len(shape) == 2 else max(shape)
    taken: list[int] = []
    for p in (p for p in order if candidates[p]):
        if all(max(abs(p // width - q // width), abs(p % width - q % width)) >= distance for q in taken):
            taken.append(p)
    passed_over = [p for p in order if candidates[p] and p not in taken]
    return taken + passed_over + [p for p in order if not candidates[p]]


@given(st.data())
def test_positions_apart_are_those_of_a_walk_down_the_order(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(1,), (6,), (9,), (17,), (4, 3), (3, 6)]))
    length, rows, distance = shape[0] * shape[-1] ** (len(shape) - 1), 3, data.draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    scores = {
        "random": torch.rand(rows, length, generator=generator),
        "reading order": -torch.arange(length).double().expand(rows, -1),  # each waits for the one before
        "waves": torch.arange(length).double().mul(0.7).sin().expand(rows, -1),
    }[data.draw(st.sampled_from(["random", "reading order", "waves"]))]
    candidates = torch.rand(rows, length, generator=generator) < data.draw(st.sampled_from([0.4, 1.0]))
    ranked = ranking(scores, candidates)
    expected = [
        walked(order, few, shape, distance) for order, few in zip(ranked.tolist(), candidates.tolist(), strict=True)
    ]
    assert apart_first(ranked, candidates, shape, distance).tolist() == expected
    for count in range(1, length + 1):  # as many rounds as an accelerator runs
        found = apart_first(ranked, candidates, shape, distance, count).tolist()
        assert [row[:count] for row in found] == [row[:count] for row in expected]
        assert [sorted(row) for row in found] == [list(range(length))] * rows


@pytest.mark.parametrize("shape", [(24,), (4, 6)])
def test_positions_apart_are_found_without_a_look_at_values(shape: tuple[int, ...]) -> None:
    """On the device that has no values, every look at one is an error."""
    ranked = torch.arange(24, device="meta").expand(2, -1)
    found = apart_first(ranked, torch.ones(2, 24, dtype=torch.bool, device="meta"), shape, 3, 5)
    assert (found.device.type, found.shape, found.dtype) == ("meta", (2, 24), torch.int64)


@given(st.data())
def test_largest_prefix_is_the_largest_set_within_the_bound(data: st.DataObject) -> None:
    """Of all sets of entries, not of prefixes alone, none that keeps to the bound has more."""
    quarters = st.integers(0, 12).map(lambda n: n / 4)  # sums are exact, so that ties with the bound are ties
    length, rows = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 3))
    costs = [sorted(data.draw(st.lists(quarters, min_size=length, max_size=length))) for _ in range(rows)]
    bound = data.draw(st.one_of(quarters, st.just(inf)))
    expected = [
        max(len(s) for n in range(1, length + 1) for s in combinations(row, n) if sum(s) - max(s) <= bound)
        for row in costs
    ]
    for dtype in (torch.float32, torch.float64):
        assert largest_prefix(torch.tensor(costs, dtype=dtype), bound).tolist() == expected


def test_nan_ends_the_prefix_with_itself() -> None:
    costs = torch.tensor([[torch.nan, 0.0, 0.0], [0.0, torch.nan, torch.nan], [torch.nan] * 3])
    assert largest_prefix(costs, 1.0).tolist() == largest_prefix(costs, inf).tolist() == [1, 2, 1]


def test_a_prefix_of_many_is_summed_in_float64() -> None:
    """Float32 sums of a hundred thousand equal terms are off by hundreds of them."""
    costs = torch.full((1, 200_000), 0.1)
    bound = 10_000.0
    assert abs(largest_prefix(costs, bound).item() - (1 + int(bound / costs[0, 0].item()))) <= 1
