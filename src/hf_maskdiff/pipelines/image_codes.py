"""From images to codes and back: what the tokenizers of images do not do themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..exclusive import alone


@contextmanager
def upcast(vqvae: Any, always: bool = False) -> Iterator[None]:
    """float32 for a float16 tokenizer, while it works: one that asks for it, or with `always` any."""
    if not (always or vqvae.config.force_upcast):
        yield
        return
    with alone(vqvae):
        is_half = vqvae.dtype == torch.float16
        if is_half:
            vqvae.float()
        try:
            yield
        finally:
            if is_half:
                vqvae.half()


def code_shape(transformer: Any) -> tuple[int, ...]:
    """The shape of the codes of an image that a model was trained on: rows and columns, or the length of their row."""
    config = transformer.config
    return (config.num_tokens,) if "num_tokens" in config else (config.sample_size,) * 2


def nearest_codes(vqvae: Any, latents: Tensor) -> Tensor:
    """Ids of the codes next to an encoder's output.

    Args:
        vqvae: whose codebook has `num_vq_embeddings` codes.
        latents: `(batch_size, channels, height, width)` or `(batch_size, channels, L)`, floating point.

    Returns:
        int64, of that shape without the channels.
    """
    # From the module's call: `vqvae.quantize` reads the weight itself, which a hook may keep elsewhere.
    code_ids = torch.arange(vqvae.config.num_vq_embeddings, device=latents.device)
    codebook = vqvae.quantize.embedding(code_ids).float()
    vectors = latents.float().movedim(1, -1)
    return torch.cdist(vectors.flatten(1, -2), codebook).argmin(-1).view(vectors.shape[:-1])


def with_grey(image: Tensor, masked: Tensor) -> Tensor:
    """Images in [0, 1] with grey where the code was masked.

    Args:
        image: `(batch_size, channels, height, width)`.
        masked: bool `(batch_size, rows, columns)`, of the codes; each covers as many pixels as the others. Or bool
            `(batch_size, L)` of codes that are no places: an image of which any is masked is grey.
    """
    if masked.ndim == 2:
        masked = masked.any(-1)[:, None, None]
    grey = masked.repeat_interleave(image.shape[-2] // masked.shape[-2], 1)
    grey = grey.repeat_interleave(image.shape[-1] // masked.shape[-1], 2)
    return image.masked_fill(grey[:, None], 0.5)
