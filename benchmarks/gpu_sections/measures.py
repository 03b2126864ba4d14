"""The measures that the sections use. On a CPU each uses the nearest equivalent, so that it can be tried there."""

from __future__ import annotations

import os
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
    """The device and the sizes; `tiny` means meaningless sizes, to try the program on any device."""

    device: torch.device
    tiny: bool = False

    def pick(self, full: _Size, tiny: _Size) -> _Size:
        return tiny if self.tiny else full

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


# --- time -------------------------------------------------------------------------------------------------------------


class Clock:
    """Time stamps in the device's queue of work, which do not make the host wait."""

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
    """Median over repeats of the time that `work` takes on the device."""
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
    """Median over repeats of the time that the host needs for `work`, with nothing queued before it."""
    clock, times = Clock(device), []
    for _ in range(repeats):
        clock.wait()
        started = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - started))
    clock.wait()
    return median(times)


def take_turns(works: dict[str, Work], device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each in every repeat, in an order that changes, after one more repeat to warm up."""
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
    """The peak memory allocated on the device during `work`, including weights; None on a CPU."""
    if device.type != "cuda":
        work()
        return None
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def free_bytes(device: torch.device) -> float:
    """The memory that is still free on the device; on a CPU it is not checked."""
    if device.type != "cuda":
        return float("inf")
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


# --- torch alone, and the package's kernels ---------------------------------------------------------------------------

TORCH, KERNELS = "torch", "kernels"


@contextmanager
def computed_by(way: str) -> Iterator[None]:
    """In this context steps use the kernels, or torch alone."""
    from hf_maskdiff.kernels import SWITCH  # here, since not all that is measured needs the package

    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = str(int(way == KERNELS))
    try:
        yield
    finally:
        os.environ.pop(SWITCH)
        if before is not None:
            os.environ[SWITCH] = before


def ways(bench: Bench) -> list[str]:
    """Those in which this device can compute a step."""
    from hf_maskdiff import kernels

    with computed_by(KERNELS):
        return [TORCH, KERNELS] if kernels.usable(bench.device) else [TORCH]


def in_a_way(way: str, work: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """The rows of a case, computed in this way, which they name."""
    with computed_by(way):
        for row in work():
            yield {"by": way, **row}


# --- weights and inputs -----------------------------------------------------------------------------------------------


@contextmanager
def building(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """In this context, new tensors are made on the device and by default in `dtype`, so that models are too."""
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
