"""Times each scheduler's step against diffusers' `AmusedScheduler.step` on the same logits, as ratios in one run.

    python benchmarks/scheduler_step.py                        # one thread, all four shapes
    python benchmarks/scheduler_step.py --shapes 16x256x1024 --device cuda

A measurement is the total over all steps of one cosine run. The schedulers take turns within each repeat, so that a busy machine
slows all of them; the ratio is the median over the repeats. Beside it stand the extra peak memory of a run, in bytes
over what the logits take, and the run's time over that of reading the whole logits once per step (`logits.amax(-1)`):
how far a step is from the least it could do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AmusedScheduler
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from hf_maskdiff import (
    ConfidenceScheduler,
    HaltonScheduler,
    HybridScheduler,
    MaskGITScheduler,
    MomentScheduler,
    UniformScheduler,
)

SHAPES = ["1x256x1024", "16x256x1024", "4x256x16384", "1x1024x50257"]
SCHEDULERS = [
    MomentScheduler,
    HybridScheduler,
    MaskGITScheduler,
    ConfidenceScheduler,
    UniformScheduler,
    HaltonScheduler,
]


class PeakMemory(TorchDispatchMode):
    """Peak bytes of the tensors that operations allocate while the mode is on; for the CPU, which keeps no count."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        before = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in before | self.live.keys():
                self._track(tensor.untyped_storage())
        return result

    def _track(self, storage: torch.UntypedStorage) -> None:
        import weakref

        key, size = storage._cdata, storage.nbytes()
        self.live[key] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)
