"""The logits that a step reads, and which of them the model has to compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..schedulers import Choice, EmbeddingNoise

# (sample (num_rows, ...), timestep, their rows in the batch) -> logits (num_rows, L, V); where a scheduler looks ahead,
# a row stands there once for each of its candidates. In a partial pass:
# (tokens (num_rows, K), timestep, their rows, positions int64 (num_rows, K)) -> logits (num_rows, K, V)
Denoiser = Callable[..., Tensor]


def guidance_of(denoiser: Denoiser) -> object:
    """What a callback may change between steps, so that the same tokens have other logits; None if there is nothing."""
    return getattr(denoiser, "guidance", None)


@dataclass(frozen=True)
class StepRows:
    """Which rows of the batch a pass computes, and what is known of them on the host.

    Args:
        step: number of steps since the run began, or since a callback put in other tokens; 0 is the first.
        rows: the rows that need logits.
        unfinished: all rows that still hold masks; the others need no pass any more.
        remaining: how many masks each row of the batch holds, int64 `(batch_size,)` on the CPU.
        read: which positions' logits the step reads, bool `(batch_size, L)`.
        num_read: their number in each row at most, int64 `(batch_size,)` on the CPU.
        choice: the positions that the step draws, if they are known already; logits of others are not needed.
        embedding_noise: what the passes of the run do to the embeddings of the batch's tokens; None for nothing.
        put_back: how many positions of each row the last step has masked again at most, int64 `(batch_size,)` on the
            CPU; None if that is not known.
    """

    step: int
    rows: list[int]
    unfinished: list[int]
    remaining: Tensor
    read: Tensor
    num_read: Tensor
    choice: Choice | None = None
    embedding_noise: EmbeddingNoise | None = None
    put_back: Tensor | None = None

    def require_no_noise(self) -> None:
        """Raise `ValueError` if the run has noise for embeddings, of which the model takes none."""
        if self.embedding_noise is not None:
            raise ValueError(
                f"`embedding_noise` of the scheduler must be 0 for a model that takes none, got "
                f"{self.embedding_noise.level}. Set `pipe.scheduler = OneStepScheduler.from_config("
                "pipe.scheduler.config, embedding_noise=0)`, or take the model that it was made for."
            )

    def index(self, batch_size: int, device: torch.device) -> Tensor | slice:
        """The rows as an index; a slice, which copies nothing, for all of them."""
        return as_index(self.rows, batch_size, device)


@dataclass
class StepLogits:
    """The logits of a step: of all positions, or of those alone that it may reveal.

    Args:
        values: `(num_rows, n, V)`, or `(batch_size, V, height, width)` without `places`.
        places: where they belong, see the argument `logits_at` of `MaskedDiffusionScheduler.step`, int64
            `(num_rows, n)`; None if they are those of all positions of all rows.
        rows: the row of the batch that each of `num_rows` belongs to; None for all rows, in order.
    """

    values: Tensor
    places: Tensor | None = None
    rows: list[int] | None = None

    def of_rows(self, rows: list[int]) -> StepLogits:
        """Those of some of the rows that it holds, in their order; of logits with `places` and `rows`."""
        if self.rows is None or self.places is None or rows == self.rows:
            return self
        index = torch.tensor([self.rows.index(row) for row in rows], device=self.values.device)
        return StepLogits(self.values[index], self.places[index], rows)

    def replace_rows(self, newer: StepLogits) -> None:
        """Overwrite the logits of the rows that `newer` holds, in place."""
        rows = newer.rows if self.rows is None else [self.rows.index(row) for row in newer.rows or []]
        if self.places is None or newer.places is None:
            self.values[rows] = newer.values
            return
        count = newer.places.shape[1]
        missing = count - self.places.shape[1]
        if missing > 0:  # some row reads more than any row did in an earlier pass
            self.values = torch.nn.functional.pad(self.values, (0, 0, 0, missing))
            self.places = torch.nn.functional.pad(self.places, (0, missing), value=-1)
        self.values[rows, :count] = newer.values
        self.places[rows] = -1
        self.places[rows, :count] = newer.places


# (sample, timestep, rows) -> logits
PassOfStep = Callable[[Tensor, Tensor, StepRows], StepLogits]


def whole_pass(denoiser: Denoiser) -> PassOfStep:
    """A pass that computes the logits of all positions of its rows."""

    def pass_of_step(sample: Tensor, t: Tensor, now: StepRows) -> StepLogits:
        now.require_no_noise()
        rows = now.index(len(sample), sample.device)
        values = denoiser(sample[rows], t, rows)
        if isinstance(rows, slice):
            return StepLogits(values)
        if values.ndim == 4:
            values = values.flatten(2).transpose(1, 2)
        length = values.shape[1]
        return StepLogits(values, rows[:, None] * length + torch.arange(length, device=rows.device), now.rows)

    return pass_of_step


def as_index(rows: list[int], batch_size: int, device: torch.device) -> Tensor | slice:
    """Rows of a batch as an index; a slice, which copies nothing, for all of them."""
    if len(rows) == batch_size:
        return slice(None)
    return torch.tensor(rows).to(device, non_blocking=True)


def at_rows(values: Tensor, rows: Tensor | slice) -> Tensor:
    """`values[rows]` of an index that `as_index` made: all rows are the tensor itself, without a view of it."""
    return values if isinstance(rows, slice) else values[rows]
