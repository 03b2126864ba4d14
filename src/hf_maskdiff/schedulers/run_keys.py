"""Noise keys that stay the same over the steps of a run, and are new in every run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..sampling import Generators


class _GlobalGenerator:
    """Stands for torch's own generator, which a caller names by None."""


_GLOBAL = _GlobalGenerator()


class RunKeys:
    """What each generator drew in its run's first step, for what a scheduler decides once for a whole run.

    A step only sees a generator, whose state moves on with every step: its keys of the first step are kept, by the
    generator, so that a row's are its own in any batch. Nothing more is drawn. A run begins at step 0, and wherever
    time goes back. Keys are forgotten with their generator.
    """

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[Any, dict[int, tuple[int, Tensor]]] = WeakKeyDictionary()
        self._held: dict[int, tuple[Any, dict[int, tuple[int, Tensor]]]] = {}

    def at(self, step_index: int, generator: Generators, keys: Tensor) -> Tensor:
        """The run's keys, int64 `(batch_size,)`.

        Args:
            step_index: n, from 0.
            generator: what the caller of the step passed.
            keys: that step's own, int64 `(batch_size,)`; those of the run where it begins here.
        """
        if not isinstance(generator, Sequence):
            return self._kept(_GLOBAL if generator is None else generator, 0, step_index, keys)
        kept, rows_of = [], Counter[torch.Generator]()  # one generator may be given for several rows
        for row, one in enumerate(generator):
            kept.append(self._kept(one, rows_of[one], step_index, keys[row : row + 1]))
            rows_of[one] += 1
        return torch.cat(kept) if kept else keys

    def _kept(self, generator: Any, which: int, step_index: int, keys: Tensor) -> Tensor:
        of_generator = self._of_generator(generator)
        latest, kept = of_generator.get(which, (step_index, keys))
        begins = step_index == 0 or step_index < latest or kept.shape != keys.shape or kept.device != keys.device
        of_generator[which] = (step_index, keys if begins else kept)
        return of_generator[which][1]

    def _of_generator(self, generator: Any) -> dict[int, tuple[int, Tensor]]:
        try:
            return self._of.setdefault(generator, {})
        except TypeError:  # torch 2.6: a generator takes no weak reference, so it is held until the next run
            return self._held.setdefault(id(generator), (generator, {}))[1]

    def __reduce__(self) -> tuple[type[RunKeys], tuple[()]]:
        """A copy in another process has other generators."""
        return RunKeys, ()
