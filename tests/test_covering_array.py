"""Few combinations that hold all pairs: none is missing, and they are few."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product

import covering_array
import pytest


def cases(sizes: Sequence[int]) -> dict[int, frozenset[tuple[str, object]]]:
    rows = product(*map(range, sizes))
    return {n: frozenset({("test", "t"), *((f"p{k}", v) for k, v in enumerate(row))}) for n, row in enumerate(rows)}


@pytest.mark.parametrize(
    ("sizes", "strength", "most"),
    [((4, 6, 4), 2, 24), ((20, 18), 1, 20), ((4, 3, 2, 5), 2, 22), ((3, 3, 3, 3), 2, 15), ((7,), 2, 7), ((2, 3), 3, 6)],
)
def test_every_value_or_pair_is_there(sizes: tuple[int, ...], strength: int, most: int) -> None:
    known = cases(sizes)
    chosen = covering_array.choose(known, dict.fromkeys(known, strength))
    wanted, found = (
        {
            part
            for case in some
            for part in combinations(sorted(known[case] - {("test", "t")}), min(strength, len(sizes)))
        }
        for some in (known, chosen)
    )
    assert wanted == found
    assert len(chosen) <= most


def test_tests_are_covered_each_by_itself() -> None:
    known = {name: frozenset({("test", name[0]), ("p", name[1])}) for name in ("a0", "a1", "b0", "b1")}
    known["c"] = frozenset({("test", "c")})  # without parameters
    assert covering_array.choose(known, dict.fromkeys(known, 1)) == set(known)


@pytest.mark.covering(2)
@pytest.mark.parametrize("first", "xyz")
@pytest.mark.parametrize("second", ["u", "v", 1.5])
@pytest.mark.parametrize(("third", "fourth"), [(1, "a"), (2, "b"), (3, "a")])
def test_marked(first: str, second: object, third: int, fourth: str) -> None:
    """Looked at by the next."""


def test_a_marked_test_has_few_settings(request: pytest.FixtureRequest) -> None:
    own = [item.callspec.params for item in request.session.items if item.name.startswith("test_marked[")]
    if not own or request.config.getoption("--covering") is not None:
        pytest.skip("they are not among those of this run, or other ones")
    pairs = {(name, other, row[name], row[other]) for row in own for name, other in combinations(sorted(row), 2)}
    assert len({pair for pair in pairs if pair[:2] == ("first", "second")}) == 9
    assert len({pair for pair in pairs if pair[:2] == ("first", "third")}) == 9
    assert len({pair for pair in pairs if pair[:2] == ("second", "third")}) == 9
    assert 9 <= len(own) <= 12
