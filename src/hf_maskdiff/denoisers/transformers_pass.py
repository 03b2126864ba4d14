"""One pass of a transformers model: the arguments it takes, and the rows whose logits are computed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from diffusers.utils.torch_utils import is_compiled_module, unwrap_module
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_maskdiff.attention_rule import BlockCausal
from hf_maskdiff.caching import KeyValueStore, PositionalCache, Span
from hf_maskdiff.denoisers.direct_pass import direct_pass, runs_directly


@dataclass
class Abilities:
    """How to use a model, as found by the probe.

    Args:
        implementation: the attention implementation for which all of this was found.
        attention: makes the arguments that let every position attend to every real one.
        first_position: the position id that the model uses for the first position of a sequence.
        make_store: creates a store for the model's keys and values.
        probed_lengths: lengths at which the store was tested.
        noise: how far a row of a batch can shift another row's logits, in standard deviations. It is 0 except for 8-bit
            models, whose rounding depends on the largest number in the batch.
        rule: makes the mask of each query, for `attention`; None lets every position see every real one.
        direct: whether `direct_pass` gives the same logits, while the model `runs_directly`.
    """

    implementation: str
    attention: Callable[..., dict[str, Any]]
    first_position: int = 0
    make_store: Callable[[], KeyValueStore] = PositionalCache
    probed_lengths: set[int] = field(default_factory=set)
    noise: float = 0.0
    rule: BlockCausal | None = None
    direct: bool = False


def accepted_arguments(model: PreTrainedModel) -> frozenset[str]:
    """Names of the arguments that a model's `forward` takes."""
    return _arguments_of(type(unwrap_module(model)))  # type: ignore[arg-type]


@cache
def _arguments_of(model_class: Hashable) -> frozenset[str]:
    return frozenset(inspect.signature(model_class.forward).parameters)  # type: ignore[attr-defined]


def run_pass(
    model: PreTrainedModel,
    abilities: Abilities,
    store: KeyValueStore | None,
    input_ids: Tensor,
    places: Tensor,
    positions: Tensor | None = None,
    attention_mask: Tensor | None = None,
    logits_at: Tensor | None = None,
    offsets: Tensor | None = None,
    length: int | None = None,
    span: Span | None = None,
) -> Tensor:
    """Logits of one pass, `(batch_size, n, vocab_size)`.

    Args:
        model: the model.
        abilities: how to use it.
        store: stores its keys and values; None stores nothing.
        input_ids: tokens of the queries, int64 `(batch_size, num_queries)`.
        places: positions of the queries in the sequence, the same shape.
        positions: None in a full pass; in a partial pass `places`, with `-p - 1` for a p that must not be stored.
        attention_mask: bool `(batch_size, L)`, False for padding.
        logits_at: the queries whose logits are wanted, int64 `(batch_size, n)`; None for all.
        offsets: where each row's blocks begin, see `BlockCausal.blocks_of`.
        length: L, of a partial pass.
        span: the range that `positions` are in every row, in order, if they are one.

    The caller must hold the model with `alone`, so that no other thread uses it meanwhile.
    """
    mask, num_keys = attention_mask, places.shape[1]
    if positions is not None and store is not None:
        if store.masks_are_kept and mask is not None:
            mask = mask.gather(1, places)  # attention uses the stored masks; the model may read this
        elif not store.masks_are_kept and length is not None:
            num_keys = store.grow(length)
        elif not store.masks_are_kept and mask is not None:
            num_keys = mask.shape[1]
    if abilities.rule is not None:
        mask = abilities.rule.seen(places, num_keys, mask, offsets, length)
    if abilities.direct and (store is None or isinstance(store, PositionalCache)) and runs_directly(model):
        seen = mask.bool()[:, None, None] if abilities.rule is None and mask is not None else mask
        same = positions is None or span is not None  # of all rows
        ids = (places[:1] if same else places) + abilities.first_position
        keep = None if store is None else store.at(positions, span).update
        return direct_pass(model, input_ids, ids, seen, keep, logits_at)
    accepted = accepted_arguments(model)
    inputs = {"input_ids": input_ids, **abilities.attention(model, mask)}
    if "position_ids" in accepted:
        inputs["position_ids"] = places + abilities.first_position
    cacheless = {"use_cache": False} if "use_cache" in accepted else {}
    # A compiled model may have been traced without the hook, and then would skip it without a word.
    before, after = (None, logits_at) if is_compiled(model) else (logits_at, None)
    with _rows_before_head(model, before):
        logits = model(**inputs, **cacheless).logits if store is None else store.run(model, positions, span, **inputs)
    return logits if after is None else _rows_of(logits, after)


def is_compiled(model: nn.Module) -> bool:
    """Whether the whole model is, by `torch.compile(model)` or `model.compile()`."""
    return is_compiled_module(model) or getattr(model, "_compiled_call_impl", None) is not None


def _rows_of(states: Tensor, rows: Tensor) -> Tensor:
    """Rows `(batch_size, n)` of hidden states or logits `(batch_size, num_queries, size)`."""
    return states.gather(1, rows.to(states.device)[..., None].expand(-1, -1, states.shape[-1]))


@contextmanager
def _rows_before_head(model: PreTrainedModel, rows: Tensor | None) -> Iterator[None]:
    """Pass only these rows of the hidden states to the model's head, since logits need much memory."""
    if rows is None:
        yield
        return

    def select(head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_states, *others = inputs
        return (_rows_of(hidden_states, rows), *others)

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
