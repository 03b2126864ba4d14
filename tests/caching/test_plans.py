"""The plans by themselves: which positions each computes, row by row."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hf_maskdiff import (
    DelayedCacheConfig,
    DualCacheConfig,
    GreedyCacheConfig,
    PartialCacheConfig,
    PrefixCacheConfig,
)
from hf_maskdiff.caching import CachePlanConfig, PassState, Queries, places_of

LENGTH = 12
PLANS = [PrefixCacheConfig, DualCacheConfig, DelayedCacheConfig, GreedyCacheConfig]


def state(step: int, rows: list[tuple[int, int, int]], masked: list[list[int]] | None = None) -> PassState:
    """Rows of (start, end, length); `masked` names positions, by default those from the start on."""
    starts, ends, lengths = torch.tensor(rows).unbind(1)
    where = torch.zeros(len(rows), LENGTH, dtype=torch.bool)
    for row, (start, _, length) in enumerate(rows):
        where[row, list(range(start, length)) if masked is None else masked[row]] = True
    passed = (step, starts, ends, lengths, where, where.sum(-1), torch.full_like(starts, -1))
    first = where.long().argmax(-1, keepdim=True)
    return PassState(*passed, masked_now=where, num_masked_now=where.sum(-1), chosen=first)


def computed(queries: Queries | None) -> list[list[int]]:
    """The valid positions of each row, in ascending order."""
    assert queries is not None
    positions: Tensor = queries.positions
    places = places_of(positions)
    assert all(len(set(row)) == len(row) for row in places.tolist())  # distinct, what only fills up included
    assert 0 <= int(places.min()) <= int(places.max()) < LENGTH
    return [sorted(p for p in row if p >= 0) for row in positions.tolist()]


def test_prefix_computes_the_block_and_all_behind_it() -> None:
    queries = PrefixCacheConfig().queries(state(1, [(3, 5, 12), (7, 9, 10)]))
    assert computed(queries) == [list(range(3, 12)), [7, 8, 9]]
    assert queries is not None
    assert queries.num_runs == 1


def test_dual_computes_the_block() -> None:
    queries = DualCacheConfig().queries(state(4, [(3, 7, 12), (8, 9, 9)]))
    assert computed(queries) == [[3, 4, 5, 6], [8]]
    assert queries is not None
    assert queries.positions.shape == (2, 4)


def test_delayed_computes_what_was_masked_before_the_last_pass() -> None:
    queries = DelayedCacheConfig().queries(state(3, [(3, 7, 12), (0, 4, 9)], [[4, 9, 6], [2]]))
    assert computed(queries) == [[4, 6, 9], [2]]
    assert queries is not None
    assert queries.positions.shape == (2, 3)


def greedy(
    window: int, rows: list[tuple[list[int], list[int], list[int]]], length: int = LENGTH
) -> list[list[int]] | None:
    """What a step computes in rows of (masked before the last pass, drawn since, revealed by this step, in order)."""
    before = torch.zeros(len(rows), length, dtype=torch.bool)
    chosen = torch.full((len(rows), max(len(now) for _, _, now in rows)), -1)
    now = before.clone()
    for row, (masked, drawn, revealed) in enumerate(rows):
        before[row, masked] = True
        now[row, [p for p in masked if p not in drawn]] = True
        others = [p for p in range(length) if p not in revealed]  # ranks are distinct positions, valid or not
        ranks = [*revealed, *(~p for p in others)][: chosen.shape[1]]
        chosen[row] = torch.tensor(ranks)
    ends = torch.full((len(rows),), length)
    state = PassState(
        *(1, torch.zeros_like(ends), ends, ends, before, before.sum(-1), torch.full_like(ends, -1)),
        masked_now=now,
        num_masked_now=now.sum(-1),
        chosen=chosen,
    )
    return computed(GreedyCacheConfig(window=window).queries(state))


def test_greedy_computes_what_is_drawn_before_and_now_and_the_nearest_masks() -> None:
    masked = [2, 3, 4, 6, 7, 8, 9, 11]
    assert greedy(0, [(masked, [7], [4, 11])]) == [[4, 7, 11]]
    # Of two as near the left; what is drawn or chosen already does not count.
    assert greedy(1, [(masked, [7], [4])]) == [[3, 4, 7]]
    assert greedy(2, [(masked, [3], [4])]) == [[2, 3, 4, 6]]
    assert greedy(1, [(masked, [7], [6])]) == [[4, 6, 7]]
    assert greedy(1, [(masked, [2], [6])]) == [[2, 6, 7]]
    # One position after the other: what the first takes is not there for the second.
    assert greedy(1, [(masked, [11], [8, 9])]) == [[6, 7, 8, 9, 11]]
    assert greedy(1, [(masked, [11], [6, 4])]) == [[3, 4, 6, 7, 11]]
    # As many as there are, and each row by itself.
    rows = [([1, 2, 5], [1], [5]), (masked, [2, 3], [9, 7]), ([0], [], [0])]
    assert greedy(4, rows) == [[1, 2, 5], [2, 3, 4, 6, 7, 8, 9, 11], [0]]
    assert [greedy(4, [row]) for row in rows] == [[found] for found in greedy(4, rows) or []]


def test_greedy_is_never_larger_than_what_it_can_need() -> None:
    before = torch.ones(2, LENGTH, dtype=torch.bool)
    now, ends = before.clone(), torch.tensor([LENGTH, LENGTH])
    now[:, :3] = False
    state = PassState(
        *(1, torch.zeros_like(ends), ends, ends, before, before.sum(-1), torch.full_like(ends, -1)),
        masked_now=now,
        num_masked_now=now.sum(-1),
        chosen=torch.tensor([[5, 9], [10, ~5]]),
    )
    queries = GreedyCacheConfig(window=1).queries(state)
    assert queries is not None
    assert queries.positions.shape == (2, 3 + 2 * (1 + 1))
    assert computed(queries) == [[0, 1, 2, 4, 5, 8, 9], [0, 1, 2, 9, 10]]


def test_greedy_with_all_masks_near_computes_what_delayed_does() -> None:
    masked = [[4, 9, 6], [2, 3]]
    given = state(3, [(3, 7, 12), (0, 4, 9)], masked)
    assert computed(GreedyCacheConfig(window=LENGTH).queries(given)) == computed(DelayedCacheConfig().queries(given))


def test_greedy_needs_to_know_what_is_chosen() -> None:
    with pytest.raises(ValueError, match=r"GreedyCacheConfig needs a scheduler that chooses positions without the mo"):
        GreedyCacheConfig().queries(dataclasses.replace(state(0, [(3, 7, 12)]), chosen=None))
    for wrong in (-1, 1.5, "4"):
        with pytest.raises(ValueError, match="`window` must be an integer of at least 0, got"):
            GreedyCacheConfig(window=wrong)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("every", "afresh"), [(None, [0]), (2, [0, 2, 4, 6]), (3, [0, 3, 6]), (8, [0])])
def test_when_all_are_computed_afresh(plan: type[CachePlanConfig], every: int | None, afresh: list[int]) -> None:
    config = plan(refresh_every=every)
    found = [step for step in range(8) if config.queries(state(step, [(3, 7, 12)])) is None]
    # A token drawn in the first step is stored in the second.
    assert found == sorted({*afresh, 1} if plan is DelayedCacheConfig else afresh)
    assert config.across_steps() is config


@pytest.mark.parametrize("plan", PLANS)
def test_refreshed_in_every_step_it_is_no_plan(plan: type[CachePlanConfig]) -> None:
    config = plan(refresh_every=1)
    assert config.across_steps() is None
    assert not config.needs_store
    assert all(config.queries(state(step, [(3, 7, 12)])) is None for step in range(5))
    grouped = plan(refresh_every=1, partial=PartialCacheConfig(2))
    assert grouped.needs_store
    assert grouped.within_steps() == PartialCacheConfig(2)


@pytest.mark.parametrize("plan", [PrefixCacheConfig, DualCacheConfig])
def test_where_the_block_is_all_there_is_a_full_pass_is_made(plan: type[CachePlanConfig]) -> None:
    assert plan().queries(state(1, [(0, 12, 12), (0, 7, 7)])) is None
    assert plan().queries(state(1, [(0, 12, 12), (1, 7, 7)])) is not None
    assert PrefixCacheConfig().queries(state(1, [(0, 4, 12)])) is None
    assert DualCacheConfig().queries(state(1, [(0, 4, 12)])) is not None


def test_the_defaults() -> None:
    assert [plan().refresh_every for plan in PLANS] == [None, None, 8, 2]
    assert all(plan().partial is None and plan().needs_store for plan in PLANS)


@st.composite
def rows(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    found = []
    for _ in range(draw(st.integers(1, 4))):
        length = draw(st.integers(1, LENGTH))
        start = draw(st.integers(0, length - 1))
        found.append((start, draw(st.integers(start + 1, length)), length))
    return found


@given(rows(), st.sampled_from(PLANS), st.integers(2, 5))
def test_a_row_computes_the_same_in_any_batch(
    batch: list[tuple[int, int, int]], plan: type[CachePlanConfig], step: int
) -> None:
    """Or everything, which is what an own plan of everything comes to."""
    together = plan(refresh_every=None).queries(state(step, batch))
    for row, one in enumerate(batch):
        alone = plan(refresh_every=None).queries(state(step, [one]))
        expected = [list(range(one[2]))] if alone is None else computed(alone)
        assert (expected[0] if together is None else computed(together)[row]) == expected[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"refresh_every": 0}, r"`refresh_every` must be an integer of at least 1 or None, got 0"),
        ({"refresh_every": 2.5}, r"`refresh_every` must be an integer of at least 1 or None, got 2.5"),
        ({"partial": 2}, r"`partial` must be a PartialCacheConfig or None, got int"),
    ],
)
@pytest.mark.parametrize("plan", PLANS)
def test_what_does_not_work_is_refused(plan: type[CachePlanConfig], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(**values)
