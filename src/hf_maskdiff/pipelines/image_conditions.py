"""What an image shall show, as a denoiser is told it: with it and, for guidance, without it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]  # by position, and by name
COND, UNCOND = "cond", "uncond"  # the names of the cache contexts


class ImageCondition(Protocol):
    """What the images of a call are conditioned on.

    Attributes:
        is_given: whether there is anything to guide to.
        takes_noise: whether models of this kind take noise for the embeddings of the tokens.
    """

    is_given: bool
    takes_noise: bool

    def arguments(self, context: str, rows: Tensor | slice, steps_left: float | Tensor) -> Arguments:
        """What the denoiser takes after the tokens.

        Args:
            context: `COND`, or `UNCOND` for the pass that guidance leads away from.
            rows: of the batch, int64 `(num_rows,)` or a slice.
            steps_left: how many steps follow this one: of all rows, or of each, `(num_rows,)`.
        """
        ...


class DecodedCondition(ImageCondition, Protocol):
    """A condition that the tokenizer of images may read too.

    Attributes:
        decoding: what it takes besides the codes, by name.
    """

    decoding: Mapping[str, Tensor]


class ClassCondition:
    """The class of each image.

    Args:
        classes: int64 `(batch_size,)`.
        no_class: the id of the unconditional class.
        is_given: whether the classes were given; without one nothing is guided.
    """

    takes_noise = True
    decoding: Mapping[str, Tensor] = MappingProxyType({})

    def __init__(self, classes: Tensor, no_class: int, is_given: bool) -> None:
        self.is_given = is_given
        self._of_contexts = {COND: classes, UNCOND: torch.full_like(classes, no_class)}

    def arguments(self, context: str, rows: Tensor | slice, steps_left: float | Tensor) -> Arguments:
        """See `ImageCondition`."""
        return (self._of_contexts[context][rows],), {}
