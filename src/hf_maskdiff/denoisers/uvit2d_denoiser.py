"""diffusers' `UVit2DModel`, the transformer of aMUSEd, as a denoiser: stock passes, and partial ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn

from hf_maskdiff.caching import (
    CacheConfig,
    CacheReadings,
    CodeCache,
    KeptStates,
    KeyValueCache,
    LayerCache,
    places_of,
    targets_of,
)
from hf_maskdiff.exclusive import alone


class UVit2DCache(CodeCache):
    """What passes keep: keys and values, those of the text, the codes, and what left the layers.

    Attributes:
        output: what the last of the layers that are cached made of each cell, `(batch_size, num_cells, channels)`.
        text: keys and values of the text in all attentions, in the order of `_text_projections`, each `(batch_size,
            num_tokens, channels)`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.output: KeptStates | None = None
        self.text: list[Tensor] = []

    def take(self, rows: Tensor) -> UVit2DCache:
        """A copy that holds only these rows of the batch, int64 `(num_rows,)`."""
        taken, codes = UVit2DCache(), super().take(rows)
        taken.__dict__.update(codes.__dict__)
        taken.output = None if self.output is None else self.output.take(rows)
        taken.text = [states[rows] for states in self.text]
        return taken

    def put(self, rows: Tensor, other: KeyValueCache) -> None:
        """Overwrite these rows of the batch with what `other` holds."""
        super().put(rows, other)
        if isinstance(other, UVit2DCache) and self.output is not None and other.output is not None:
            self.output.put(rows, other.output)
            for states, new in zip(self.text, other.text, strict=True):
                states[rows] = new


