"""What passes store for the next where the model must know more of an image than the codes that it is given."""

from __future__ import annotations

from torch import Tensor

from hf_maskdiff.caching.key_values import KeptStates, KeyValueCache, targets_of


class CodeCache(KeyValueCache):
    """Keys and values, and with them the codes of the latest passes and the size of their images.

    For models in which several codes make up one position: a partial pass is given some of them, and needs the others.

    Attributes:
        size: height and width of the images in codes; None before the first pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.size: tuple[int, int] | None = None
        self._codes: KeptStates | None = None

    def begin(self, codes: Tensor, size: tuple[int, int]) -> None:
        """Store the codes of a full pass, int64 `(batch_size, height * width)`, and height and width."""
        self._codes, self.size = KeptStates(codes), size

    def with_codes(self, codes: Tensor, positions: Tensor) -> Tensor:
        """All codes after a partial pass has stored its own, int64 `(batch_size, height * width)`.

        Args:
            codes: of the pass, int64 `(batch_size, K)`.
            positions: where they stand, see `targets_of`; those that are computed, but not kept, are not stored.

        Raises:
            ValueError: there was no full pass.
        """
        if self._codes is None:
            raise ValueError("`positions` need a full pass before them. Call the model without `positions` first.")
        return self._codes.write(codes, targets_of(positions, self._codes.length))

    def take(self, rows: Tensor) -> CodeCache:
        taken = CodeCache()
        taken.layers, taken.size = super().take(rows).layers, self.size
        taken._codes = None if self._codes is None else self._codes.take(rows)
        return taken

    def put(self, rows: Tensor, other: KeyValueCache) -> None:
        super().put(rows, other)
        if isinstance(other, CodeCache) and self._codes is not None and other._codes is not None:
            self._codes.put(rows, other._codes)
