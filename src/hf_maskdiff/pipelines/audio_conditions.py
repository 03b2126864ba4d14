"""What a clip is conditioned on: its class, and of a model of fine codebooks the codes of the coarse ones."""

from __future__ import annotations

import torch
from torch import Tensor

from .image_conditions import COND, UNCOND, Arguments


class AudioCondition:
    """The class of each clip, where the model has classes, and the codes that the model is given.

    Args:
        classes: int64 `(batch_size,)`; None for a model without classes.
        no_class: the id of the unconditional class.
        is_given: whether the classes were given; without one nothing is guided.
        codes: those of the codebooks that the model is given, int64 `(batch_size, num_codebooks, num_frames)`; None for
            a model that is given none.
    """

    takes_noise = False

    def __init__(self, classes: Tensor | None, no_class: int, is_given: bool, codes: Tensor | None) -> None:
        self.is_given = is_given and classes is not None
        self._codes = codes
        self._classes = None if classes is None else {COND: classes, UNCOND: torch.full_like(classes, no_class)}

    def arguments(self, context: str, rows: Tensor | slice, steps_left: float | Tensor) -> Arguments:
        """See `ImageCondition`."""
        named = {}
        if self._classes is not None:
            named["class_labels"] = self._classes[context][rows]
        if self._codes is not None:
            named["conditioning_codes"] = self._codes[rows]
        return (), named
