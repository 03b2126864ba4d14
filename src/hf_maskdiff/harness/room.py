"""A batch size that fits the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from hf_maskdiff.devices import is_out_of_memory

T = TypeVar("T")

_CPU_ROWS, _GPU_ROWS = 16, 64


class Room:
    """The rows of a batch; "auto" starts with many, halves them where memory runs out, and stays there.

    Args:
        batch_size: a number, or "auto"; the harness's "auto:N" is the same.
        most: what "auto" starts with; None for what is usual on the device.
        device: where the model runs.

    Raises:
        ValueError: neither a number of at least 1 nor "auto".
    """

    def __init__(self, batch_size: int | str | None, most: int | None, device: torch.device) -> None:
        words = str(batch_size)
        self.adapts = words.split(":")[0] == "auto"
        if self.adapts:
            self.rows = most or (_CPU_ROWS if device.type == "cpu" else _GPU_ROWS)
        elif batch_size is None:
            self.rows = 1
        elif words.isdigit() and int(words) > 0:
            self.rows = int(words)
        else:
            raise ValueError(f'`batch_size` must be at least 1, or "auto", got {batch_size!r}. Pass "auto".')

    def run(self, call: Callable[[int], T]) -> T:
        """The result of a call with as many rows as fit."""
        while True:
            try:
                return call(self.rows)
            except RuntimeError as error:
                if not (self.adapts and self.rows > 1 and is_out_of_memory(error)):
                    raise
            self.rows //= 2  # out of the handler, whose error holds the memory
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
