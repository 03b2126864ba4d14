"""The bugs that `mutants.py` puts into the package one at a time, and the fast tests that shall notice each."""

from mutant_lists import (
    accelerators,
    audio,
    blocks,
    caches,
    draws,
    lookahead,
    meissonic,
    passes,
    pipelines,
    rest,
    schedulers,
    second_order,
    sets,
    tuning,
    vampnet,
)
from mutant_lists.mutant import Mutant

MUTANTS: list[Mutant] = [
    *blocks.MUTANTS,
    *draws.MUTANTS,
    *schedulers.MUTANTS,
    *second_order.MUTANTS,
    *lookahead.MUTANTS,
    *passes.MUTANTS,
    *caches.MUTANTS,
    *pipelines.MUTANTS,
    *meissonic.MUTANTS,
    *audio.MUTANTS,
    *vampnet.MUTANTS,
    *sets.MUTANTS,
    *tuning.MUTANTS,
    *rest.MUTANTS,
    *accelerators.MUTANTS,
]

__all__ = ["MUTANTS", "Mutant"]
