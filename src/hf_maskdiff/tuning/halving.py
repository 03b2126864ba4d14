"""Successive halving: how many candidates are judged in each round, on how many samples, within a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil

from .front import Score, ranked

_LEFT = 2  # of a level in the last round, so that it compares something


@dataclass(frozen=True)
class Round:
    """A round of the search.

    Args:
        num_kept: candidates that are judged, by their level.
        num_samples: of each candidate.
    """

    num_kept: dict[int, int]
    num_samples: int


@dataclass(frozen=True)
class Plan:
    """A whole search: its rounds, then sets of new seeds for those who are left, which decide nothing.

    Args:
        rounds: of the search, the first with all candidates, the last with two or the finalists.
        num_held_out: sets of new seeds for each finalist, each of as many samples as the last round has.
        passes: what all of it costs at most, in model passes of a sample.
        grid_passes: what it would cost to judge every candidate as the finalists are.
    """

    rounds: tuple[Round, ...]
    num_held_out: int
    passes: float
    grid_passes: float

    @property
    def share(self) -> float:
        """The cost, as a share of that of the whole grid."""
        return self.passes / self.grid_passes


def sizes_of(num_candidates: int, num_finalists: int, factor: int) -> list[int]:
    """How many of a level are judged in each round: each time one in `factor` goes on, `num_finalists` in the last.

    Example:
        >>> sizes_of(38, 2, 3)
        [38, 13, 5, 2]
    """
    sizes = [num_candidates]
    while sizes[-1] > num_finalists:
        sizes.append(max(ceil(sizes[-1] / factor), num_finalists))
    return sizes


def plan_search(
    levels: Mapping[int, int],
    costs: Mapping[int, float],
    budget: float,
    num_finalists: int,
    num_held_out: int,
    fewest_samples: int,
    factor: int = 3,
    block_size: int = 1,
) -> Plan:
    """Spend a budget: in each round `factor` times as many samples for each of those who are left.

    So every round costs about the same, and what is left is judged on many samples. A round draws new samples: who was
    lucky in one is not helped in the next.

    Args:
        levels: number of candidates at each level of passes.
        costs: of a sample at each level, in model passes, those of the judge included.
        budget: in model passes.
        num_finalists: of each level, which are judged on new seeds, with one more to compare with.
        num_held_out: sets of new seeds.
        fewest_samples: that the judge needs at least.
        factor: one in so many goes on.
        block_size: samples are made in wholes of this.

    Raises:
        ValueError: the budget does not suffice for `fewest_samples` in the first round.
    """
    sizes = {level: sizes_of(number, max(num_finalists, _LEFT), factor) for level, number in levels.items()}
    num_rounds = max(map(len, sizes.values()))
    kept = [{level: own[min(k, len(own) - 1)] for level, own in sizes.items()} for k in range(num_rounds)]
    judged_again = {level: min(num_finalists + 1, number) for level, number in levels.items()}

    def cost_of_one(numbers: Mapping[int, int]) -> float:
        return sum(number * costs[level] for level, number in numbers.items())

    growth = [factor**k for k in range(num_rounds)]
    cost_of_first = sum(cost_of_one(numbers) * many for numbers, many in zip(kept, growth, strict=True))
    cost_of_first += num_held_out * growth[-1] * cost_of_one(judged_again)
    first = int(budget // (cost_of_first * block_size)) * block_size
    least = ceil(fewest_samples / block_size) * block_size
    if first < least:
        raise ValueError(
            f"the budget must suffice for {least} samples of each candidate in the first round, "
            f"{ceil(least * cost_of_first)} model passes, got {budget:.0f}. Raise it, or search less: fewer "
            "--passes, --samplers, --choice_temperatures or --num_substeps."
        )
    rounds = tuple(Round(numbers, first * many) for numbers, many in zip(kept, growth, strict=True))
    grid = num_held_out * rounds[-1].num_samples * cost_of_one(levels)
    return Plan(rounds, num_held_out, first * cost_of_first, grid)


def going_on(scores: Mapping[str, Score], floor: float, number: int) -> list[str]:
    """Who goes on to the next round: the best, and at least half of them those that seem diverse enough.

    On few samples a candidate has the benefit of the doubt where its diversity is a little low. If all places were
    given to such ones, which score best as they repeat themselves, a search could end without any that may be chosen.

    Example:
        >>> sharp, fair = Score(1.0, 0.1, 2.9, 0.1), Score(1.5, 0.1, 3.5, 0.1)
        >>> going_on({"sharp": sharp, "sharper": Score(0.9, 0.1, 2.9, 0.1), "fair": fair}, floor=3.0, number=2)
        ['fair', 'sharper']

    Args:
        scores: of the last round.
        floor: the least diversity that is wanted.
        number: how many go on.
    """
    order = ranked(scores, floor)
    sure = [key for key in order if scores[key].diversity >= floor][: ceil(number / 2)]
    return [*sure, *(key for key in order if key not in sure)][:number]


def run_rounds(
    plan: Plan,
    levels: Mapping[str, int],
    judge: Callable[[str, int, int], Score],
    floor_of: Callable[[Mapping[str, Score]], float],
) -> tuple[dict[str, Score], float]:
    """Judge all candidates in the first round, and in each later one the best of each level in the one before.

    Args:
        plan: how many, and on how many samples.
        levels: the level of each candidate.
        judge: the score of a candidate in a round, on so many samples.
        floor_of: the least diversity that is wanted, by the scores of the first round.

    Returns:
        the scores of the last round, and that diversity.
    """
    scores: dict[str, Score] = {}
    floor = -float("inf")
    for number, one in enumerate(plan.rounds):
        left = scores if number else levels
        keys = []
        for level, kept in one.num_kept.items():
            own = [key for key in left if levels[key] == level]
            keys += going_on({key: scores[key] for key in own}, floor, kept) if number else own
        scores = {key: judge(key, number, one.num_samples) for key in keys}
        if number == 0:
            floor = floor_of(scores)
    return scores, floor
