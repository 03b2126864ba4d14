"""Counts against exact arithmetic: for every N up to 4096 and T up to 256 no count may be off by one."""

from __future__ import annotations

from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import accumulate, product
from math import acos, cos, gcd, pi
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from hf_maskdiff.masking import (
    MASKING_SCHEDULES,
    ROUNDINGS,
    MaskingSchedule,
    mask_ratio,
    masks_left,
    planned_counts,
    reveal_counts,
)

MOST_POSITIONS, MOST_STEPS = 4096, 256
POSITIONS = np.arange(MOST_POSITIONS + 1)
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")


def exact_cos(quarter: Fraction) -> Decimal:
    """`cos(pi / 2 * quarter)` to 50 digits, by its series."""
    with localcontext() as context:
        context.prec = 60
        square = (PI / 2 * quarter.numerator / quarter.denominator) ** 2
        term = total = Decimal(1)
        for k in range(1, 60, 2):
            term = -term * square / (k * (k + 1))
            total += term
        return total


def exact_masks(schedule: str, done: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Floor and ceiling of N m(1 - done / steps) for every N, exactly.

    A product that is rational is computed in integers. All others are irrational (Niven: a cosine of a rational
    multiple of pi is rational at 0, +-1/2 and +-1 alone), so never an integer: float64 decides, except within 1e-6 of
    an integer, where 50 digits do.
    """
    rational = {
        "linear": (steps - done, steps),
        "square": (steps**2 - done**2, steps**2),
        "cosine": (1, 2) if 3 * done == 2 * steps else None,
        "arccos": (2, 3) if 2 * done == steps else None,
        "mdlm_cosine": (1, 2) if 3 * done == steps else None,
    }[schedule]
    if rational is not None:
        numerator, denominator = rational
        floor, remainder = np.divmod(POSITIONS * numerator, denominator)
        return floor, floor + (remainder > 0)
    quarter = Fraction(done, steps)
    share = {
        "cosine": cos(pi / 2 * done / steps),
        "arccos": 2 / pi * acos(done / steps),
        "mdlm_cosine": 1 - cos(pi / 2 * (steps - done) / steps),
    }[schedule]
    product = POSITIONS * share
    floor = np.floor(product).astype(np.int64)
    nearest = np.rint(product).astype(np.int64)
    for n in np.flatnonzero(np.abs(product - nearest) < 1e-6)[1:]:  # N = 0 is 0 without a doubt
        k = int(nearest[n])
        if schedule == "cosine":
            reached = exact_cos(quarter) * int(n) >= k
        elif schedule == "mdlm_cosine":
            reached = (1 - exact_cos(1 - quarter)) * int(n) >= k
        else:  # (2 / pi) arccos(r) >= k / n where r <= cos(pi k / 2n)
            reached = Decimal(done) / steps <= exact_cos(Fraction(k, int(n)))
        floor[n] = k if reached else k - 1
    return floor, floor + (POSITIONS > 0)


def test_the_reference_is_exact() -> None:
    assert abs(exact_cos(Fraction(2, 3)) - Decimal("0.5")) < Decimal("1e-49")
    assert abs(exact_cos(Fraction(1, 2)) ** 2 - Decimal("0.5")) < Decimal("1e-49")
    assert float(exact_cos(Fraction(3, 7))) == pytest.approx(cos(pi / 2 * 3 / 7), rel=1e-15)
    # 3 * 0.99... is below 3, and 256 * 0.5 is 128, not above it.
    assert [values[3] for values in exact_masks("cosine", 1, 200)] == [2, 3]
    assert [values[256] for values in exact_masks("cosine", 8, 12)] == [128, 128]


@pytest.mark.parametrize("most_steps", [48, pytest.param(MOST_STEPS, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("schedule", MASKING_SCHEDULES)
def test_every_count_is_exact(schedule: str, most_steps: int) -> None:
    initial, few = torch.from_numpy(POSITIONS).double(), torch.arange(0, MOST_POSITIONS + 1, 61).double()
    for steps in range(2, most_steps + 1):
        for done in range(1, steps):
            common = gcd(done, steps)
            if common > 1:  # the same ratio as in fewer steps, where every N is tried
                for rounding in ("floor_masked", "floor_revealed"):
                    left = masks_left(few, done - 1, steps, schedule, rounding)
                    same = masks_left(few, done // common - 1, steps // common, schedule, rounding)
                    assert torch.equal(left, same), (done, steps)
                continue
            floor, ceiling = exact_masks(schedule, done, steps)
            left = masks_left(initial, done - 1, steps, schedule, "floor_masked")
            assert np.array_equal(left.numpy(), floor), (done, steps)
            left = masks_left(initial, done - 1, steps, schedule, "floor_revealed")
            assert np.array_equal(left.numpy(), ceiling), (done, steps)


@pytest.mark.parametrize("schedule", MASKING_SCHEDULES)
def test_one_number_counts_as_a_row_does(schedule: str) -> None:
    for rounding in ROUNDINGS:
        for step_index in range(12):
            row = masks_left(torch.tensor([256.0], dtype=torch.float64), step_index, 12, schedule, rounding)
            assert masks_left(256.0, step_index, 12, schedule, rounding) == row.item()


@pytest.mark.parametrize("schedule", [*MASKING_SCHEDULES, [1, 2, 9, 10, 40]])
def test_the_plan_is_what_steps_do_one_after_the_other(schedule: MaskingSchedule) -> None:
    num_masked = torch.tensor([0, 1, 3, 5, 7, 12, 40, 333])
    for steps, rounding in product((1, 4, 5, 12) if isinstance(schedule, str) else (5,), ROUNDINGS):
        for first_step, initial in product((0, steps // 2), (num_masked, num_masked + 9, num_masked // 2)):
            plan = planned_counts(num_masked, steps, schedule, rounding, initial, first_step)
            left = num_masked
            for step_index, counts in zip(range(first_step, steps), plan, strict=True):
                target = masks_left(initial.double(), step_index, steps, schedule, rounding)
                assert torch.equal(counts, reveal_counts(left, target)), (steps, rounding, step_index)
                left = left - counts
            assert not left.any()


@pytest.mark.parametrize(
    ("positions", "counts"),
    [
        (256, [5, 15, 24, 31, 39, 45, 48, 49]),
        (256, [3, 6, 11, 15, 18, 22, 26, 27, 31, 31, 33, 33]),
        (1024, [9, 26, 43, 60, 74, 88, 101, 111, 121, 126, 132, 133]),
    ],
)
def test_published_cosine_counts(positions: int, counts: list[int]) -> None:
    plan = planned_counts(torch.tensor([positions]), len(counts), "cosine", "floor_masked")
    assert plan.flatten().tolist() == counts
    assert sum(counts) == positions


@given(st.integers(0, 300), st.integers(1, 400), st.sampled_from(list(MASKING_SCHEDULES)))
def test_even_steps_differ_by_at_most_one(positions: int, steps: int, schedule: str) -> None:
    """LLaDA's rule: N // T each, one more in the first N % T steps; the curve does not matter."""
    larger = positions % steps
    expected = [positions // steps + (n < larger) for n in range(steps)]
    if positions >= steps:
        assert planned_counts(torch.tensor([positions]), steps, schedule, "even").flatten().tolist() == expected
    left = [masks_left(float(positions), n, steps, schedule, "even") for n in range(steps)]
    assert left == [positions - revealed for revealed in accumulate(expected)]


@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=5),
    st.integers(1, 250),
    st.sampled_from(list(MASKING_SCHEDULES)),
    st.sampled_from(list(ROUNDINGS)),
)
def test_a_plan_reveals_everything_one_at_a_time_at_least(
    initial: list[int], steps: int, schedule: str, rounding: str
) -> None:
    plan = planned_counts(torch.tensor(initial), steps, schedule, rounding)
    assert plan.shape == (steps, len(initial))
    assert plan.dtype == torch.int64
    assert plan.sum(0).tolist() == initial
    before = torch.tensor(initial) - plan.cumsum(0) + plan
    assert torch.equal(plan > 0, before > 0)  # also with more steps than positions, and where nothing is masked
    # A row's plan does not depend on the others.
    alone = [planned_counts(torch.tensor([n]), steps, schedule, rounding) for n in initial]
    assert torch.equal(torch.cat(alone, 1), plan)


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), min_size=1, max_size=5),
    st.integers(1, 60),
    st.integers(0, 59),
    st.sampled_from(list(MASKING_SCHEDULES)),
    st.sampled_from(list(ROUNDINGS)),
)
def test_a_plan_may_begin_later(
    rows: list[tuple[int, int]], steps: int, first_step: int, schedule: str, rounding: str
) -> None:
    """From where a whole plan stands it is that plan's tail; from elsewhere it returns to its curve."""
    first_step %= steps
    initial, masked = torch.tensor([max(row) for row in rows]), torch.tensor([min(row) for row in rows])
    whole = planned_counts(initial, steps, schedule, rounding)
    standing = initial - whole[:first_step].sum(0)
    assert torch.equal(planned_counts(standing, steps, schedule, rounding, initial, first_step), whole[first_step:])

    plan = planned_counts(masked, steps, schedule, rounding, initial, first_step)
    assert plan.shape == (steps - first_step, len(rows))
    left = masked
    for n, count in enumerate(plan, first_step):
        target = masks_left(initial.double(), n, steps, schedule, rounding).long()
        left, before = left - count, left
        assert torch.equal(left, torch.minimum(before - 1, target).clamp(min=0))
    assert not left.any()


