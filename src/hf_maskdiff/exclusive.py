"""A module that one thread at a time may use, because it is changed while it is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_OF_THE_LOCKS = RLock()


@contextmanager
def alone(module: nn.Module) -> Iterator[None]:
    """Let one thread at a time use a module; the thread that holds it may take it again.

    For what is done to a module for the time of a pass: a hook on its head, another attention function, another dtype.
    A second thread would run with those of the first.
    """
    with _OF_THE_LOCKS:
        lock = _LOCKS.setdefault(module, RLock())
    with lock:
        yield
