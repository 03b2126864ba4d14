"""Few of many combinations in which each pair of values is: enough where no three fail together alone."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from itertools import combinations
from typing import TypeVar

_Case = TypeVar("_Case", bound=Hashable)
Values = frozenset[tuple[str, object]]


def choose(cases: Mapping[_Case, Values], strengths: Mapping[_Case, int]) -> set[_Case]:
    """Cases such that every `strength` values that stand in a case together stand together in one that is chosen.

    Args:
        cases: what each case is made of; the value "test" is of the test itself, in all combinations.
        strengths: of each case; those of one test should have one.
    """
    parts = {case: _parts(values, strengths[case]) for case, values in cases.items()}
    chosen: set[_Case] = set()
    seen: set[Values] = set()
    for least in range(max(map(len, parts.values()), default=0), 0, -1):  # those first that add most
        for case, own in parts.items():
            if len(own - seen) >= least:
                chosen.add(case)
                seen |= own
    return chosen


def _parts(values: Values, strength: int) -> set[Values]:
    test = {value for value in values if value[0] == "test"}
    others = sorted(values - test, key=lambda value: value[0])
    size = min(strength, len(others))
    return {frozenset({*test, *part}) for part in combinations(others, size)}
