"""What all image denoisers do with their input: check it, and mix noise into what it is looked up as."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def check_image_tokens(
    sample: Tensor, class_labels: Tensor, positions: Tensor | None, sample_size: int, num_classes: int
) -> None:
    """Raise `ValueError` unless shapes and dtypes fit a denoiser of `sample_size ** 2` tokens.

    Args:
        sample: int64 `(batch_size, side, side)` or `(batch_size, side ** 2)`; in a partial pass
            `(batch_size, num_positions)`.
        class_labels: int64 `(batch_size,)`.
        positions: None, or int64 of the shape of `sample`.
    """
    _check_positions(sample, positions)
    side = sample_size
    if positions is None and sample.shape[1:] not in ((side, side), (side * side,)):
        raise ValueError(
            f"`sample` must have shape (batch_size, {side}, {side}) or (batch_size, {side * side}), got "
            f"{tuple(sample.shape)}. Pass the token ids of a grid of {side} x {side} tokens: that is the model's "
            "`sample_size`."
        )
    _check_labels(sample, class_labels, num_classes)


def check_code_row(
    sample: Tensor, class_labels: Tensor, positions: Tensor | None, num_tokens: int, num_classes: int
) -> None:
    """Raise `ValueError` unless shapes and dtypes fit a denoiser of a row of `num_tokens` codes of a class.

    Args:
        sample: int64 `(batch_size, num_tokens)`; in a partial pass `(batch_size, num_positions)`.
        class_labels: int64 `(batch_size,)`.
        positions: None, or int64 of the shape of `sample`.
    """
    check_codes_of_row(sample, positions, num_tokens)
    _check_labels(sample, class_labels, num_classes)


def check_codes_of_row(sample: Tensor, positions: Tensor | None, num_tokens: int) -> None:
    """As `check_code_row`, of the codes alone."""
    _check_positions(sample, positions)
    if sample.ndim != 2 or (positions is None and sample.shape[1] != num_tokens):
        raise ValueError(
            f"`sample` must have shape (batch_size, {num_tokens}), got {tuple(sample.shape)}. Pass the codes of whole "
            "images: their number is the model's `num_tokens`."
        )
    _check_ids("sample", sample)


def _check_positions(sample: Tensor, positions: Tensor | None) -> None:
    if positions is not None and (positions.shape != sample.shape or positions.dtype != torch.int64):
        raise ValueError(
            f"`positions` must be int64 of the shape of `sample`, {tuple(sample.shape)}, got {positions.dtype} "
            f"{tuple(positions.shape)}. Pass where each code stands in the image, in row-major order."
        )


def _check_labels(sample: Tensor, class_labels: Tensor, num_classes: int) -> None:
    if class_labels.shape != sample.shape[:1]:
        raise ValueError(
            f"`class_labels` must have shape ({sample.shape[0]},), one per row of `sample`, got "
            f"{tuple(class_labels.shape)}. Pass {num_classes} for a row without a class."
        )
    for name, ids in (("sample", sample), ("class_labels", class_labels)):
        _check_ids(name, ids)


def _check_ids(name: str, ids: Tensor) -> None:
    if ids.dtype != torch.int64:
        raise ValueError(f"`{name}` must hold ids as torch.int64, got {ids.dtype}. Convert it with `.long()`.")


def with_noise(
    embeddings: Tensor, embedding_noise: Callable[[Tensor], Tensor] | None, positions: Tensor | None
) -> Tensor:
    """The embeddings of an image's tokens with noise, before positions are added: `(batch_size, side ** 2, width)`.

    Raises:
        ValueError: in a partial pass, whose tokens are not all of the image's.
    """
    if embedding_noise is None:
        return embeddings
    if positions is not None:
        raise ValueError(
            f"`embedding_noise` must be None in a partial pass, got {embedding_noise!r}. Pass it to full passes alone."
        )
    return embedding_noise(embeddings)
