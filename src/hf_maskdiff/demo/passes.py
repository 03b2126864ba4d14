"""How often a run calls its model, while other runs call the same one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Positions of each call of the model in this thread; None where nobody counts.
_CALLS: ContextVar[list[int] | None] = ContextVar("calls of the model", default=None)


@dataclass(frozen=True)
class Passes:
    """Calls of a model.

    Args:
        full: over all positions; with guidance there are two a step.
        partial: over some of them, which partial caching adds.
    """

    full: int
    partial: int

    @classmethod
    def of(cls, calls: Sequence[int]) -> Passes:
        """Of the numbers of positions that the calls read; the longest is taken for a full pass."""
        full = sum(positions == max(calls) for positions in calls)
        return cls(full, len(calls) - full)

    def __str__(self) -> str:
        words = f"{self.full} pass{'' if self.full == 1 else 'es'}"
        return f"{words} + {self.partial} partial" if self.partial else words


def watch(model: torch.nn.Module) -> None:
    """Let the calls of a model be counted by `counting`, each by the thread that makes it."""
    model.register_forward_pre_hook(_note, with_kwargs=True)


@torch.compiler.disable
def _note(_: torch.nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
    calls = _CALLS.get()
    if calls is not None:
        tokens = next(value for value in (*inputs, *options.values()) if isinstance(value, Tensor))
        calls.append(tokens[0].numel())


@contextmanager
def counting() -> Iterator[list[int]]:
    """In this context, and in this thread, the calls of watched models are added to the list."""
    calls: list[int] = []
    token = _CALLS.set(calls)
    try:
        yield calls
    finally:
        _CALLS.reset(token)