class UVit2DDenoiser(CacheReadings):
    """Makes diffusers' `UVit2DModel` a denoiser, whose partial passes leave most of its work out.

    The model is a stack of transformer layers between two blocks of convolutions, which mix each position with its
    neighbours. A partial pass computes the convolutions and the embeddings of all codes, as a full pass does, and of
    the layers between them (22 in aMUSEd, where six sevenths of the work lie) the queried positions alone. These
    attend to the keys and values that all others had in the last pass that computed them. What the layers make of all
    others is kept from that pass too, although a new code beside them would change it a little: that, and the kept
    keys and values, is what a partial pass approximates. A pass over all positions is exact, and so is one in which no
    code has changed. The text does not change within a call, so its keys and values are those of the full pass.

    Where the model halves its grid (amused-512), the layers see cells of 2 x 2 codes, and a partial pass computes the
    cells of the queried codes, each once.

    Nothing of the model is changed: hooks, for the time of a pass, read and replace what flows through it, so that its
    own forward runs, with the adapters, dtypes and devices that it has.

    Args:
        model: the model, in evaluation mode; a compiled one runs uncompiled while caching is on.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cache_config: CacheConfig | None = None

    # --- what a pipeline asks -----------------------------------------------------------------------------------------

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def is_cache_enabled(self) -> bool:
        return self.cache_config is not None

    def enable_cache(self, config: Any) -> None:
        """Switch a cache on, for all users of this denoiser.

        Raises:
            ValueError: a cache of diffusers, which this model of diffusers does not take either.
        """
        if not isinstance(config, CacheConfig):
            raise ValueError(
                "a UVit2DModel takes a PartialCacheConfig, DelayedCacheConfig or GreedyCacheConfig, got "
                f"{type(config).__name__}. Pass one of these: diffusers' caches are not for this model."
            )
        self.cache_config = config

    def disable_cache(self) -> None:
        """Switch the cache off."""
        self.cache_config = None

    def new_cache(self) -> UVit2DCache:
        """A new, empty cache for the passes of one call."""
        return UVit2DCache()

    def cache_context(self, name: str) -> Any:
        """Nothing to do: the stores of a call are handed to each pass."""
        return nullcontext()

    def _reset_stateful_cache(self) -> None:
        """Nothing is kept between calls."""

    # --- passes -------------------------------------------------------------------------------------------------------

    def __call__(
        self,
        sample: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        micro_conds: Tensor,
        timestep: Tensor | None = None,
        return_dict: bool = False,
        positions: Tensor | None = None,
        cache: UVit2DCache | None = None,
    ) -> tuple[Tensor]:
        """Logits `(batch_size, height * width, codebook_size)`, or those at `positions`, in a tuple.

        Args:
            sample: codes, int64 `(batch_size, height, width)`, or in a partial pass `(batch_size, num_positions)`.
            encoder_hidden_states: of the prompts, `(batch_size, num_tokens, width)`.
            pooled_projections: of the prompts, `(batch_size, width)`.
            micro_conds: size, crop and score of each image, `(batch_size, 5)`.
            timestep: ignored: the codes show how much is masked.
            return_dict: ignored: a tuple comes back.
            positions: None for a full pass; for a partial one see `PartialCacheConfig`, int64 like `sample`. A position
                p given as `-p - 1` is computed, but not kept.
            cache: from `new_cache()`; None stores nothing.
        """
        condition = {
            "encoder_hidden_states": encoder_hidden_states,
            "pooled_text_emb": pooled_projections,
            "micro_conds": micro_conds,
        }
        if cache is None:
            with alone(unwrap_module(self.model)):
                logits = self.model(sample, **condition)
            return (logits.flatten(2).transpose(1, 2),)
        model = unwrap_module(self.model)
        with alone(model), ExitStack() as hooks:
            if positions is None:
                sample = self._fill(model, hooks, sample, cache)
            else:
                sample = self._complete(model, hooks, sample, positions, cache)
                condition["encoder_hidden_states"] = encoder_hidden_states[:, :0]  # what became of it is kept
            logits = model._call_impl(sample, **condition)  # not what `model.compile()` has made, which sees no hooks
        if cache.layers[0].key is None or cache.output is None:
            raise ValueError(
                "the layers of a UVit2DModel must run uncompiled while caching is on, got layers that were compiled. "
                "Compile the whole model, `pipe.transformer = torch.compile(pipe.transformer)`, or `disable_cache()`."
            )
        return (logits.flatten(2).transpose(1, 2),)

    def _fill(self, model: Any, hooks: ExitStack, sample: Tensor, cache: UVit2DCache) -> Tensor:
        """Let the next full pass keep what it computes; returns its codes."""
        layers = cache.at(None, len(model.transformer_layers), len(sample))
        cache.begin(sample.flatten(1), (sample.shape[1], sample.shape[2]))
        for layer, kept in zip(model.transformer_layers, layers, strict=True):
            for name, projection in (("key", layer.attn1.to_k), ("value", layer.attn1.to_v)):
                hooks.enter_context(_on_output(projection, partial(_keep, kept, name)))
        hooks.enter_context(_on_output(model.project_from_hidden, partial(_keep, cache, "output")))
        projections = _text_projections(model)
        cache.text = [sample.new_empty(0)] * len(projections)
        for index, projection in enumerate(projections):
            hooks.enter_context(_on_output(projection, partial(_keep_text, cache.text, index)))
        return sample

    def _complete(self, model: Any, hooks: ExitStack, codes: Tensor, positions: Tensor, cache: UVit2DCache) -> Tensor:
        """Let the next pass compute some positions alone, and keep them; returns all of its codes."""
        if cache.size is None or cache.output is None or len(cache.output) != len(codes):
            raise ValueError(
                f"`positions` need a full pass over the same {len(codes)} rows before them, in the same cache. Call "
                "the denoiser without `positions` first."
            )
        cells = self._cells_of(positions, cache.size)
        layers = cache.at(cells, len(model.transformer_layers), len(codes))
        targets = targets_of(cells, cache.output.length)
        places = places_of(cells)
        hooks.enter_context(_on_input(model.project_to_hidden_norm, lambda states: _rows_at(states, places)))
        for layer, kept in zip(model.transformer_layers, layers, strict=True):
            hooks.enter_context(_on_output(layer.attn1.to_k, partial(_written, kept.key, targets)))
            hooks.enter_context(_on_output(layer.attn1.to_v, partial(_written, kept.value, targets)))
        hooks.enter_context(_on_output(model.project_from_hidden, partial(_written, cache.output, targets)))
        for projection, states in zip(_text_projections(model), cache.text, strict=True):
            hooks.enter_context(_on_output(projection, partial(_instead, states)))
        wanted = places_of(positions)
        hooks.enter_context(_on_input(model.mlm_layer, lambda states: _columns_at(states, wanted)))
        return cache.with_codes(codes, positions).unflatten(1, cache.size)

    def _cells_of(self, positions: Tensor, size: tuple[int, int]) -> Tensor:
        """The cells of the layers' grid in which positions lie, each once; int64 `(batch_size, n)`.

        n is as many as there are positions, or cells. Where a row has fewer, others of its cells fill up, as `-c - 1`:
        computed, but not kept.
        """
        factor = 2 if self.config.downsample else 1
        columns = size[1] // factor
        num_cells = size[0] // factor * columns
        cells = positions // size[1] // factor * columns + positions % size[1] // factor
        touched = torch.zeros(len(positions), num_cells + 1, dtype=torch.bool, device=positions.device)
        touched.scatter_(1, torch.where(positions < 0, num_cells, cells), True)
        touched = touched[:, :num_cells]
        order = touched.byte().argsort(dim=1, descending=True, stable=True)[:, : positions.shape[1]]
        return torch.where(touched.gather(1, order), order, ~order)


# --- hooks ------------------------------------------------------------------------------------------------------------


@contextmanager
def _on_output(module: nn.Module, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside this context, what a module returns is replaced."""
    handle = module.register_forward_hook(lambda module, arguments, output: replace(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _on_input(module: nn.Module, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside this context, what a module is given is replaced."""
    handle = module.register_forward_pre_hook(lambda module, arguments: (replace(arguments[0]), *arguments[1:]))
    try:
        yield
    finally:
        handle.remove()


def _keep(holder: LayerCache | UVit2DCache, name: str, states: Tensor) -> Tensor:
    setattr(holder, name, KeptStates(states))
    return states


def _instead(states: Tensor, computed: Tensor) -> Tensor:
    return states


def _keep_text(held: list[Tensor], index: int, states: Tensor) -> Tensor:
    held[index] = states
    return states


def _text_projections(model: Any) -> list[nn.Module]:
    """All that makes keys or values of the text, always in the same order."""
    attentions = [layer.attn2 for layer in model.transformer_layers]
    for block in (model.down_block, model.up_block):
        attentions += [attention for part in block.attention_blocks for attention in (part.attn1, part.attn2)]
    return [projection for attention in attentions for projection in (attention.to_k, attention.to_v)]


def _written(kept: KeptStates | None, targets: tuple[Tensor, Tensor], states: Tensor) -> Tensor:
    return states if kept is None else kept.write(states, targets)


def _rows_at(states: Tensor, places: Tensor) -> Tensor:
    """Of `(batch_size, n, channels)` those at places `(batch_size, k)`."""
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))


def _columns_at(states: Tensor, places: Tensor) -> Tensor:
    """Of `(batch_size, channels, height, width)` those at places `(batch_size, k)`, `(batch_size, channels, k, 1)`."""
    flat = states.flatten(2)
    return flat.gather(2, places[:, None].expand(-1, flat.shape[1], -1))[..., None]
