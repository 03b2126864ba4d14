"""Keys and values that later passes take from earlier ones: where they are kept, and how users switch caching on."""

from hf_maskdiff.caching.block_cache import BlockCacheConfig, fitting
from hf_maskdiff.caching.cache_config import CacheConfig, CacheReadings
from hf_maskdiff.caching.cache_switch import CacheSwitch
from hf_maskdiff.caching.code_cache import CodeCache
from hf_maskdiff.caching.contexts import CacheContexts
from hf_maskdiff.caching.key_values import (
    KeptStates,
    KeyValueCache,
    KeyValueSlot,
    LayerCache,
    Span,
    places_of,
    targets_of,
)
from hf_maskdiff.caching.partial_cache import PartialCacheConfig, PartialCacheMixin
from hf_maskdiff.caching.plans import (
    CachePlanConfig,
    DelayedCacheConfig,
    DualCacheConfig,
    GreedyCacheConfig,
    PassPlan,
    PassState,
    PrefixCacheConfig,
    Queries,
)
from hf_maskdiff.caching.transformers_stores import AttentionStore, KeyValueStore, PositionalCache

__all__ = [
    "AttentionStore",
    "BlockCacheConfig",
    "CacheConfig",
    "CacheContexts",
    "CachePlanConfig",
    "CacheReadings",
    "CacheSwitch",
    "CodeCache",
    "DelayedCacheConfig",
    "DualCacheConfig",
    "GreedyCacheConfig",
    "KeptStates",
    "KeyValueCache",
    "KeyValueSlot",
    "KeyValueStore",
    "LayerCache",
    "PartialCacheConfig",
    "PartialCacheMixin",
    "PassPlan",
    "PassState",
    "PositionalCache",
    "PrefixCacheConfig",
    "Queries",
    "Span",
    "fitting",
    "places_of",
    "targets_of",
]
