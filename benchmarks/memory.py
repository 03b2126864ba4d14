"""The peak memory that a function allocates, on an accelerator or a CPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CountMemory(TorchDispatchMode):
    """Tracks the peak bytes that operations allocate in this context, for a CPU, where torch does not count them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._see((args, kwargs), made_here=False)
        result = function(*args, **(kwargs or {}))
        self._see(result, made_here=True)
        return result

    def _see(self, tensors: Any, made_here: bool) -> None:
        """Count the storages that were not seen before; those of inputs are others' and count nothing.

        Every storage is watched until it is freed: its address may then be that of another one.
        """
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes() if made_here else 0
                if key not in self.seen:
                    self.seen.add(key)
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def extra_memory(work: Callable[[], object], device: torch.device) -> int:
    """Peak bytes that `work` allocates."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with CountMemory() as memory:
        work()
    return memory.peak
