"""Turns any transformers model that predicts tokens into a denoiser: bidirectional, probed, with caching."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor
from transformers import PreTrainedModel

from hf_maskdiff.attention_rule import BlockCausal
from hf_maskdiff.caching import (
    BlockCacheConfig,
    CacheConfig,
    CacheContexts,
    CacheReadings,
    KeyValueStore,
    Span,
    fitting,
    places_of,
)
from hf_maskdiff.denoisers.attention_arguments import require_steady_rotations, reserved_positions, smallest_window
from hf_maskdiff.denoisers.shifted_logits import with_predecessors
from hf_maskdiff.denoisers.transformers_pass import Abilities, run_pass
from hf_maskdiff.denoisers.transformers_probe import PROBE_LENGTH, Probe, named_mask, require_evaluation
from hf_maskdiff.exclusive import alone


@dataclass
class SequenceCache:
    """What the passes of one call store: keys and values, and of the sequences the mask, tokens and blocks."""

    store: KeyValueStore | None = None
    attention_mask: Tensor | None = None
    tokens: Tensor | None = None
    offsets: Tensor | None = None
    length: int = 0

    def take(self, rows: Tensor) -> SequenceCache:
        """A copy that holds only these rows of the batch, int64 `(num_rows,)`."""
        store = None if self.store is None else self.store.take(rows)
        attention_mask, tokens, offsets = (
            None if kept is None else kept[rows] for kept in (self.attention_mask, self.tokens, self.offsets)
        )
        return SequenceCache(store, attention_mask, tokens, offsets, self.length)

    def put(self, rows: Tensor, other: SequenceCache) -> None:
        """Overwrite these rows of the batch with what `other` holds; their attention masks must be the same."""
        if self.store is None or self.tokens is None or other.store is None or other.tokens is None:
            raise ValueError("rows can only be put into a cache that a full pass has filled. Run one first.")
        self.store.grow(other.length)
        self.length = other.length
        self.store.put(rows, other.store)
        # It may be the caller's, and shorter.
        self.tokens = F.pad(self.tokens, (0, max(other.tokens.shape[1] - self.tokens.shape[1], 0))).clone()
        self.tokens[rows] = other.tokens


class TransformersDenoiser(CacheReadings):
    """Makes any transformers model with `.logits`, encoder or decoder, a denoiser, without code for that model.

    A probe of a few short passes finds out how to use the model. It runs before the first use, and with caching again
    before the first sequence that is longer than the model's attention window. It determines how to let every position
    attend to every other one, or to its block and those before it; how positions are numbered; and, with caching, which
    of two methods gives the keys and values of all layers. If nothing gives correct results, a `ValueError` names the
    model.

    ```python
    denoiser = TransformersDenoiser(AutoModelForMaskedLM.from_pretrained("answerdotai/ModernBERT-base"))
    logits = denoiser(input_ids)

    cache = denoiser.new_cache()
    logits = denoiser(input_ids, cache=cache)
    logits = denoiser(new_tokens, positions=positions, cache=cache)  # a partial pass
    ```

    Args:
        model: the model, in evaluation mode.
        shift_logits: True if row i - 1 of the model's output predicts position i, as in models derived from a causal
            one (Dream); position 0 is then predicted by its own row.
        rule: which positions the model was trained to see; None for all of them.
    """

    time_conditioning = False

    def __init__(self, model: PreTrainedModel, shift_logits: bool = False, rule: BlockCausal | None = None) -> None:
        self.model, self.shift_logits, self.rule = model, shift_logits, rule
        self.cache_config: CacheConfig | None = None if rule is None else BlockCacheConfig()
        self._by_hand = False  # whether passes without a cache of their own are cached
        self._contexts: CacheContexts[SequenceCache] = CacheContexts(SequenceCache)
        self._abilities: Abilities | None = None
        self._reserved_positions = reserved_positions(model)

    # --- what a pipeline asks -----------------------------------------------------------------------------------------

    @property
    def _config(self) -> Any:
        return self.model.config.get_text_config()

    @property
    def vocab_size(self) -> int:
        """Number of columns of the logits."""
        return self._config.vocab_size

    @property
    def model_length(self) -> int | None:
        """The longest sequence the model takes; None if its configuration does not say."""
        length = getattr(self._config, "max_position_embeddings", None)
        return None if length is None else length - self._reserved_positions

    @property
    def mask_token_id(self) -> int | None:
        """The mask id given in the model's configuration; None if there is none."""
        return named_mask(self._config)

    # --- caching: as `CacheSwitch` ------------------------------------------------------------------------------------

    def enable_cache(self, config: CacheConfig) -> None:
        """Switch a cache on.

        Raises:
            ValueError: a cache of diffusers, or one that makes no sense for what the model sees.
        """
        if not isinstance(config, CacheConfig):
            raise ValueError(
                "a model of transformers takes a PartialCacheConfig, PrefixCacheConfig, DualCacheConfig, "
                f"DelayedCacheConfig or GreedyCacheConfig, got {type(config).__name__}. diffusers' caches are for its "
                "own models."
            )
        self.cache_config, self._by_hand = fitting(config, self.rule is not None), True

    def disable_cache(self) -> None:
        """Switch the cache off."""
        self.cache_config, self._by_hand = None, False
        self._reset_stateful_cache()

    def take_over(self, other: TransformersDenoiser) -> None:
        """Have the cache switched on that another denoiser of the same model has."""
        self.cache_config, self._by_hand = other.cache_config, other._by_hand

    def new_cache(self) -> SequenceCache:
        """An empty cache, for the passes of one call."""
        return SequenceCache()

    @contextmanager
    def cache_context(self, name: str) -> Iterator[None]:
        """In this context, passes without a `cache` argument use only the context's own keys and values."""
        with self._contexts.use(name):
            yield

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
        cache: SequenceCache | None = None,
        num_runs: int | None = None,
        offsets: Tensor | None = None,
        length: int | None = None,
        span: Span | None = None,
    ) -> Tensor:
        """Predict tokens.

        Args:
            input_ids: int64 `(batch_size, L)`; in a partial pass only the tokens at `positions`.
            timestep: ignored.
            attention_mask: bool `(batch_size, L)`, False for padding; partial passes use that of the pass before them
                unless they have a `length`.
            positions: None for a full pass. For a partial pass, which must follow a full pass with the same cache, the
                positions of `input_ids` in the sequence, int64 of the same shape, distinct within a row. A position p
                given as `-p - 1` is computed, but its cached keys and values are kept.
            logits_at: the columns of `input_ids` whose logits are wanted, int64 `(batch_size, n)`; None for all.
            cache: stores keys and values between the passes of a call, from `new_cache()`. With None, the cache of the
                current `cache_context` is used if caching is on, and nothing is stored if it is off.
            num_runs: an upper bound on the runs of neighbouring positions in any row of `positions`, if the caller
                knows one. With `shift_logits` each run needs one more query.
            offsets: positions that each row's first block lacks, int64 `(batch_size,)`; None for 0. Only of a model
                that sees blocks; partial passes use that of their full pass.
            length: the L of a partial pass over sequences that may have become longer, with their `attention_mask`;
                None for that of the pass before it.
            span: the range that `positions` are in every row, in order, if it is the same in all rows and the caller
                knows it: its first position, and the one behind its last. It makes a pass cheaper.

        Returns:
            Logits `(batch_size, n, vocab_size)`.

        Raises:
            ValueError: the probe refuses the model; it is in training; a partial pass does not follow a full one.
        """
        if cache is None and self._by_hand and self.cache_config is not None and self.cache_config.needs_store:
            cache = self._contexts.current
        with alone(unwrap_module(self.model)):
            if positions is None:
                return self._full_pass(input_ids, attention_mask, logits_at, cache, offsets)
            if cache is not None and length is not None:
                cache.attention_mask, cache.length = attention_mask, length
            return self._partial_pass(input_ids, positions, logits_at, cache, num_runs, span)

    def _full_pass(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        logits_at: Tensor | None,
        cache: SequenceCache | None,
        offsets: Tensor | None,
    ) -> Tensor:
        length = input_ids.shape[1]
        require_steady_rotations(self._config, length, attention_mask, cache is not None)
        abilities = self._probed(input_ids.device, length, needs_store=cache is not None)
        places = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        if self.shift_logits:
            logits_at = (places if logits_at is None else logits_at).sub(1).clamp(min=0)
        store = None
        if cache is not None:
            store = cache.store = abilities.make_store()
            cache.attention_mask, cache.offsets, cache.length = attention_mask, offsets, length
            cache.tokens = input_ids if self.shift_logits else input_ids[:, :0]
        return run_pass(self.model, abilities, store, input_ids, places, None, attention_mask, logits_at, offsets)

    def _partial_pass(
        self,
        tokens: Tensor,
        positions: Tensor,
        logits_at: Tensor | None,
        cache: SequenceCache | None,
        num_runs: int | None,
        span: Span | None,
    ) -> Tensor:
        if cache is None or cache.tokens is None or len(cache.tokens) != len(tokens):
            raise ValueError(
                f"`positions` need a full pass over the same {len(tokens)} rows before them, in the same cache "
                "context. Enable the cache, and call the model without `positions` first."
            )
        require_steady_rotations(self._config, cache.length, None, stores=True)
        abilities = self._probed(tokens.device, 0, needs_store=False)  # the full pass has tested the store
        if self.shift_logits:
            sequence = F.pad(cache.tokens, (0, cache.length - cache.tokens.shape[1]))
            cache.tokens, positions, predicting = with_predecessors(sequence, tokens, positions, num_runs)
            tokens = cache.tokens.gather(1, places_of(positions))
            logits_at = predicting if logits_at is None else predicting.gather(1, logits_at)
            span = None  # the position before it is computed, too, and not kept
        places = positions if span is not None else places_of(positions)  # a range is stored, all of it
        run = (self.model, abilities, cache.store, tokens, places, positions)
        return run_pass(*run, cache.attention_mask, logits_at, cache.offsets, cache.length, span)

    def _probed(self, device: torch.device, length: int, needs_store: bool) -> Abilities:
        """How to use the model at this length; runs the probe if that is not known yet."""
        require_evaluation(self.model)  # also later: who samples while training may forget to call `eval()`
        if self._abilities is None or self._abilities.implementation != self.model.config._attn_implementation:
            self._abilities = Probe(self.model, device, self.rule).abilities()
        found = self._abilities
        if not needs_store:
            return found
        window = smallest_window(self._config)
        size = PROBE_LENGTH if window is None or length <= window else window + PROBE_LENGTH
        if size not in found.probed_lengths:
            found.make_store = Probe(self.model, device, self.rule).working_store(found, size)
            found.probed_lengths.add(size)
        return found
