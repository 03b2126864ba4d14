"""Partial caching by a sampler's name, and what went through its model, for every benchmark that generates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hf_maskdiff import PartialCacheConfig

GROUPS = re.compile(r"(.*), (\d+) groups")


def in_groups(sampler: str, num_substeps: int) -> str:
    """The sampler's name with partial caching: "moment, 2 groups"."""
    return sampler if num_substeps == 1 else f"{sampler}, {num_substeps} groups"


def parts(sampler: str) -> tuple[str, int]:
    """The name without its groups, and R."""
    match = GROUPS.fullmatch(sampler)
    return (match[1], int(match[2])) if match else (sampler, 1)


@contextmanager
def partial_caching(model: Any, num_substeps: int, **config: Any) -> Iterator[None]:
    """Partial caching for a while; with one group the model is left alone."""
    if num_substeps == 1:
        yield
        return
    model.enable_cache(PartialCacheConfig(num_substeps=num_substeps, **config))
    try:
        yield
    finally:
        model.disable_cache()


class PassCounter:
    """Counts what goes through a denoiser, sample by sample.

    A sample without a mask is done: it takes part in a full pass, but it no longer needs it. A partial pass over k of L
    positions counts as k / L of a full one.
    """

    def __init__(self, model: nn.Module, mask_token_id: int) -> None:
        self.mask_token_id = mask_token_id
        self.reset()
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def reset(self) -> None:
        self.calls = self.full = self.partial = self.positions = 0

    def _count(self, _: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        tokens, positions = inputs[0].flatten(1), options.get("positions")
        if positions is None:
            self.length = tokens.shape[1]
            self.calls += 1
            self.full += int((tokens == self.mask_token_id).any(1).sum())
        else:
            self.positions += int((positions >= 0).sum())
            self.partial += int((positions >= 0).any(1).sum())

    def cost(self, num_samples: int) -> dict[str, float]:
        """Of a sample: full passes, partial passes, and both as full ones."""
        full, partial = self.full / num_samples, self.partial / num_samples
        equivalents = full + self.positions / self.length / num_samples
        return {"passes": full, "partial passes": partial, "pass equivalents": equivalents}
