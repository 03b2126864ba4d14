"""Where the codes of an image stand, for models in which a square of codes is one position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PatchGrid:
    """An image of `height` x `width` codes, numbered row by row, in patches of `side` x `side`, numbered alike.

    Args:
        height, width: of the image in codes; multiples of `side`.
        side: of a patch in codes; 1 makes each code a patch.
    """

    height: int
    width: int
    side: int = 1

    @property
    def num_patches(self) -> int:
        return (self.height // self.side) * (self.width // self.side)

    def split(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """The patch of each code, and the code's number in the patch, both shaped like `places`, int64."""
        row, column = places // self.width, places % self.width
        patch = row // self.side * (self.width // self.side) + column // self.side
        return patch, row % self.side * self.side + column % self.side

    def coordinates(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of each patch, counted in patches."""
        per_row = self.width // self.side
        return patches // per_row, patches % per_row

    def members(self, patches: Tensor) -> Tensor:
        """The codes of each patch, row by row, `(*patches.shape, side ** 2)`."""
        row, column = self.coordinates(patches)
        inner = torch.arange(self.side, device=patches.device)
        offsets = (inner[:, None] * self.width + inner).flatten()
        return ((row * self.width + column) * self.side)[..., None] + offsets

    def unpatched(self, states: Tensor) -> Tensor:
        """Of `(batch_size, num_patches, side ** 2, dim)` the same in the codes' order, `(batch_size, L, dim)`."""
        parts = (self.height // self.side, self.width // self.side, self.side, self.side, -1)
        return states.reshape(len(states), *parts).transpose(2, 3).flatten(1, 4)


def grid_of(sample: Tensor, side: int) -> PatchGrid:
    """The grid of the codes of whole images.

    Args:
        sample: `(batch_size, height, width)`, or `(batch_size, L)` of square images.
        side: of a patch.

    Raises:
        ValueError: another shape, or an image that patches do not fill.
    """
    shape = tuple(sample.shape[1:])
    if sample.ndim == 2:
        shape = (round(sample.shape[1] ** 0.5),) * 2
    if sample.ndim not in (2, 3) or shape[0] * shape[-1] != sample[:1].numel() or any(n % side for n in shape):
        multiple = f", height and width multiples of {side}" if side > 1 else ""
        raise ValueError(
            f"`sample` must have shape (batch_size, height, width){multiple}, got {tuple(sample.shape)}. Pass the "
            "codes of whole images."
        )
    return PatchGrid(shape[0], shape[1], side)
