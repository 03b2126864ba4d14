"""Pickles of unknown origin: tensors and plain containers are built of them, and nothing else is touched."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, NoReturn

import torch


class _Admitted:
    """A function that a pickle may call, and can do nothing else to.

    A pickle gets hold of whatever it names, and has operations that set attributes and entries of what it holds. So it
    is given this in the function's place, which has neither.
    """

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: object) -> Any:
        return self._function(*args)

    def _refuse(self, *args: object) -> NoReturn:
        raise pickle.UnpicklingError(f"it changes {self._function.__name__!r}, which is not its own")

    __setstate__ = __setattr__ = __delattr__ = _refuse
    __setitem__ = append = extend = add = update = _refuse


class _Dictionary(dict):
    """Stands for an `OrderedDict`, which a pickle may give attributes, methods among them; nothing here reads them."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


# All that a checkpoint's tensors and containers need to be put together; storages are recognised by torch itself.
_ADMITTED = {
    ("collections", "OrderedDict"): _Admitted(_Dictionary),
    ("torch._utils", "_rebuild_tensor_v2"): _Admitted(torch._utils._rebuild_tensor_v2),
    ("torch._utils", "_rebuild_parameter"): _Admitted(torch._utils._rebuild_parameter),
    ("torch", "Size"): _Admitted(torch.Size),
}


class _Foreign:
    """Stands for anything not admitted: it takes whatever a pickle does to an object, and does nothing."""

    __slots__ = ()

    def __new__(cls, *args: object, **kwargs: object) -> _Foreign:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __call__(self, *args: object) -> _Foreign:
        return self

    def ignore(self, *args: object) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = ignore


class RestrictedUnpickler(pickle._Unpickler):
    """For `torch.load`: whatever a pickle names is imported from a list of four, or replaced by a placeholder.

    It is the unpickler written in Python. That in C keeps its memo in an array as long as the largest number a file
    names, which a few bytes can make larger than any memory.
    """

    def find_class(self, module: str, name: str) -> Any:
        return _ADMITTED.get((module, name), _Foreign)

    def get_extension(self, code: int) -> NoReturn:
        """Numbers in place of names: what they stand for is looked up and kept in a table of the whole process."""
        raise pickle.UnpicklingError(f"it names an object by the number {code} of another program's registry")
