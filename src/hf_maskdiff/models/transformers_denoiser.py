"""Any transformers model that predicts tokens, as a denoiser: made bidirectional, with partial caching, and probed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_maskdiff.models.partial_cache import PartialCacheConfig, places_of
from hf_maskdiff.models.transformers_cache import AttentionStore, KeyValueStore, PositionalCache

# What a probe reads: so many tokens, and so many more than the smallest window of a model that has one.
_PROBE_LENGTH = 12
# Relative differences that rounding explains.
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


@dataclass
class _Context:
    """What the passes of one cache context share."""

    tokens: Tensor
    attention_mask: Tensor | None
    store: KeyValueStore


@dataclass
class _Abilities:
    """How a model is used, found by trying."""

    implementation: str  # of attention, for which the rest was found
    attention: Callable[..., dict[str, Any]]  # makes the arguments that let every position see every real one
    first_position: int = 0  # the model's own number for the place 0
    make_store: Callable[[], KeyValueStore] = PositionalCache
    probed_lengths: set[int] = field(default_factory=set)


class TransformersDenoiser:
    """Lets any transformers model with `.logits` denoise, encoder or decoder, with no code of its own.

    What has to be known of a model is found out by a probe of a few short passes before its first use, and again before
    its first sequence that is longer than its attention window: how every position comes to see every other one; how
    positions are numbered; and, with partial caching, which of two ways gives all layers' keys and values. A model for
    which no way gives the right numbers is refused by name.

    ```python
    denoiser = TransformersDenoiser(AutoModelForMaskedLM.from_pretrained("answerdotai/ModernBERT-base"))
    denoiser.enable_cache(PartialCacheConfig(num_substeps=2))
    logits = denoiser(input_ids)
    logits = denoiser(new_tokens, positions=positions)  # a partial pass
    ```

    Args:
        model: in evaluation mode.
        shift_logits: row i - 1 of the model's output predicts position i, as in a model that was made from a causal one
            (Dream); position 0 is predicted by its own row.
    """

    time_conditioning = False

    def __init__(self, model: PreTrainedModel, shift_logits: bool = False) -> None:
        self.model, self.shift_logits = model, shift_logits
        self.partial_cache: PartialCacheConfig | None = None
        self._accepted = frozenset(inspect.signature(type(unwrap_module(model)).forward).parameters)
        self._abilities: _Abilities | None = None
        self._contexts: dict[str, _Context] = {}
        self._context = ""

    # --- what a pipeline asks -----------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return type(unwrap_module(self.model)).__name__

    @property
    def _config(self) -> Any:
        return self.model.config.get_text_config()

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._config.vocab_size

    @property
    def model_length(self) -> int | None:
        """The longest sequence, or None where the configuration names none."""
        length = getattr(self._config, "max_position_embeddings", None)
        return None if length is None else length - _reserved_positions(self.model)

    @property
    def mask_token_id(self) -> int | None:
        """The mask that the configuration names, if any."""
        mask = getattr(self._config, "mask_token_id", None)
        return mask if mask is not None and mask < self.vocab_size else None  # some name one of another vocabulary

    # --- partial caching: as `PartialCacheMixin` ----------------------------------------------------------------------

    def enable_cache(self, config: PartialCacheConfig) -> None:
        if not isinstance(config, PartialCacheConfig):
            raise ValueError(
                f"a model of transformers takes a PartialCacheConfig, got {type(config).__name__}. diffusers' caches "
                "are for its own models."
            )
        self.partial_cache = config

    def disable_cache(self) -> None:
        self.partial_cache = None
        self._reset_stateful_cache()

    @contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        """Passes within it see the keys and values of their own context alone."""
        before, self._context = self._context, name
        try:
            yield
        finally:
            self._context = before

    def _reset_stateful_cache(self) -> None:
        self._contexts.clear()

    # --- passes -------------------------------------------------------------------------------------------------------

    def __call__(
        self,
        input_ids: Tensor,
        timestep: float | Tensor | None = None,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        logits_at: Tensor | None = None,
    ) -> Tensor:
        """Predict tokens.

        Args:
            input_ids: int64 `(batch_size, L)`; in a partial pass those at `positions`.
            timestep: not read.
            attention_mask: bool `(batch_size, L)`, False where padded; that of the full pass holds for partial ones.
            positions: for a partial pass, after a full one in the same `cache_context`: int64 like `input_ids`,
                distinct in a row; a p written as `-p - 1` is computed and leaves the cached keys and values of p.
            logits_at: the places whose logits are wanted, int64 `(batch_size, n)`, in a full pass; None for all L.

        Returns:
            Logits `(batch_size, n, vocab_size)`, of the places in `positions` in a partial pass.

        Raises:
            ValueError: a model that the probe refuses; a partial pass without a full one.
        """
        abilities = self._probed(input_ids.device, input_ids.shape[1] if positions is None else 0)
        if positions is not None:
            return self._partial_pass(abilities, input_ids, positions)
        places = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        if self.shift_logits:
            logits_at = (places if logits_at is None else logits_at).sub(1).clamp(min=0)
        store = None
        if self.partial_cache is not None and self.partial_cache.num_substeps > 1:
            store = abilities.make_store()
            tokens = input_ids if self.shift_logits else input_ids[:, :0]
            self._contexts[self._context] = _Context(tokens, attention_mask, store)
        return self._run(abilities, store, input_ids, places, None, attention_mask, logits_at)

    def _partial_pass(self, abilities: _Abilities, tokens: Tensor, positions: Tensor) -> Tensor:
        context = self._contexts.get(self._context)
        if context is None or len(context.tokens) != len(tokens):
            raise ValueError(
                f"`positions` need a full pass over the same {len(tokens)} rows before them, in the same cache "
                "context. Enable the cache, and call the model without `positions` first."
            )
        logits_at = None
        if self.shift_logits:
            context.tokens, positions, logits_at = with_predecessors(context.tokens, tokens, positions)
            tokens = context.tokens.gather(1, places_of(positions))
        places = places_of(positions)
        return self._run(abilities, context.store, tokens, places, positions, context.attention_mask, logits_at)

    def _run(
        self,
        abilities: _Abilities,
        store: KeyValueStore | None,
        input_ids: Tensor,
        places: Tensor,
        positions: Tensor | None = None,
        attention_mask: Tensor | None = None,
        logits_at: Tensor | None = None,
    ) -> Tensor:
        if attention_mask is not None and positions is not None and store is not None and store.masks_are_kept:
            attention_mask = attention_mask.gather(1, places)  # for what else a model does with it
        inputs = {"input_ids": input_ids, **abilities.attention(self.model, attention_mask)}
        if "position_ids" in self._accepted:
            inputs["position_ids"] = places + abilities.first_position
        with _rows_before_head(self.model, logits_at):
            if store is not None:
                return store.run(self.model, positions, **inputs)
            cacheless = {"use_cache": False} if "use_cache" in self._accepted else {}
            return self.model(**inputs, **cacheless).logits

    # --- the probe ----------------------------------------------------------------------------------------------------

    def _probed(self, device: torch.device, length: int) -> _Abilities:
        """How the model is used, found out where that is not known for this length yet."""
        window = _smallest_window(self._config)
        size = _PROBE_LENGTH if window is None or length <= window else window + _PROBE_LENGTH
        implementation = self.model.config._attn_implementation
        if self._abilities is None or self._abilities.implementation != implementation:
            found = _Abilities(implementation, self._bidirectional(device, implementation))
            found.first_position = self._first_position(found, device)
            self._abilities = found
        found = self._abilities
        needs_store = self.partial_cache is not None and self.partial_cache.num_substeps > 1
        if needs_store and size not in found.probed_lengths:
            found.make_store = self._working_store(found, device, size)
            found.probed_lengths.add(size)
        return found

    def _example(self, device: torch.device, length: int = _PROBE_LENGTH) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, some of them masked, `(2, length)`, their places, and a mask with padding."""
        special = {getattr(self._config, f"{name}_token_id", None) for name in ("pad", "mask", "bos", "eos", "unk")}
        ids = torch.tensor([i for i in range(min(self.vocab_size, 1000)) if i not in special])
        picked = ids[torch.randint(len(ids), (2, length), generator=torch.Generator().manual_seed(0))]
        if self.mask_token_id is not None:
            picked[:, 1::3] = self.mask_token_id
        places = torch.arange(length, device=device).expand(2, -1)
        return picked.to(device), places, places < torch.tensor([[length], [length - 2]], device=device)

    def _bidirectional(self, device: torch.device, implementation: str) -> Callable[..., dict[str, Any]]:
        """The first way in which a token changes what stands before it, padded or not, and padding changes nothing."""
        name = self._name
        if self.model.training:
            raise ValueError(f"a denoiser must be in evaluation mode, got {name} in training. Call `model.eval()`.")
        ids, places, padded = self._example(device)

        def changes(attention: Callable, place: int, attention_mask: Tensor | None) -> bool:
            other = ids.clone()
            other[:, place] = ids[:, 0].where(ids[:, 0] != ids[:, place], ids[:, 2])
            run = partial(self._run, _Abilities(implementation, attention), None)
            before, after = (
                run(tokens, places, attention_mask=attention_mask)[1, : place - 1] for tokens in (ids, other)
            )
            return bool((before - after).abs().amax() > 1e-6 * before.std())

        last, reason = ids.shape[1] - 1, ""
        for attention in (_native, _not_causal, _explicit):
            try:
                sees_all = changes(attention, last, None) and changes(attention, last - 2, padded)
                if sees_all and not changes(attention, last, padded):
                    return attention
            except torch.OutOfMemoryError:
                raise
            except (TypeError, ValueError, RuntimeError) as error:  # arguments that the model does not take
                reason = f" ({error})"
        raise ValueError(
            f"a denoiser must be bidirectional, got {name}, in which no token changes what stands before it{reason}. "
            "Use a masked language model, or one whose attention takes a mask `(batch_size, 1, 1, L)`."
        )

    def _first_position(self, found: _Abilities, device: torch.device) -> int:
        """The number that gives, for explicit positions, the same logits as none: not 0 in the family of RoBERTa."""
        ids, places, _ = self._example(device)
        if "position_ids" not in self._accepted:
            return 0
        own = self.model(input_ids=ids, **found.attention(self.model, None)).logits
        for first in {0: None, _reserved_positions(self.model): None}:
            found.first_position = first
            if _agree(self._run(found, None, ids, places), own):
                return first
        raise ValueError(
            f"positions must be numbered from 0 or from the padding token, {self._name} does neither. "
            "It cannot be used."
        )

    def _working_store(self, found: _Abilities, device: torch.device, length: int) -> Callable[[], KeyValueStore]:
        """The first store that holds every layer and reproduces a full pass."""
        reasons = []
        # A cache does not know which keys a window shows to a query that stands anywhere.
        by_cache = "past_key_values" in self._accepted and _smallest_window(self._config) is None
        stores: list[type[KeyValueStore]] = [PositionalCache, AttentionStore] if by_cache else [AttentionStore]
        for store_class in stores:
            reason = self._fault(found, store_class(), device, length)
            if reason is None:
                return store_class
            reasons.append(f"{store_class.__name__}: {reason}")
        raise ValueError(
            f"partial caching needs every layer's keys and values, {self._name} does not give them "
            f"({'; '.join(reasons)}). Call `disable_cache()`."
        )

    def _fault(self, found: _Abilities, store: KeyValueStore, device: torch.device, length: int) -> str | None:
        """What is wrong with a store, if anything."""
        if "position_ids" not in self._accepted:
            return "it takes no `position_ids`"
        ids, places, padded = self._example(device, length)
        rows, other = torch.arange(2, device=device)[:, None], ids.flip(1)
        order = torch.stack([torch.randperm(length, generator=torch.Generator().manual_seed(row)) for row in range(2)])
        order = order.to(device)
        some = order[:, : length // 3 + 1]

        full = self._run(found, store, ids, places, None, padded)
        if store.num_layers != self._config.num_hidden_layers:
            return f"{store.num_layers} of {self._config.num_hidden_layers} layers were seen"
        if not _agree(full[padded], self._run(found, None, ids, places, None, padded)[padded]):
            return "a recorded pass gives other logits"
        again = self._run(found, store, ids.gather(1, some), some, some, padded)
        real = padded.gather(1, some)
        if not _agree(again[real], full[rows, some][real]):
            return "unchanged tokens do not repeat the full pass"
        all_new = self._run(found, store, other.gather(1, order), order, order, padded)
        real = padded.gather(1, order)
        if not _agree(all_new[real], self._run(found, None, other, places, None, padded)[rows, order][real]):
            return "with all positions new it is not a full pass"
        return None


def with_predecessors(sequence: Tensor, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The queries of a partial pass where row i - 1 predicts position i: rows i - 1 and i, each once.

    Args:
        sequence: the tokens of the last pass, int64 `(batch_size, L)`.
        tokens: new ones at `positions`, int64 `(batch_size, K)`.
        positions: their places, p as `-p - 1` where nothing is to be written.

    Returns:
        The sequence with the new tokens; the queries' places, int64 `(batch_size, min(2 K, L))`, `-p - 1` where a query
        only fills a row up; and where among the queries each position's prediction stands, int64 `(batch_size, K)`.
    """
    places, valid = places_of(positions), positions >= 0
    sequence = sequence.scatter(1, places, torch.where(valid, tokens, sequence.gather(1, places)))
    before = (places - 1).clamp(min=0)
    # Predecessors of all, as all are predicted; of the positions themselves only what is new is written.
    wanted = torch.zeros_like(sequence, dtype=torch.int64)
    wanted.scatter_add_(1, places, valid.long())
    wanted.scatter_add_(1, before, valid.long())
    num_queries = min(2 * places.shape[1], sequence.shape[1])
    order = (wanted == 0).long().argsort(dim=1, stable=True)
    queries = order[:, :num_queries]
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    index = rank.gather(1, before).clamp(max=num_queries - 1)  # that of a position which is not valid is not read
    return sequence, torch.where(wanted.gather(1, queries) > 0, queries, ~queries), index


# --- attention to all real positions, as arguments of a model ---------------------------------------------------------


def _native(model: PreTrainedModel, attention_mask: Tensor | None) -> dict[str, Any]:
    """The model's own: of an encoder."""
    return {} if attention_mask is None else {"attention_mask": attention_mask.long()}


def _not_causal(model: PreTrainedModel, attention_mask: Tensor | None) -> dict[str, Any]:
    """Asks a decoder not to be causal, which some do not hear."""
    return {**_native(model, attention_mask), "is_causal": False}


def _explicit(model: PreTrainedModel, attention_mask: Tensor | None) -> dict[str, Any]:
    """A mask that every decoder takes as it is; it would leave no window in place."""
    if _smallest_window(model.config.get_text_config()) is not None:
        return _native(model, attention_mask)
    seen = torch.ones(1, 1, device=model.device, dtype=torch.bool) if attention_mask is None else attention_mask
    seen = seen[:, None, None]
    if model.config._attn_implementation == "sdpa":
        return {"attention_mask": seen}
    hidden = torch.finfo(model.dtype).min
    return {"attention_mask": torch.zeros(seen.shape, dtype=model.dtype, device=seen.device).masked_fill(~seen, hidden)}


def _reserved_positions(model: PreTrainedModel) -> int:
    """Rows of a position table that stand before that of place 0: in the family of RoBERTa up to the padding's."""
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    return next((table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None), 0)


def _smallest_window(config: Any) -> int | None:
    """How far the positions see in layers that do not see all; None where all layers do."""
    window = getattr(config, "sliding_window", None) or getattr(config, "local_attention", None)
    layers = getattr(config, "layer_types", None)
    slides = getattr(config, "use_sliding_window", True) if layers is None else "sliding_attention" in layers
    return window if slides else None


@contextmanager
def _rows_before_head(model: PreTrainedModel, rows: Tensor | None) -> Iterator[None]:
    """Hands only these rows of the hidden states to the model's head, whose logits are large."""
    if rows is None:
        yield
        return

    def select(head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_states, *others = inputs
        index = rows.to(hidden_states.device)[..., None].expand(-1, -1, hidden_states.shape[-1])
        return (hidden_states.gather(1, index), *others)

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def _agree(logits: Tensor, expected: Tensor) -> bool:
    """Whether they differ by no more than rounding."""
    difference = (logits.double() - expected.double()).norm()
    return bool(difference <= _TOLERANCE[expected.dtype] * (expected.double() - expected.double().mean()).norm())
