"""Times functions that take turns, and the share of time that some functions take within others."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

Times = dict[str, list[float]]  # name -> seconds in each repeat


def now() -> float:
    """The time in seconds, after all work started before is done, also on a GPU."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def take_turns(
    works: Mapping[str, Callable[[], Any]],
    repeats: int,
    at_least: float = 0.0,
    clock: Callable[[], float] = now,
    warm_up: bool = True,
) -> Times:
    """Times functions in an order that changes with each repeat, so that a busy machine slows all of them.

    Args:
        repeats: number of repeats, after one to warm up.
        at_least: repeat further until this many seconds have passed.
        clock: the time in seconds; `time.process_time` leaves out what others do on a busy machine.
        warm_up: False if all functions ran before.
    """
    times: Times = {name: [] for name in works}
    for work in works.values() if warm_up else ():
        work()
    order, shuffle, begun, done = list(works), random.Random(0), now(), 0
    while done < repeats or now() - begun < at_least:
        shuffle.shuffle(order)
        for name in order:
            started = clock()
            works[name]()
            times[name].append(clock() - started)
        done += 1
    return times


def median_ratio(times: Times, name: str, base: str) -> float:
    """The median of the ratios within each repeat."""
    return median(own / other for own, other in zip(times[name], times[base], strict=True))


class Clock:
    """Counts calls of functions, and the seconds spent in them."""

    def __init__(self) -> None:
        self.seconds, self.calls = 0.0, 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = now()
            result = function(*args, **kwargs)
            self.seconds, self.calls = self.seconds + now() - started, self.calls + 1
            return result

        return call
