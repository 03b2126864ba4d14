"""Keys and values that one pass leaves for the next, for the models of this package."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerCache:
    """Keys and values of all positions in one layer, as the passes so far have left them.

    Attributes:
        key, value: `(batch_size, num_positions, num_heads, head_dim)`; None before the first pass.
        positions: where the queries of the current pass stand, int64 `(batch_size, num_queries)`, a p written as
            `-p - 1` where nothing is to be kept; None in a full pass, which keeps everything.
    """

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None
        self.positions: Tensor | None = None

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the keys and values of the current pass; returns those of all positions."""
        if self.positions is not None and self.key is not None and self.value is not None:
            key = completed(self.key, key, self.positions)
            value = completed(self.value, value, self.positions)
        self.key, self.value = key, value
        return key, value


class KeyValueCache:
    """What the passes of one call have left in every layer of a model; whoever makes the call owns it.

    ```python
    cache = model.new_cache()
    logits = model(tokens, cache=cache).logits                                  # a full pass fills it
    logits = model(new_tokens, positions=positions, cache=cache).logits         # a partial pass reads and completes it
    ```

    Nothing of it is kept on the model, so that calls in several threads do not meet, and all of it is freed with it.
    """

    def __init__(self) -> None:
        self.layers: list[LayerCache] = []

    def at(self, positions: Tensor | None, num_layers: int, batch_size: int) -> list[LayerCache]:
        """The layers, made ready for a pass.

        Args:
            positions: see `LayerCache`; None for a full pass.
            num_layers: layers of the model.
            batch_size: rows of the pass.

        Raises:
            ValueError: a partial pass without a full one over the same rows before it.
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
        return self.layers


class KeyValueSlot(nn.Module):
    """The one place in an attention layer where its keys and values can be seen and replaced.

    In a partial pass only the chosen positions of a step are queries, while every layer still attends to all
    positions. The keys and values of the others come from earlier passes, so each layer has to hand over its own in
    their final form: after projection, normalisation and position encoding, right before attention. As a module the
    slot can be watched with a forward hook. It has no weights and adds no key to a checkpoint.
    """

    def forward(self, key: Tensor, value: Tensor, kept: LayerCache | None = None) -> tuple[Tensor, Tensor]:
        """Return the keys and values that attention shall use.

        Args:
            key: of the queries, `(batch_size, num_queries, num_heads, head_dim)`, floating point.
            value: same shape and dtype as `key`.
            kept: what earlier passes left in this layer; None computes as without a cache.
        """
        return (key, value) if kept is None else kept.update(key, value)


def places_of(positions: Tensor) -> Tensor:
    """Places in the sequence, also of positions that are marked as not to be written (`-p - 1`)."""
    return torch.where(positions < 0, ~positions, positions)


def completed(kept: Tensor, new: Tensor, positions: Tensor, dim: int = 1) -> Tensor:
    """Keys or values of all positions: new ones at `positions`, kept ones elsewhere and where p is written `-p - 1`.

    Args:
        kept: those of the last pass, `(batch_size, ...)` with the sequence at `dim`.
        new: those of the queries, the shape of `kept` but for the number of queries at `dim`.
        positions: places of the queries, int64 `(batch_size, num_queries)`, distinct in a row.
    """
    kept_rows, new_rows = kept.movedim(dim, 1), new.movedim(dim, 1)
    if torch.is_grad_enabled():  # else written in place: what is kept has no other reader
        kept_rows = kept_rows.clone()
    rows = torch.arange(len(positions), device=positions.device)[:, None]
    places = places_of(positions)
    is_new = (positions >= 0)[(...,) + (None,) * (new.ndim - 2)]
    kept_rows[rows, places] = torch.where(is_new, new_rows, kept_rows[rows, places])
    return kept_rows.movedim(1, dim)
