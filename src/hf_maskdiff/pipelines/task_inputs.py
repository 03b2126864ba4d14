"""What users hand to a task of transformers as several inputs: tuples, arrays, columns of a data set, any iterable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from types import GeneratorType
from typing import Any

from torch.utils.data import Dataset


class _Items(Dataset):
    """What has a length and items, as transformers wants to see it."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def as_inputs(inputs: Any) -> Any:
    """The inputs of a task in one of the forms that transformers takes for several, where they are."""
    if isinstance(inputs, str | Mapping | list | Dataset | GeneratorType) or not isinstance(inputs, Iterable):
        return inputs
    if hasattr(inputs, "tolist"):
        return inputs.tolist()  # an array of no dimension is one input
    if isinstance(inputs, tuple):
        return list(inputs)
    has_items = isinstance(inputs, Sized) and hasattr(inputs, "__getitem__")
    return _Items(inputs) if has_items else (one for one in inputs)
