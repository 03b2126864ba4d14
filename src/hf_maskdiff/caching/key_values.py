"""Keys and values that one pass stores for the next, for the models of this package."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerCache:
    """The latest keys and values of all positions in one layer.

    Attributes:
        key, value: `(batch_size, num_positions, num_heads, head_dim)`; None before the first pass.
        positions: positions of the current pass's queries, int64 `(batch_size, num_queries)`. A position p given as
            `-p - 1` is computed, but its key and value are not stored. None in a full pass, which stores everything.
    """

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None
        self.positions: Tensor | None = None

    def grow(self, length: int) -> None:
        """Make room for new positions at the end."""
        if self.key is not None and self.value is not None:
            self.key, self.value = grown(self.key, length), grown(self.value, length)

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of the current pass; returns the keys and values of all positions."""
        if self.positions is not None and self.key is not None and self.value is not None:
            key = completed(self.key, key, self.positions)
            value = completed(self.value, value, self.positions)
        self.key, self.value = key, value
        return key, value

    def take(self, rows: Tensor) -> LayerCache:
        """A copy that holds only these rows of the batch, int64 `(num_rows,)`."""
        taken = LayerCache()
        if self.key is not None and self.value is not None:
            taken.key, taken.value = self.key[rows], self.value[rows]
        return taken

    def put(self, rows: Tensor, other: LayerCache) -> None:
        """Overwrite these rows of the batch with what `other` holds."""
        if self.key is None or self.value is None or other.key is None or other.value is None:
            raise ValueError("rows can only be put into a cache that a full pass has filled. Run one first.")
        self.key[rows], self.value[rows] = other.key, other.value


class KeyValueCache:
    """The keys and values that the passes of one call have stored in every layer; it belongs to the caller.

    ```python
    cache = model.new_cache()
    logits = model(tokens, cache=cache).logits                                  # a full pass fills it
    logits = model(new_tokens, positions=positions, cache=cache).logits         # a partial pass reads and completes it
    ```

    The model itself stores nothing, so calls in several threads do not disturb each other, and deleting the cache frees
    all of its memory.
    """

    def __init__(self) -> None:
        self.layers: list[LayerCache] = []

    def at(
        self, positions: Tensor | None, num_layers: int, batch_size: int, length: int | None = None
    ) -> list[LayerCache]:
        """The caches of all layers, prepared for a pass.

        Args:
            positions: see `LayerCache`; None for a full pass.
            num_layers: number of layers in the model.
            batch_size: number of rows in the pass.
            length: number of positions, where there are more of them than in the pass before.

        Raises:
            ValueError: a partial pass that does not follow a full pass over the same rows.
        """
        if not self.layers:
            self.layers = [LayerCache() for _ in range(num_layers)]
        first = self.layers[0].key
        if positions is not None and (first is None or len(first) != batch_size):
            raise ValueError(
                f"`positions` need a full pass over the same {batch_size} rows before them, in the same cache "
                "context. Call the model without `positions` first."
            )
        for layer in self.layers:
            layer.positions = positions
            if length is not None and positions is not None:
                layer.grow(length)
        return self.layers

    def take(self, rows: Tensor) -> KeyValueCache:
        """A copy that holds only these rows of the batch, int64 `(num_rows,)`."""
        taken = KeyValueCache()
        taken.layers = [layer.take(rows) for layer in self.layers]
        return taken

    def put(self, rows: Tensor, other: KeyValueCache) -> None:
        """Overwrite these rows of the batch with what `other` holds."""
        for layer, new in zip(self.layers, other.layers, strict=True):
            layer.put(rows, new)


class KeyValueSlot(nn.Module):
    """The one place in an attention layer where its keys and values can be seen and replaced.

    In a partial pass only the positions that the step reveals are queries, but every layer still attends to all
    positions. The keys and values of all other positions come from earlier passes. So each layer passes its keys and
    values through this slot in their final form: after projection, normalisation and position encoding, right before
    attention. Since the slot is a module, a forward hook can observe it. It has no weights and adds no key to a
    checkpoint.
    """

    def forward(self, key: Tensor, value: Tensor, kept: LayerCache | None = None) -> tuple[Tensor, Tensor]:
        """Return the keys and values for attention to use.

        Args:
            key: keys of the query positions, `(batch_size, num_queries, num_heads, head_dim)`, floating point.
            value: their values, same shape and dtype as `key`.
            kept: this layer's cache; None computes without a cache.
        """
        return (key, value) if kept is None else kept.update(key, value)


def places_of(positions: Tensor) -> Tensor:
    """The plain positions p, including those given as `-p - 1`, which are not to be stored."""
    return torch.where(positions < 0, ~positions, positions)


def grown(kept: Tensor, length: int, dim: int = 1) -> Tensor:
    """Keys or values of so many positions: those stored, and zeros for new ones, which nothing may attend to yet.

    Args:
        kept: with the sequence at `dim`.
        length: number of positions; not below that of `kept`.
    """
    missing = length - kept.shape[dim]
    if missing <= 0:
        return kept
    shape = list(kept.shape)
    shape[dim] = missing
    return torch.cat([kept, kept.new_zeros(shape)], dim)


def completed(kept: Tensor, new: Tensor, positions: Tensor, dim: int = 1) -> Tensor:
    """Keys or values of all positions: the new ones at `positions`, and the stored ones everywhere else.

    Args:
        kept: the stored keys or values, `(batch_size, ...)` with the sequence at `dim`.
        new: the keys or values of the queries, shaped like `kept` but with the number of queries at `dim`.
        positions: positions of the queries, int64 `(batch_size, num_queries)`, distinct within a row; a position p
            given as `-p - 1` keeps its stored value.
    """
    kept_rows, new_rows = kept.movedim(dim, 1), new.movedim(dim, 1)
    if torch.is_grad_enabled():  # without gradients, write in place: nothing else reads the stored tensor
        kept_rows = kept_rows.clone()
    rows = torch.arange(len(positions), device=positions.device)[:, None]
    places = places_of(positions)
    is_new = (positions >= 0)[(...,) + (None,) * (new.ndim - 2)]
    kept_rows[rows, places] = torch.where(is_new, new_rows, kept_rows[rows, places])
    return kept_rows.movedim(1, dim)
