"""What a run starts from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from ..sampling import Purpose, normal_noise


@dataclass(frozen=True)
class EmbeddingNoise:
    """Normal noise that is mixed into the embeddings of a run's tokens: called with them, it returns the mixture.

    Args:
        level: sigma, in [0, 1): of embeddings e it makes `sigma N(0, 1) + sqrt(1 - sigma^2) e`.
        keys: of the noise of each row, int64 `(batch_size,)`.
    """

    level: float
    keys: Tensor

    def of_rows(self, rows: Tensor | slice) -> EmbeddingNoise:
        """The noise of some rows of the batch."""
        return replace(self, keys=self.keys[rows if isinstance(rows, slice) else rows.to(self.keys.device)])

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Embeddings `(batch_size, L, width)` of all of a row's tokens in any dtype; returns the same."""
        _, length, width = embeddings.shape
        noise = normal_noise(self.keys, length, width, Purpose.EXPLORATION)
        noise = noise.to(embeddings.dtype).to(embeddings.device)  # in this order: not every device has float64
        return self.level * noise + math.sqrt(1 - self.level**2) * embeddings


@dataclass(frozen=True)
class RunStart:
    """What a run starts from, as a scheduler prepares it.

    Args:
        sample: tokens, int64 `(batch_size, ...)`.
        embedding_noise: what the run's passes do to the embeddings of these tokens; None leaves them as they are.
    """

    sample: Tensor
    embedding_noise: EmbeddingNoise | None = None
