"""Tensors that are computed once and kept: constants of a length, a shape or a device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

_MOST = 64  # results of a function

Made = TypeVar("Made", Tensor, tuple[Tensor, ...], tuple[Tensor, Tensor])


def kept(function: Callable[..., Made]) -> Callable[..., Made]:
    """Keep the tensors that a function has made of hashable arguments, of the last 64 kinds of them.

    `functools.lru_cache` would also keep what belongs to the moment: a tensor that stands for another while a compiler
    traces, or one in the memory of a CUDA graph that is being captured, which its next replay overwrites. Such are made
    anew. Callers must not write into what they get.
    """
    found: OrderedDict[Hashable, Made] = OrderedDict()

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Made:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        key = (args, *sorted(kwargs.items()))
        made = found.get(key)
        if made is None:
            with torch.inference_mode(False):  # so that it may enter a graph, whoever asks first
                made = function(*args, **kwargs)
            if _lasts(made):
                found[key] = made
                while len(found) > _MOST:
                    found.popitem(last=False)
        return made

    return call


def _lasts(made: Tensor | tuple[Tensor, ...]) -> bool:
    """Whether these are tensors with memory of their own that nothing else will write into."""
    parts = (made,) if isinstance(made, Tensor) else made
    plain = all(type(part) is Tensor for part in parts)
    return plain and not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
