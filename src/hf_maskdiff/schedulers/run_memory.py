"""What a scheduler keeps from one step of a run to the next: an object of whoever runs the loop."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sampling import Marginals


class RunMemory:
    """What one run keeps from step to step, row by row: `scheduler.new_memory()` makes it, each `step` is given it.

    A scheduler holds its configuration and the timesteps of a run, and nothing of a row: several loops, also in several
    threads, may share it, each with a memory of its own. Rows are those of the first step's batch and stay in place.
    """

    def __init__(self) -> None:
        self._shape: torch.Size | None = None
        self._run_keys = torch.empty(0)
        self._known = torch.empty(0, dtype=torch.bool)

    @property
    def run_keys(self) -> Tensor:
        """The noise keys of the run's first step, int64 `(batch_size,)`."""
        return self._run_keys

    @property
    def known(self) -> Tensor:
        """Which positions held a token when the run began, bool `(batch_size, L)`."""
        return self._known

    def begin_step(self, tokens: Tensor, keys: Tensor, masked: Tensor) -> None:
        """Take note of a step: tokens int64 `(batch_size, L)`, its noise keys, int64 `(batch_size,)`, and the masks.

        Raises:
            ValueError: the tokens have another shape than in the run's first step.
        """
        if self._shape is None:
            self._shape, self._run_keys, self._known = tokens.shape, keys, ~masked
        if self._shape != tokens.shape:
            raise ValueError(
                f"`memory` must be of the same run as `sample`, got one of tokens {tuple(self._shape)} for a sample of "
                f"{tuple(tokens.shape)}. Make one for each run: `memory = scheduler.new_memory()`."
            )


class StabilityMemory(RunMemory):
    """Keeps the marginals of the last pass too, and for how many passes each position has been stable."""

    def __init__(self) -> None:
        super().__init__()
        self.last = LastMarginals()
        self._stable_passes: Tensor | None = None

    def compare(self, marginals: Marginals, masked: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """See `LastMarginals.replace`; both `(batch_size, L)`, float64 on `device`, 0 where nothing is masked."""
        rows = masked.flatten().nonzero()[:, 0]
        found = (part.to(device, torch.float64) for part in self.last.replace(marginals, rows))
        divergence, log_confidence = (
            part.new_zeros(masked.numel()).index_copy_(0, rows.to(device), part).view(masked.shape) for part in found
        )
        return divergence, log_confidence

    def count_stable(self, stable: Tensor) -> Tensor:
        """For how many passes up to this one each position has been stable, int64 like `stable`, `(batch_size, L)`."""
        before = torch.zeros_like(stable, dtype=torch.int64) if self._stable_passes is None else self._stable_passes
        self._stable_passes = (before + 1).masked_fill_(~stable, 0)
        return self._stable_passes


class DrawMemory(RunMemory):
    """Keeps the probability with which each token was drawn, too."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn_with: Tensor | None = None

    def record(self, places: Tensor, probabilities: Tensor, shape: torch.Size) -> None:
        """Note that tokens were drawn; flat places of tokens `(batch_size, L)`, those beyond the last are left out."""
        if self._drawn_with is None:
            self._drawn_with = probabilities.new_full((shape.numel() + 1,), torch.nan, dtype=torch.float32)
        self._drawn_with.scatter_(0, places, probabilities.float())

    def drawn_with(self, shape: torch.Size, device: torch.device) -> Tensor:
        """The probabilities, float32 `(batch_size, L)`; NaN where no token was drawn."""
        if self._drawn_with is None:
            return torch.full(shape, torch.nan, dtype=torch.float32, device=device)
        return self._drawn_with[:-1].view(shape)


class LifeMemory(RunMemory):
    """Keeps the sum of the probabilities that passes gave to each token since it was drawn, and their number, too."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: Tensor | None = None
        self._passes: Tensor | None = None

    def mean_with(self, probabilities: Tensor, revealed: Tensor) -> Tensor:
        """Take note of a pass, and return the mean of each token's life up to it, both `(batch_size, L)`.

        Args:
            probabilities: of the tokens that stand there, in this pass.
            revealed: bool; what is not revealed in a pass begins a new life.
        """
        if self._sums is None or self._passes is None:
            self._sums, self._passes = torch.zeros_like(probabilities), torch.zeros_like(probabilities)
        self._sums = (self._sums + probabilities).masked_fill(~revealed, 0.0)
        self._passes = (self._passes + 1).masked_fill(~revealed, 0.0)
        return self._sums / self._passes.clamp(min=1)


class EditingMemory(DrawMemory):
    """Keeps for how many passes each row has been full, and what the last pass thought of each token, too.

    Attributes:
        goes_on: which rows the last step has left with something to do, bool `(batch_size,)`; None before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.goes_on: Tensor | None = None
        self._passes: Tensor | None = None

    def note(self, had_masks: Tensor, edited: Tensor, is_last: bool, most_passes: int) -> None:
        """Take note of a pass: which rows had masks before it, and which of them it edits, bool `(batch_size,)`."""
        before = torch.zeros_like(had_masks, dtype=torch.int64) if self._passes is None else self._passes
        self._passes = (before + 1).masked_fill(had_masks, 0)
        self.goes_on = torch.where(had_masks, not is_last, edited & (self._passes <= most_passes))


# Logarithms of probabilities below 1e-12 count as that of 1e-12, so that a divergence is finite.
_LOWEST = -27.6310211159


class LastMarginals:
    """The logarithms of the marginals in the last pass, at the positions that were masked then: `(positions, V)`."""

    def __init__(self) -> None:
        # Flat indices of the positions, ascending, and the row of `_log_probs` where each has its marginal.
        self._rows, self._places = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        self._log_probs = torch.empty(0, 0)

    def replace(self, marginals: Marginals, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the marginals of this pass, and compare them with those of the last one.

        Args:
            marginals: of this pass.
            rows: indices of the masked positions in the flattened `(batch_size, L)`, ascending, int64 `(M,)`.

        Returns:
            `KL(p now || p in the last pass)` in nats, infinite where the position was not masked in the last pass, and
            `log max p`; both float32 `(M,)`.
        """
        places, known = self._find(rows, marginals.num_tokens)
        kept = self._log_probs

        def compare(block: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
            log_probs = torch.log_softmax(block, -1, out=block).clamp_(min=_LOWEST)
            change = log_probs - kept.index_select(0, place)
            kept.index_copy_(0, place, log_probs)
            largest = log_probs.amax(-1)
            return log_probs.exp_().mul_(change).sum(-1).clamp_(min=0), largest

        divergence, log_confidence = marginals.reduce(compare, rows, places)
        self._rows, self._places = rows, places
        return divergence.masked_fill(~known, torch.inf), log_confidence

    def _find(self, rows: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Where each row's marginal is kept, and whether it is of the last pass; makes room for those that are new."""
        if not len(self._rows):
            known = torch.zeros_like(rows, dtype=torch.bool)
        else:
            index = torch.searchsorted(self._rows, rows).clamp_(max=len(self._rows) - 1)
            known = self._rows[index] == rows
            if bool(known.all()):  # the usual case: nothing was masked anew
                return self._places[index], known
        fresh = torch.zeros(len(rows), num_tokens, dtype=torch.float32, device=rows.device)
        if bool(known.any()):
            fresh[known] = self._log_probs[self._places[index][known]]
        self._log_probs = fresh
        return torch.arange(len(rows), device=rows.device), known
