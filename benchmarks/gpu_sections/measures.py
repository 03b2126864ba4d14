"""What the sections measure with. On a CPU each measure does the nearest thing, so that it can be tried there."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import torch

Row = dict[str, Any]
Case = tuple[str, Callable[[], Iterable[Row]]]
Work = Callable[[], Any]
_Size = TypeVar("_Size")


@dataclass(frozen=True)
class Bench:
    """Where and how large: `tiny` tries the program out, on any device, with sizes that say nothing."""

    device: torch.device
    tiny: bool = False

    def pick(self, full: _Size, tiny: _Size) -> _Size:
        return tiny if self.tiny else full

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


# --- time -------------------------------------------------------------------------------------------------------------


class Clock:
    """Time stamps in the device's queue of work: taking one makes nobody wait."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"

    def stamp(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def milliseconds(self, first: Any, second: Any) -> float:
        """Between two stamps, after `wait`."""
        return first.elapsed_time(second) if self.on_gpu else 1000 * (second - first)


def milliseconds(work: Work, device: torch.device, repeats: int = 5, warm_up: int = 2) -> float:
    """Median over repeats of what `work` takes on the device."""
    clock = Clock(device)
    for _ in range(warm_up):
        work()
    stamps = []
    for _ in range(repeats):
        started = clock.stamp()
        work()
        stamps.append((started, clock.stamp()))
    clock.wait()
    return median(clock.milliseconds(*pair) for pair in stamps)


def milliseconds_to_issue(work: Work, device: torch.device, repeats: int = 3) -> float:
    """Median over repeats of what `work` takes the host, with nothing queued before it."""
    clock, times = Clock(device), []
    for _ in range(repeats):
        clock.wait()
        started = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - started))
    clock.wait()
    return median(times)


def take_turns(works: dict[str, Work], device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each, repeat by repeat, in an order that changes; one round more warms up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    order, shuffle = list(works), random.Random(0)
    for repeat in range(repeats + 1):
        shuffle.shuffle(order)
        for name in order:
            took = milliseconds(works[name], device, repeats=1, warm_up=0)
            if repeat:
                times[name].append(took)
    return times


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    """Median over repeats of the ratio in that repeat."""
    return median(own / other for own, other in zip(times[name], times[base], strict=True))


# --- memory -----------------------------------------------------------------------------------------------------------


def peak_gib(work: Work, device: torch.device) -> float | None:
    """The most that was allocated on the device during `work`, weights included; None on a CPU."""
    if device.type != "cuda":
        work()
        return None
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def free_bytes(device: torch.device) -> float:
    """What may still be allocated; a CPU's memory is not looked at."""
    if device.type != "cuda":
        return float("inf")
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


# --- weights and inputs -----------------------------------------------------------------------------------------------


@contextmanager
def building(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """New tensors go to the device, those without a dtype in `dtype`: a model is made where it will run."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def chi_square_p_value(statistic: float, degrees_of_freedom: int) -> float:
    """The probability that a chi-square variable exceeds `statistic`: its upper incomplete gamma function."""
    half = torch.tensor([degrees_of_freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
