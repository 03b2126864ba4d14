"""Scores of two kinds, quality and diversity, and the Pareto front of quality against cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

_Name = TypeVar("_Name")
_SURE = 2.0  # standard errors from which a difference counts


@dataclass(frozen=True)
class Score:
    """What a judge says of a candidate.

    Args:
        value: of the quality; less is better.
        error: its standard error; NaN if unknown.
        diversity: more is more diverse.
        diversity_error: its standard error; NaN if unknown.
    """

    value: float
    error: float
    diversity: float
    diversity_error: float = math.nan

    def lacks(self, floor: float) -> bool:
        """Whether the diversity is below a floor by more than twice its error."""
        error = 0.0 if math.isnan(self.diversity_error) else self.diversity_error
        return self.diversity + _SURE * error < floor


def differ(one: float, one_error: float, other: float, other_error: float) -> bool:
    """Whether two values differ by more than twice their common error; never where an error is unknown."""
    return abs(one - other) > _SURE * math.hypot(one_error, other_error)


def ranked(scores: Mapping[_Name, Score], floor: float) -> list[_Name]:
    """Names from the best: all that are diverse enough before all that are not, each by value.

    Example:
        >>> ranked({"sharp": Score(1.0, 0.1, 2.0, 0.1), "fair": Score(1.5, 0.1, 3.5, 0.1)}, floor=3.0)
        ['fair', 'sharp']

    Args:
        floor: the least diversity that is wanted; below it counts what is so by more than twice its error.
    """
    return sorted(scores, key=lambda name: (scores[name].lacks(floor), scores[name].value))


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """The points than which no other is better: cheaper without being worse, or better without being dearer.

    Of equal points the first one counts.

    Example:
        >>> pareto_front([4, 8, 8, 16], [3.0, 2.0, 2.5, 2.0])
        [0, 1]

    Args:
        costs: of each point; less is better.
        values: of each point; less is better.

    Returns:
        the points' indices, by cost.
    """
    front: list[int] = []
    for index in sorted(range(len(costs)), key=lambda index: (costs[index], values[index], index)):
        if not front or values[index] < values[front[-1]]:
            front.append(index)
    return front
