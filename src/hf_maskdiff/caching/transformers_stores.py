"""Two ways to store the keys and values of a transformers model between the passes of a step."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_maskdiff.caching.key_values import KeptStates, Span, Targets, places_of, targets_in, targets_of


class KeyValueStore(ABC):
    """Runs a transformers model and stores every layer's keys and values; a partial pass updates some of them.

    `masks_are_kept` says whether a partial pass takes its attention masks from the full pass. If so, give the model the
    mask of the queries alone; else that of all positions.
    """

    masks_are_kept = False

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """Number of layers whose keys and values have been stored."""

    @abstractmethod
    def grow(self, length: int) -> int:
        """Make room for new positions at the end of the sequences; returns how many there are."""

    @abstractmethod
    def run(self, model: PreTrainedModel, positions: Tensor | None, span: Span | None = None, **inputs: Any) -> Tensor:
        """Run the model; returns the logits of the queries.

        Args:
            positions: positions of the queries in the sequence, int64 `(batch_size, num_queries)`; a position p given
                as `-p - 1` is computed but not stored. None in a full pass.
            span: the range that `positions` are in every row, see `targets_in`; None if they are none.
            inputs: the other arguments of the model.
        """

    @abstractmethod
    def take(self, rows: Tensor) -> KeyValueStore:
        """A copy that holds only these rows of the batch, int64 `(num_rows,)`."""

    @abstractmethod
    def put(self, rows: Tensor, other: Any) -> None:
        """Overwrite these rows of the batch with what `other`, a store of the same class, holds."""


def _targets(positions: Tensor | None, length: int, span: Span | None) -> Targets | None:
    """Where a pass writes; None for a full pass, which stores everything."""
    if positions is None:
        return None
    return targets_of(positions, length) if span is None else targets_in(span)


# --- models that take `past_key_values` -------------------------------------------------------------------------------


class PositionalCacheLayer(CacheLayerMixin):
    """One layer's keys and values `(batch_size, num_heads, L, head_dim)`; each row can be written at any positions."""

    is_sliding = False
    targets: Targets | None = None  # of the current pass, None in a full one
    _kept: tuple[KeptStates, KeptStates]

    def lazy_initialization(self, key_states: Tensor, *args: Any) -> None:
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.targets is None:
            self.lazy_initialization(key_states)
            self._hold(KeptStates(key_states, dim=2), KeptStates(value_states, dim=2))
        else:
            keys, values = self._kept
            self.keys, self.values = keys.write(key_states, self.targets), values.write(value_states, self.targets)
        return self.keys, self.values

    def _hold(self, keys: KeptStates, values: KeptStates) -> None:
        self._kept, self.keys, self.values = (keys, values), keys.states, values.states

    def get_seq_length(self) -> int:
        return self.keys.shape[2] if self.is_initialized else 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name in transformers 5.0

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Number of keys that a query sees, and the first one's position; transformers 5.0 passes the queries."""
        num_queries = query_length.shape[0] if isinstance(query_length, Tensor) else query_length
        return (num_queries if self.targets is None else self.get_seq_length()), 0

    def grow(self, length: int) -> None:
        for kept in self._kept:
            kept.grow(length)
        self._hold(*self._kept)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._hold(*(kept.take(indices) for kept in self._kept))

    def take(self, rows: Tensor) -> PositionalCacheLayer:
        taken = PositionalCacheLayer()
        taken.lazy_initialization(self.keys)
        taken._hold(*(kept.take(rows) for kept in self._kept))
        return taken

    def put(self, rows: Tensor, other: PositionalCacheLayer) -> None:
        for kept, new in zip(self._kept, other._kept, strict=True):
            kept.put(rows, new)


class PositionalCache(Cache, KeyValueStore):
    """A `past_key_values` that can be written at any positions of each row instead of only at the end.

    ```python
    cache = PositionalCache()
    full = model(input_ids=ids, past_key_values=cache.at(None), use_cache=True, is_causal=False).logits
    ids = ids.scatter(1, positions, new)
    partial = model(input_ids=new, position_ids=positions, past_key_values=cache.at(positions), use_cache=True,
                    is_causal=False).logits  # (batch_size, num_queries, vocab_size)
    ```
    """

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=PositionalCacheLayer)

    def at(self, positions: Tensor | None, span: Span | None = None) -> PositionalCache:
        """This cache, set to write `positions` in the next pass, in a range if it is one; None writes all."""
        targets = _targets(positions, self.get_seq_length(), span)
        for layer in self.layers:
            layer.targets = targets
        return self

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    @property
    def num_layers(self) -> int:
        return sum(layer.is_initialized for layer in self.layers)

    def grow(self, length: int) -> int:
        if length > self.get_seq_length():
            for layer in self.layers:
                layer.grow(length)
        return self.get_seq_length()

    def run(self, model: PreTrainedModel, positions: Tensor | None, span: Span | None = None, **inputs: Any) -> Tensor:
        return model(**inputs, past_key_values=self.at(positions, span), use_cache=True).logits

    def take(self, rows: Tensor) -> PositionalCache:
        taken = PositionalCache()
        taken.layers = [layer.take(rows) for layer in self.layers]
        return taken

    def put(self, rows: Tensor, other: PositionalCache) -> None:
        for layer, new in zip(self.layers, other.layers, strict=True):
            layer.put(rows, new)


