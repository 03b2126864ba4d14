"""Draws samples of a pipeline, each from its own generator, and counts the passes and the time that they need."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_maskdiff import PartialCacheConfig


def open_pipeline(kind: Any, name: str) -> Any:
    """Open a pipeline without progress bars."""
    pipe = kind.from_pretrained(name, trust_remote_code=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_codes(pipe: Any, generators: list[torch.Generator], labels: list[int] | None = None, **options: Any) -> Tensor:
    """Draw images as codes `(num_images, height, width)` on the CPU; without `labels`, of all classes in turn."""
    num_classes = pipe.transformer.config.num_classes
    labels = [i % num_classes for i in range(len(generators))] if labels is None else labels
    return pipe(class_labels=labels, generator=generators, output_type="latent", **options).images.cpu()


def draw_ids(pipe: Any, generators: list[torch.Generator], **options: Any) -> list[Tensor]:
    """Draw texts as token ids `(length,)` on the CPU."""
    options |= {"num_return_sequences": len(generators), "output_type": "ids"}
    return [ids.cpu() for ids in pipe(generator=generators, **options).sequences]


def generators_from(first: int, number: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(number)]


@contextmanager
def partial_caching(model: Any, num_substeps: int, **config: Any) -> Iterator[None]:
    """Switch partial caching on inside this context; with one group it stays off."""
    if num_substeps == 1:
        yield
        return
    model.enable_cache(PartialCacheConfig(num_substeps=num_substeps, **config))
    try:
        yield
    finally:
        model.disable_cache()


class NeededPasses:
    """Counts the passes that samples need: a sample without masks is done, and needs no more.

    A partial pass over k of L positions counts as k / L of a full one. A batch takes more passes than this, because
    samples that are done still go through the model: `hf_maskdiff.generation.PassCounter` counts these.
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
        """Full passes per sample, partial passes per sample, and both as equivalents of full passes."""
        full, partial = self.full / num_samples, self.partial / num_samples
        equivalents = full + self.positions / self.length / num_samples
        return {"passes": full, "partial passes": partial, "pass equivalents": equivalents}


def draw_set(
    draw: Callable[..., Iterable[Tensor]], batch_size: int, needed: NeededPasses, *columns: list[Any]
) -> tuple[list[Tensor], dict[str, float]]:
    """Draw samples in batches, and measure the cost of one.

    Args:
        draw: draws a batch, given its part of each of `columns`: the generators, and other values with one per sample.
    """
    needed.reset()
    samples, started = [], time.perf_counter()
    for start in range(0, len(columns[0]), batch_size):
        samples += draw(*(column[start : start + batch_size] for column in columns))
    return samples, {"seconds": time.perf_counter() - started, **needed.cost(len(samples))}


def everywhere(logits: Tensor, logits_at: Tensor | None, length: int) -> Tensor:
    """The logits of all `length` positions of a pass; NaN at those that it gave none for, which are known."""
    if logits_at is None:
        return logits
    every = logits.new_full((len(logits), length, logits.shape[-1]), torch.nan)
    return every.scatter_(1, logits_at[..., None].expand_as(logits), logits)
