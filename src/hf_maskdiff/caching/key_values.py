"""Keys and values that one pass stores for the next, for the models of this package."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

# Of positions: the first, and the one behind the last.
Span = tuple[int, int]
# Where a pass writes: rows and positions, as indices.
Targets = tuple[Tensor, Tensor] | tuple[slice, slice]


class KeptStates:
    """The keys, or the values, of all positions of one layer; a pass writes those that it computes in place.

    Behind the last position is a spare place, for what a pass computes but must not keep, so that writing is one
    operation whatever the positions are.

    Args:
        states: those of a full pass, with the batch first and the sequence at `dim`.

    Attributes:
        states: those of all positions, shaped as in the full pass; a view.
        length: how many positions there are.
    """

    def __init__(self, states: Tensor, dim: int = 1) -> None:
        self._dim = dim
        self._hold(_grown(states.movedim(dim, 1), states.shape[dim] + 1))

    def _hold(self, places: Tensor) -> None:
        self._places, self.length = places, places.shape[1] - 1
        self.states = places[:, : self.length].movedim(1, self._dim)

    def __len__(self) -> int:
        return len(self._places)

    def write(self, new: Tensor, targets: Targets) -> Tensor:
        """Write those of the queries, shaped as in the full pass; returns those of all positions.

        Args:
            new: of the queries.
            targets: see `targets_of`.
        """
        if torch.is_grad_enabled():  # without gradients nothing else reads the stored tensor
            self._hold(self._places.clone())
        self._places[targets] = new.movedim(self._dim, 1)
        return self.states

    def grow(self, length: int) -> None:
        """Make room at the end, with zeros, if this is more than there are; nothing may attend to them yet."""
        if length > self.length:
            self._hold(_grown(self._places[:, : self.length], length + 1))

    def take(self, rows: Tensor) -> KeptStates:
        """A copy that holds only these rows of the batch, int64 `(num_rows,)`."""
        taken = copy.copy(self)
        taken._hold(self._places[rows])
        return taken

    def put(self, rows: Tensor, other: KeptStates) -> None:
        """Overwrite these rows of the batch with those of `other`, which has as many positions."""
        self._places[rows] = other._places


def targets_of(positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Where a pass writes the keys and values of its queries, the same in every layer; for `KeptStates.write`.

    Args:
        positions: positions of the queries, int64 `(batch_size, num_queries)`, distinct within a row. A position p
            given as `-p - 1` is computed, but not kept.
        length: number of positions.
    """
    rows = torch.arange(len(positions), device=positions.device)[:, None]
    return rows, torch.where(positions < 0, length, positions)


def targets_in(span: Span) -> tuple[slice, slice]:
    """As `targets_of`, of positions that are a range, the same in every row, in order and all kept: a plain copy."""
    return slice(None), slice(*span)


def places_of(positions: Tensor) -> Tensor:
    """The plain positions p, including those given as `-p - 1`, which are not to be stored."""
    return torch.where(positions < 0, ~positions, positions)


def _grown(rows: Tensor, length: int) -> Tensor:
    """A copy of `(batch_size, n, ...)` with zeros behind it, `(batch_size, length, ...)`."""
    with torch.inference_mode(False):  # later passes may write into it in another mode
        grown = rows.new_empty(len(rows), length, *rows.shape[2:])
    grown[:, : rows.shape[1]] = rows
    grown[:, rows.shape[1] :].zero_()
    return grown


class LayerCache:
    """The latest keys and values of all positions in one layer.

    Attributes:
        key, value: of `(batch_size, num_positions, num_heads, head_dim)`; None before the first pass.
        targets: where the current pass writes, see `targets_of`. None in a full pass, which stores everything.
    """

    def __init__(self) -> None:
        self.key: KeptStates | None = None
        self.value: KeptStates | None = None
        self.targets: Targets | None = None

    def grow(self, length: int) -> None:
        """Make room at the end for new positions, if this is more than there are."""
        if self.key is not None and self.value is not None:
            self.key.grow(length)
            self.value.grow(length)

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of the current pass; returns the keys and values of all positions."""
        if self.targets is not None and self.key is not None and self.value is not None:
            return self.key.write(key, self.targets), self.value.write(value, self.targets)
        self.key, self.value = KeptStates(key), KeptStates(value)
        return self.key.states, self.value.states

    def take(self, rows: Tensor) -> LayerCache:
        """A copy that holds only these rows of the batch, int64 `(num_rows,)`."""
        taken = LayerCache()
        if self.key is not None and self.value is not None:
            taken.key, taken.value = self.key.take(rows), self.value.take(rows)
        return taken

    def put(self, rows: Tensor, other: LayerCache) -> None:
        """Overwrite these rows of the batch with what `other` holds."""
        if self.key is None or self.value is None or other.key is None or other.value is None:
            raise ValueError("rows can only be put into a cache that a full pass has filled. Run one first.")
        self.key.put(rows, other.key)
        self.value.put(rows, other.value)


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
            positions: of the queries, see `targets_of`; None for a full pass.
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
        targets = None
        if positions is not None and first is not None:
            for layer in self.layers:
                layer.grow(first.length if length is None else length)
            targets = targets_of(positions, first.length)
        for layer in self.layers:
            layer.targets = targets
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
