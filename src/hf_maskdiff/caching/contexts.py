"""Caches by name, for callers that hand none to a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Cache = TypeVar("Cache")


class CacheContexts(Generic[Cache]):
    """One cache for each name that a caller uses, made when it is first asked for.

    A model that is called by hand, in `with model.cache_context("cond"):`, keeps its caches here. They belong to the
    model, so only one caller at a time can use them. Pipelines make caches of their own for each call.

    Args:
        make: returns an empty cache.
    """

    def __init__(self, make: Callable[[], Cache]) -> None:
        self._make, self._name = make, ""
        self._caches: dict[str, Cache] = {}

    @contextmanager
    def use(self, name: str) -> Iterator[None]:
        """Make `name` the current one, and afterwards the one that was current before."""
        before, self._name = self._name, name
        try:
            yield
        finally:
            self._name = before

    @property
    def current(self) -> Cache:
        """The cache of the current name."""
        if self._name not in self._caches:
            self._caches[self._name] = self._make()
        return self._caches[self._name]

    def __iter__(self) -> Iterator[Cache]:
        return iter(self._caches.values())

    def clear(self) -> None:
        """Forget all caches."""
        self._caches.clear()
