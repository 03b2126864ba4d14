"""The exact cache of models that see blocks from left to right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from hf_maskdiff.caching.cache_config import CacheConfig
from hf_maskdiff.caching.partial_cache import PartialCacheConfig
from hf_maskdiff.caching.plans import CachePlanConfig, PassPlan, PassState, Queries, ranges_of


@dataclass
class BlockCacheConfig(CacheConfig):
    """Computes nothing but the block, exactly: for models that see blocks from left to right, which use it unasked.

    ```python
    pipe.disable_cache()                   # computes the whole text in every step, which gives the same tokens
    pipe.enable_cache(BlockCacheConfig())  # as it was
    ```

    In such a model nothing that is written later changes the keys and values of a finished block, so they are computed
    once. The first pass of a block computes the block before it as well, since its last tokens were drawn after its
    last pass: published samplers spend a pass of its own on that. "Block Diffusion" (arXiv 2503.09573), section 3.

    Args:
        partial: draws each step in groups besides, with a partial pass before each group but the first.
    """

    partial: PartialCacheConfig | None = None
    outlives_blocks: ClassVar[bool] = True
    computes_block: ClassVar[bool] = True

    def within_steps(self) -> PartialCacheConfig | None:
        return self.partial

    def across_steps(self) -> PassPlan | None:
        return self

    def queries(self, state: PassState) -> Queries | None:
        """The positions from the block on, in its first step from the block before; None if nothing is stored."""
        if state.block_starts is None:
            raise ValueError(
                "`BlockCacheConfig` is for models that see blocks from left to right, got one that does not. Use "
                "`DualCacheConfig()`."
            )
        if state.step > 0:
            return ranges_of(state, state.block_starts, state.lengths)
        if bool((state.resumed < 0).any()):
            return None
        return ranges_of(state, torch.minimum(state.resumed, state.block_starts), state.lengths)


def fitting(config: CacheConfig, sees_blocks: bool) -> CacheConfig:
    """A cache as it is for a model that sees blocks from left to right, or for one that sees everything.

    Raises:
        ValueError: a cache that makes no sense for such a model.
    """
    if not sees_blocks:
        if isinstance(config, BlockCacheConfig):
            raise ValueError(
                "`BlockCacheConfig` must be used with a model that sees blocks from left to right, got one that sees "
                "the whole sequence. Use `DualCacheConfig()`, or open the model with its `attention`."
            )
        return config
    if isinstance(config, CachePlanConfig):
        raise ValueError(
            "a model that sees blocks from left to right must be cached exactly, which it is unless `disable_cache()` "
            f"was called, got a {type(config).__name__}, which approximates. Pass `BlockCacheConfig()`."
        )
    return BlockCacheConfig(config) if isinstance(config, PartialCacheConfig) else config
