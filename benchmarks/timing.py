"""Seconds of work that takes turns, and of functions apart from what is around them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

Times = dict[str, list[float]]  # seconds of each work, repeat by repeat


def now() -> float:
    """Seconds, when all work begun before is done, on a GPU too."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def take_turns(works: Mapping[str, Callable[[], Any]], repeats: int, at_least: float = 0.0) -> Times:
    """Times works in an order that changes with each repeat, so that a busy machine slows all of them.

    Args:
        repeats: after one that warms up.
        at_least: seconds; more repeats fill them.
    """
    times: Times = {name: [] for name in works}
    for work in works.values():
        work()
    order, shuffle, begun, done = list(works), random.Random(0), now(), 0
    while done < repeats or now() - begun < at_least:
        shuffle.shuffle(order)
        for name in order:
            started = now()
            works[name]()
            times[name].append(now() - started)
        done += 1
    return times


def median_ratio(times: Times, name: str, base: str) -> float:
    """Of the ratios within a repeat."""
    return median(own / other for own, other in zip(times[name], times[base], strict=True))


class Clock:
    """Adds up the calls of functions, and the seconds in them."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = now()
            result = function(*args, **kwargs)
            self.seconds, self.calls = self.seconds + now() - started, self.calls + 1
            return result

        return call