@given(st.lists(st.integers(1, 500), min_size=1, max_size=12), st.integers(0, 3000))
def test_a_table_is_followed_and_scaled(reveals: list[int], other: int) -> None:
    table = list(accumulate(reveals))
    for rounding in ("floor_masked", "floor_revealed"):
        plan = planned_counts(torch.tensor([table[-1]]), len(table), table, rounding)
        assert plan.flatten().tolist() == reveals
    for n, revealed in enumerate(table):
        exact = Fraction(other * (table[-1] - revealed), table[-1])
        assert masks_left(float(other), n, len(table), table, "floor_masked") == exact.__floor__()
        assert masks_left(float(other), n, len(table), table, "floor_revealed") == exact.__ceil__()


@given(st.integers(0, 60), st.integers(-3, 70))
def test_reveal_counts(remaining: int, target: int) -> None:
    wanted = 0 if remaining == 0 else max(1, remaining - max(target, 0))
    assert reveal_counts(torch.tensor([remaining]), target).tolist() == [wanted]
    row = torch.tensor([float(target)], dtype=torch.float64)
    assert reveal_counts(torch.tensor([remaining]), row).tolist() == [wanted]


def test_mask_ratios() -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    formulas = {
        "cosine": torch.cos(pi / 2 * (1 - t)),
        "linear": t,
        "arccos": 2 / pi * torch.arccos(1 - t),
        "square": 1 - (1 - t) ** 2,
        "mdlm_cosine": 1 - torch.cos(pi / 2 * t),
    }
    assert formulas.keys() == MASKING_SCHEDULES.keys()
    for schedule, expected in formulas.items():
        ratio = mask_ratio(schedule, t)
        torch.testing.assert_close(ratio, expected, atol=1e-15, rtol=1e-15)
        assert ratio[0] == 0
        assert ratio[-1] == 1
        assert (ratio.diff() > 0).all()
        assert mask_ratio(schedule, t[:100].float().view(5, 20)).dtype == torch.float32
        assert mask_ratio(schedule, t[:100].view(5, 20)).shape == (5, 20)


def test_the_ratio_of_a_table_is_piecewise_linear() -> None:
    t = torch.tensor([[1.0, 5 / 6, 2 / 3], [1 / 2, 1 / 3, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[1.0, 0.9, 0.8], [0.65, 0.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(mask_ratio([2, 5, 10], t), expected)
    assert mask_ratio([2, 5, 10], t.float()).dtype == torch.float32


def test_halton_maskgit_reveals_floored_arccos_counts(golden_folder: Path) -> None:
    """Upstream computes in float32: it may be one lower where the exact product is a tie, and only there."""
    golden = load_file(golden_folder / "samplers" / "valeoai_schedules.safetensors")
    golden = {name: counts for name, counts in golden.items() if name.startswith("halton_cum_")}
    assert golden
    for name, cumulative in golden.items():
        side, steps = map(int, name.removeprefix("halton_cum_").split("_"))
        positions = side**2
        ours = planned_counts(torch.tensor([positions]), steps, "arccos", "floor_revealed").cumsum(0)[:, 0]
        for n in (ours != cumulative).nonzero().flatten().tolist():
            assert 2 * (n + 1) == steps  # the one rational value, a third revealed
            assert positions % 3 == 0
            assert abs(int(ours[n] - cumulative[n])) == 1