# --- models without `past_key_values`: through their attention function -----------------------------------------------

_running: ContextVar[AttentionStore] = ContextVar("running")


class AttentionStore(KeyValueStore):
    """Stores keys, values and masks by wrapping the attention function that transformers models call.

    This needs nothing else from the model. The masks are those that the model itself made in the full pass. A partial
    pass uses the mask rows of its queries, so attention windows are right wherever the queries stand. Layers are
    identified by the order of their calls, because some models use one module for all layers.
    """

    masks_are_kept = True

    def __init__(self) -> None:
        self.layers: list[tuple[KeptStates, KeptStates, Tensor | None]] = []
        self.positions: Tensor | None = None
        self._targets: Targets | None = None
        self._next = 0
        self._rows: dict[int, Tensor] = {}

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def grow(self, length: int) -> int:
        stored = self.layers[0][0].length
        if length > stored:
            raise ValueError(
                "sequences must keep their length between the passes of this model, whose masks are those of its full "
                f"pass, got {length} after {stored}. Call `disable_cache()`."
            )
        return stored

    def run(self, model: PreTrainedModel, positions: Tensor | None, span: Span | None = None, **inputs: Any) -> Tensor:
        own = model.config._attn_implementation
        if positions is None:
            self.layers.clear()
        self.positions, self._next = positions, 0
        self._targets = _targets(positions, self.layers[0][0].length if self.layers else 0, span)
        token = _running.set(self)
        try:
            model.set_attn_implementation(_registered(own))
            return model(**inputs).logits
        finally:
            model.set_attn_implementation(own)
            _running.reset(token)
            self._rows.clear()

    def take(self, rows: Tensor) -> AttentionStore:
        taken, masks = AttentionStore(), dict[int, Tensor]()  # layers share their masks
        for key, value, mask in self.layers:
            if mask is not None and len(mask) > 1:
                mask = masks.setdefault(id(mask), mask[rows])
            taken.layers.append((key.take(rows), value.take(rows), mask))
        return taken

    def put(self, rows: Tensor, other: AttentionStore) -> None:
        done = set[int]()
        for (key, value, mask), (new_key, new_value, new_mask) in zip(self.layers, other.layers, strict=True):
            key.put(rows, new_key)
            value.put(rows, new_value)
            if mask is not None and new_mask is not None and len(mask) > 1 and id(mask) not in done:
                mask[rows] = new_mask
                done.add(id(mask))

    def attend(
        self, attention: Callable, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any
    ) -> Any:
        """Call `attention` with these queries and with the keys and values of all positions."""
        mask = kwargs.pop("attention_mask")
        if self.positions is None or self._targets is None:
            self.layers.append((KeptStates(key, dim=2), KeptStates(value, dim=2), mask))
        else:
            kept_key, kept_value, mask = self.layers[self._next]
            key, value = kept_key.write(key, self._targets), kept_value.write(value, self._targets)
            mask = self._rows_of(mask, self.positions)
        self._next += 1
        return attention(module, query, key, value, attention_mask=mask, **kwargs)

    def _rows_of(self, mask: Tensor | None, positions: Tensor) -> Tensor | None:
        """The queries' rows of a mask `(batch_size, heads, L, L)`, computed once since layers share the mask."""
        if mask is None or mask.shape[2] == 1:
            return mask
        if id(mask) not in self._rows:
            mask_rows = mask.expand(len(positions), -1, -1, -1)
            index = places_of(positions)[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
            self._rows[id(mask)] = mask_rows.gather(2, index)
        return self._rows[id(mask)]


def _registered(implementation: str) -> str:
    """Register the wrapped attention implementation, and return its name."""
    name = f"hf_maskdiff_{implementation}"

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> Any:
        # Eager attention is in no registry: every model file defines its own, next to the modules that call it.
        own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        function = ALL_ATTENTION_FUNCTIONS.get(implementation, own)
        return _running.get().attend(function, module, query, key, value, attention_mask=attention_mask, **kwargs)

    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, AttentionMaskInterface()[implementation])
    return name
