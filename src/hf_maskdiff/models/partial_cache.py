"""Partial caching: recompute only the chosen positions of a step and take the rest from the last full pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from diffusers.models.cache_utils import CacheMixin
from torch import nn

_HOOK = "hf_maskdiff_partial_cache"


@dataclass
class PartialCacheConfig:
    """Spends little more than one pass on a step and samples as if it were several: `model.enable_cache(config)`.

    The positions of a step are cut into `num_substeps` ordered groups. The first is drawn from the full pass; before
    each later one only the step's positions go through the model again, with the tokens drawn so far, and every layer
    takes the other positions' keys and values from the full pass. Needs a scheduler that chooses positions before it
    draws tokens: any but `MaskGITScheduler`. Section 5 of arXiv 2510.04525.

    Args:
        num_substeps: R, the groups of a step; 1 changes nothing.
        first_group_fraction: share of a step's positions in the first group, in (0, 1); the other groups share the
            rest evenly. None makes all groups even, the larger ones first.
        random_groups: fill the groups at random instead of in the scheduler's order.
        full_pass_threshold: a row that reveals more than this share of its positions in a step gets full passes in
            place of partial ones, which would cost as much and know less. Decided for each row by itself. 1 never does
            so; 0 always: the groups are then drawn as from fresh passes, at the full price.

    Raises:
        ValueError: a value out of its range.
    """

    num_substeps: int = 2
    first_group_fraction: float | None = None
    random_groups: bool = False
    full_pass_threshold: float = 0.75

    def __post_init__(self) -> None:
        if not isinstance(self.num_substeps, int) or self.num_substeps < 1:
            raise ValueError(
                f"`num_substeps` must be an integer of at least 1, got {self.num_substeps!r}. Pass 2 for one partial "
                "pass a step."
            )
        if self.first_group_fraction is not None and not 0 < self.first_group_fraction < 1:
            raise ValueError(
                f"`first_group_fraction` must be in (0, 1) or None, got {self.first_group_fraction!r}. Pass None for "
                "even groups."
            )
        if not 0 <= self.full_pass_threshold <= 1:
            raise ValueError(
                f"`full_pass_threshold` must be in [0, 1], got {self.full_pass_threshold!r}. Pass 1 to keep every pass "
                "partial."
            )


class KeyValueSlot(nn.Module):
    """The one place in an attention layer where its keys and values can be seen and replaced; alone it does nothing.

    In a partial pass only the chosen positions of a step are queries, while every layer still attends to all
    positions: the keys and values of the others are those of the last full pass. Whoever keeps them needs each layer's
    keys and values in their final form, so a denoiser calls its slot after projection, normalisation and position
    encoding, and right before attention. Being a module, the slot can be hooked and unhooked without touching the
    attention processor, and a model whose slots are not hooked computes exactly what it would without them. It has no
    weights and no state: it adds no key to a checkpoint.
    """

    def forward(
        self, key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values that attention shall use: here, those it was given.

        Args:
            key: `(batch_size, num_queries, num_heads, head_dim)`, floating point.
            value: same shape and dtype as `key`.
            positions: in a partial pass the places of the queries in the sequence, int64 `(batch_size, num_queries)`,
                distinct in a row; p written as `-p - 1` keeps the cached key and value of p.
        """
        if positions is not None:
            raise ValueError(
                "`positions` need the keys and values of a full pass, got them with partial caching off. Call "
                "`model.enable_cache(PartialCacheConfig())` first."
            )
        return key, value


def places_of(positions: torch.Tensor) -> torch.Tensor:
    """Places in the sequence, also of positions that are marked as not to be written (`-p - 1`)."""
    return torch.where(positions < 0, ~positions, positions)


class _KeysAndValues(BaseState):
    """Of one layer and one cache context."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.key: torch.Tensor | None = None
        self.value: torch.Tensor | None = None


class _PartialCacheHook(ModelHook):
    """Keeps what passes through a slot in a full pass, and completes what passes through in a partial one."""

    _is_stateful = True

    def __init__(self) -> None:
        super().__init__()
        self.state_manager = StateManager(_KeysAndValues)

    def new_forward(
        self, module: nn.Module, key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        state = self.state_manager.get_state()
        if positions is not None:
            if state.key is None or len(state.key) != len(key):
                raise ValueError(
                    f"`positions` need a full pass over the same {len(key)} rows before them, in the same cache "
                    "context. Call the model without `positions` first."
                )
            key, value = (completed(kept, new, positions) for kept, new in ((state.key, key), (state.value, value)))
        state.key, state.value = key, value
        return key, value

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.state_manager.reset()
        return module


def completed(kept: torch.Tensor, new: torch.Tensor, positions: torch.Tensor, dim: int = 1) -> torch.Tensor:
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


class PartialCacheMixin(CacheMixin):
    """Gives a denoiser with `KeyValueSlot`s partial caching, beside all of diffusers' own caches.

    ```python
    pipe.transformer.enable_cache(PartialCacheConfig(num_substeps=2))
    ```

    Its `forward` takes `positions` and passes them to the slots. Goes where diffusers' `CacheMixin` would.
    """

    _cache_config: Any

    def enable_cache(self, config: Any) -> None:
        """Switch a cache on: `PartialCacheConfig`, or any configuration of diffusers."""
        if not isinstance(config, PartialCacheConfig) or self.is_cache_enabled:
            super().enable_cache(config)
            return
        for slot in self._slots():
            HookRegistry.check_if_exists_or_initialize(slot).register_hook(_PartialCacheHook(), _HOOK)
        HookRegistry.check_if_exists_or_initialize(self).invalidate_child_registries_cache()
        self._cache_config = config

    def disable_cache(self) -> None:
        """Switch the cache off, and compute again exactly as without it."""
        if not isinstance(self._cache_config, PartialCacheConfig):
            super().disable_cache()
            return
        for slot in self._slots():
            HookRegistry.check_if_exists_or_initialize(slot).remove_hook(_HOOK)
        HookRegistry.check_if_exists_or_initialize(self).invalidate_child_registries_cache()
        self._cache_config = None

    @property
    def partial_cache(self) -> PartialCacheConfig | None:
        """What a pipeline does with a step's positions; None where partial caching is off."""
        return self._cache_config if isinstance(self._cache_config, PartialCacheConfig) else None

    def _slots(self) -> list[KeyValueSlot]:
        return [module for module in self.modules() if isinstance(module, KeyValueSlot)]
