"""Methods that `torch.compile` leaves as they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch


def uncompiled(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, which runs outside what a compiler compiles.

    torch 2.6 takes a disabled method off its object if it is to compile it by itself (`torch.compile(scheduler.step)`),
    so a function lies around it.
    """
    disabled = torch.compiler.disable(method)

    @wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        return disabled(*args, **kwargs)

    return run
