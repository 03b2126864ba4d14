"""Named caches, for callers that pass no `cache` argument to the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Cache = TypeVar("Cache")


class CacheContexts(Generic[Cache]):
    """One cache for each context name, created when it is first used.

    A model that is called by hand, in `with model.cache_context("cond"):`, keeps its caches here. They belong to the
    model, so only one caller at a time can use them. Pipelines create new caches for each call instead.

    Args:
        make: returns an empty cache.
    """

    def __init__(self, make: Callable[[], Cache]) -> None:
        self._make, self._name = make, ""
        self._caches: dict[str, Cache] = {}

    @contextmanager
    def use(self, name: str) -> Iterator[None]:
        """Make `name` the current context; on exit the previous one is current again."""
        before, self._name = self._name, name
        try:
            yield
        finally:
            self._name = before

    @property
    def current(self) -> Cache:
        """The cache of the current context."""
        if self._name not in self._caches:
            self._caches[self._name] = self._make()
        return self._caches[self._name]

    def __iter__(self) -> Iterator[Cache]:
        return iter(self._caches.values())

    def clear(self) -> None:
        """Forget all caches."""
        self._caches.clear()
