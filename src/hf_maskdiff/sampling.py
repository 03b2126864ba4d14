"""Noise that belongs to a position, and exact draws from the model's marginals.

Pure functions, and `Marginals`, a view of the logits. Randomness is separate from decisions: each row draws one 64-bit
key per step, and the noise at a position is a hash of (key, position, purpose). So the noise does not depend on the
other rows of the batch, on padding or on the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from . import kernels
from .kept_tensors import kept
from .token_filters import keep_top_k, keep_top_p, keep_typical

Generators = torch.Generator | Sequence[torch.Generator] | None


class Purpose(IntEnum):
    """What a noise value is used for; with the same key, each purpose gets an independent stream of noise."""

    CHOICE = 0
    TOKEN = 1
    EXPLORATION = 2
    FORWARD = 3
    SHIFT = 4
    GROUP = FORWARD  # safe to share: `FORWARD` noise is made from the keys of `add_noise`, never from a step's keys


def float64_device(device: torch.device) -> torch.device:
    """`device` if it supports float64, else the CPU (Apple's MPS has no float64)."""
    return torch.device("cpu") if device.type == "mps" else device


# --- keys and noise ---------------------------------------------------------------------------------------------------


def check_generators(generator: Generators, batch_size: int) -> None:
    """Raise `ValueError` unless this is a generator, None, or a list with one generator for each row."""
    single = [] if generator is None else [generator]
    if not all(isinstance(one, torch.Generator) for one in (generator if isinstance(generator, Sequence) else single)):
        raise ValueError(
            f"`generator` must be a torch.Generator, a list of them, or None, got {generator!r}. For a seed pass "
            "`torch.Generator().manual_seed(seed)`."
        )
    if isinstance(generator, Sequence) and len(generator) != batch_size:
        raise ValueError(
            f"A list of generators must hold one per row, got {len(generator)} for a batch of {batch_size}. "
            "Pass one generator for the whole batch or one for each row."
        )


def draw_keys(generator: Generators, batch_size: int, device: torch.device) -> Tensor:
    """One fresh 64-bit key per row, int64 `(batch_size,)` on `device`.

    With a list of generators, row b takes one draw from generator b, so its noise does not depend on other rows. With a
    single generator, all rows draw from it; None means torch's global generator.
    """
    check_generators(generator, batch_size)
    bounds = (-(2**63), 2**63 - 1)
    if isinstance(generator, Sequence):
        keys = [torch.randint(*bounds, (1,), generator=g, device=g.device) for g in generator]
        return torch.cat([key.to(device, non_blocking=True) for key in keys])
    source = device if generator is None else generator.device
    return torch.randint(*bounds, (batch_size,), generator=generator, device=source).to(device, non_blocking=True)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def _mix(value: Any) -> Any:
    """The finalizer of SplitMix64 on an int64 tensor or array, which it overwrites.

    SplitMix64 is defined on unsigned integers. Signed products wrap to the same bits; after each right shift a mask
    clears the copies of the sign bit that the shift brings in.
    """
    value ^= (value >> 30) & (2**34 - 1)
    value *= _MIX1
    value ^= (value >> 27) & (2**37 - 1)
    value *= _MIX2
    value ^= (value >> 31) & (2**33 - 1)
    return value


@kept
def _counters(length: int, purposes: tuple[Purpose, ...], device: torch.device) -> Tensor:
    """What SplitMix64 adds to its seed at each position, `(purposes, 1, L)`; each purpose has its own counters."""
    # Computed as Python integers, since the products wrap: a compiler that tracks the range of an index would overflow.
    numbers = [
        [_signed((position * len(Purpose) + purpose) * _GOLDEN % 2**64) for position in range(length)]
        for purpose in purposes
    ]
    return torch.tensor(numbers, dtype=torch.int64, device=device)[:, None]


def position_noise(keys: Tensor, length: int, *purposes: Purpose) -> Tensor:
    """Uniform noise in the open interval (0, 1), a function of key, position and purpose alone.

    SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) with the key as its seed, at the index `5 position + purpose`.

    Args:
        keys: int64 `(batch_size,)`.
        length: L, the number of positions.

    Returns:
        float64 `(purposes, batch_size, L)` with 51 random bits: odd multiples of 2^-52. The product of such a value and
        a positive number is below that number, even after rounding.
    """
    if kernels.usable(keys.device) and len(purposes) <= 2:
        return kernels.position_noise(keys, length, purposes, len(Purpose))
    counters = _counters(length, purposes, keys.device)
    if keys.device.type == "cpu":  # for so few numbers, numpy does the same arithmetic in a third of the time
        states = _mix(keys.numpy()[:, None] + counters.numpy())
        return torch.from_numpy((states >> 13) * 2.0**-51 + (0.5 + 2.0**-52))
    return _mix(keys[:, None] + counters).bitwise_right_shift_(13).double().mul_(2.0**-51).add_(0.5 + 2.0**-52)


def keys_of_positions(keys: Tensor, length: int, purpose: Purpose) -> Tensor:
    """A key of its own for each position, int64 `(batch_size, L)`; keys int64 `(batch_size,)`."""
    return _mix(keys[:, None] + _counters(length, (purpose,), keys.device)[0])


def normal_noise(keys: Tensor, length: int, width: int, purpose: Purpose) -> Tensor:
    """Standard normal noise, `width` numbers at each position: a function of key, position and purpose alone.

    The hash of a position is the key of its numbers, so that they are independent of all others.

    Args:
        keys: int64 `(batch_size,)`.
        length: L, the number of positions.

    Returns:
        float64 `(batch_size, L, width)`.
    """
    uniform = position_noise(keys_of_positions(keys, length, purpose).flatten(), width, purpose)[0]
    return torch.special.ndtri(uniform).view(len(keys), length, width)


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise from uniform noise in (0, 1)."""
    return uniform.log().neg_().log_().neg_()


# Up to this many tokens, a cumulative sum over all of them is faster than the chunked one, which needs more operations.
_ONE_PASS = 1024

# --- the model's marginals --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Marginals:
    """The distributions p_i that a sampler may draw from, read from logits block by block: no (B, L, V) copy is made.

    A block holds rows of `log p_i` up to a constant, float32, with -inf for forbidden tokens. On a CPU, blocks are
    small enough for its cache; elsewhere they are large.

    Args:
        logits: `(batch_size, L, V)`, any float dtype, any strides.
        mask_token_id: never drawn; may lie outside the V columns.
        codebook_size: columns from this one on are never drawn; None allows all V.
        temperature: divides the logits.
        top_k: only the k most probable tokens, and those that tie with the k-th, may be drawn.
        top_p: only the most probable tokens may be drawn, up to and including the one with which their total
            probability reaches `top_p`. Applied after temperature and `top_k`, as in transformers.
        typical_p: only the tokens whose information is nearest to the entropy may be drawn, up to and including the one
            with which their total probability reaches `typical_p`. Applied last, as in transformers.
        places: where the logits belong, if they are not those of all positions: the index of each in the flattened
            `(batch_size, L)`, int64 like `logits` without its last dimension; -1 for those that belong nowhere. All
            methods below still speak of positions in `(batch_size, L)`.
        num_places: `batch_size * L`, with `places`.
    """

    logits: Tensor
    mask_token_id: int
    codebook_size: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    places: Tensor | None = None
    num_places: int = 0
    typical_p: float | None = None

    @property
    def num_tokens(self) -> int:
        """Number of columns that are read: those of the codebook, without the mask's column if that is the last."""
        size = self.logits.shape[-1]
        size = size if self.codebook_size is None else min(size, self.codebook_size)
        return size - 1 if self.mask_token_id == size - 1 else size

    def reduce(self, function: Callable[..., tuple[Tensor, ...]], rows: Tensor, *per_row: Tensor) -> list[Tensor]:
        """Call `function(block, *columns)` for every block, and concatenate each of its results over the blocks.

        Args:
            rows: indices into the flattened `(batch_size, L)`, int64 `(M,)`.
            per_row: tensors `(M, ...)` with an entry for each of `rows`; `columns` are their entries for one block.
        """
        elements = 2**18 if self.logits.device.type == "cpu" else 2**24
        size = max(1, elements // self.num_tokens)
        if rows.shape[0] <= size:  # one block: nothing to split or concatenate
            return list(function(self._block(rows), *per_row))
        parts = zip(*(values.split(size) for values in (rows, *per_row)), strict=True)
        results = [function(self._block(part), *columns) for part, *columns in parts]
        return [torch.cat(blocks) for blocks in zip(*results, strict=True)]

    @cached_property
    def _flat(self) -> Tensor | None:
        """The columns that are read, `(batch_size * L, num_tokens)`, as a view; None if that would need a copy."""
        logits, length = self.logits, self.logits.shape[1]
        if logits.shape[0] > 1 and logits.stride(0) != length * logits.stride(1):
            return None
        return logits.flatten(0, 1)[:, : self.num_tokens]

    @cached_property
    def _fused(self) -> bool:
        """Whether `hf_maskdiff.kernels` can read these logits: contiguous rows, of which nothing is filtered out."""
        filtered = self.top_k is not None or self.top_p is not None or self.typical_p is not None
        return not filtered and self.logits.stride(-1) == 1 and kernels.usable(self.logits.device)

    def _kernel_rows(self, rows: Tensor | None = None, wanted: Tensor | None = None) -> kernels.Rows:
        """What the kernels read: some flat positions, or all that have logits, of which some may be wanted."""
        if self.places is not None:
            if rows is None:
                wanted = self.places >= 0
            else:
                rows = self._sources[rows]
        return kernels.Rows(self.logits, self.num_tokens, self.mask_token_id, self.temperature, rows, wanted)

    def _at_places(self, values: Tensor) -> Tensor:
        """The entries of a tensor `(batch_size, L)` that belong to the logits, `(num_rows, n)`."""
        return values if self.places is None else values.flatten()[self.places.clamp(min=0)]

    @cached_property
    def _targets(self) -> Tensor:
        """The flat `places`, where those that belong nowhere are put one past the end."""
        assert self.places is not None
        flat = self.places.flatten()
        return torch.where(flat < 0, self.num_places, flat)

    @cached_property
    def _sources(self) -> Tensor:
        """The row of the flattened logits that belongs to each flat position; if there is none, -1 on a CPU, where
        this is checked, and 0 elsewhere."""
        targets = self._targets
        sources = targets.new_full((self.num_places + 1,), -1 if targets.device.type == "cpu" else 0)
        return sources.scatter_(0, targets, torch.arange(len(targets), device=targets.device))

    def rows_at(self, rows: Tensor) -> Tensor:
        """The logits of these flat positions, `(..., V)`, as they are given."""
        if self.places is not None:
            rows = self._sources[rows]
        length = self.logits.shape[1]
        return self.logits[rows // length, rows % length]  # whatever the strides, nothing else is copied

    def _block(self, rows: Tensor) -> Tensor:
        if self.places is not None:
            rows = self._sources[rows]
            if rows.device.type == "cpu" and bool((rows < 0).any()):
                raise ValueError(
                    "`logits_at` must name every masked position, got some without logits. Pass the places of all "
                    "positions that are masked in `sample`."
                )
        if self._flat is not None:
            return self._filtered(self._flat.index_select(0, rows).float())
        length = self.logits.shape[1]
        return self._filtered(self.logits[rows // length, rows % length, : self.num_tokens].float())

    def _filtered(self, block: Tensor) -> Tensor:
        """Apply temperature, top-k, top-p and typical-p to a block, in place."""
        if 0 <= self.mask_token_id < self.num_tokens:
            block[:, self.mask_token_id] = -math.inf
        if self.temperature != 1.0:
            block /= self.temperature
        if self.top_k is not None:
            keep_top_k(block, self.top_k)
        if self.top_p is not None:
            keep_top_p(block, self.top_p)
        if self.typical_p is not None:
            keep_typical(block, self.typical_p)
        return block

    def score(self, function: Callable[[Tensor], Tensor], wanted: Tensor) -> Tensor:
        """Reduce the logits of every wanted position to one number: `function(block)` gives `(rows,)`.

        Args:
            wanted: bool `(batch_size, L)`. All other positions get 0, but on an accelerator without a kernel for the
                function. There their scores are computed too, as selecting positions would make the host wait.

        Returns:
            float32 `(batch_size, L)`.
        """
        if self._fused and (found := kernels.row_scores(self._kernel_rows(wanted=wanted), function)) is not None:
            return self._placed(found, wanted)
        (scores,) = self.reduce(lambda block: (function(block),), self._rows_of(wanted))
        return self._placed(scores, wanted)

    def log_prob_of(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        """`log p_i(x_i)` of the tokens x that stand at the wanted positions.

        Args:
            tokens: int64 `(batch_size, L)`.
            wanted: bool `(batch_size, L)`.

        Returns:
            float32 `(batch_size, L)`: -inf for a token that may not be drawn, at all other positions as `score`.
        """
        if self._fused:
            found = kernels.row_log_probs(self._kernel_rows(wanted=wanted), self._at_places(tokens))
            return self._placed(found, wanted)
        rows = self._rows_of(wanted)
        return self._placed(self.log_prob_at(rows, tokens.flatten()[rows]), wanted)

    def log_prob_of_and_largest(self, tokens: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """As `log_prob_of`, and `log max p_i`, in one reading of the logits; both float32 `(batch_size, L)`."""

        def both(block: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
            log_probs = torch.log_softmax(block, -1, out=block)
            found = log_probs.gather(1, tokens.clamp(max=self.num_tokens - 1)[:, None])[:, 0]
            return found.masked_fill_(tokens >= self.num_tokens, -math.inf), log_probs.amax(-1)

        rows = self._rows_of(wanted)
        found, largest = self.reduce(both, rows, tokens.flatten()[rows])
        return self._placed(found, wanted), self._placed(largest, wanted)

    def log_prob_at(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """`log p(x)` of one token per row, float32 `(M,)`; rows as of `draw`, tokens int64 `(M,)`."""

        if self._fused:
            return kernels.row_log_probs(self._kernel_rows(rows), tokens)

        def log_prob(block: Tensor, tokens: Tensor) -> tuple[Tensor]:
            token = tokens.clamp(max=self.num_tokens - 1)[:, None]
            found = block.gather(1, token)[:, 0] - block.logsumexp(-1)
            return (found.masked_fill_(tokens >= self.num_tokens, -math.inf),)

        return self.reduce(log_prob, rows, tokens)[0]

    def draw(self, rows: Tensor, uniform: Tensor, beta: Tensor) -> Tensor:
        """Draw one token per row from the normalised p_i^beta, by inverting its cumulative distribution.

        Args:
            rows: indices into the flattened `(batch_size, L)`, int64 `(M,)`.
            uniform: noise, float64 `(M,)` in (0, 1).
            beta: inverse temperature, `(M,)`.

        Returns:
            Tokens, int64 `(M,)`; `num_tokens` if no token can be drawn (NaN or +inf logits, or no token allowed).
        """
        if self._fused:
            return kernels.row_draws(self._kernel_rows(rows), uniform, beta[None])[0]
        device = float64_device(self.logits.device)

        def draw_block(block: Tensor, uniform: Tensor, beta: Tensor) -> tuple[Tensor]:
            return (draw_index(tempered_(block, beta).to(device), uniform),)

        return self.reduce(draw_block, rows, uniform, beta.to(self.logits.device, torch.float32)[:, None])[0]

    def draw_or_keep(self, rows: Tensor, uniform: Tensor, beta: Tensor, wanted: Tensor, tokens: Tensor) -> Tensor:
        """`draw` at the ranks that are wanted; at all others, and where no token can be drawn, `tokens` stay.

        For accelerators: nothing is selected, which would make the host wait. All arguments are `(batch_size, K)`.

        Args:
            rows, uniform, beta: of each rank, as of `draw`.
            wanted: bool.
            tokens: int64.
        """
        if self._fused:
            return kernels.row_draws(self._kernel_rows(rows, wanted), uniform, beta, tokens)[0]
        drawn = self.draw(rows.flatten(), uniform.flatten(), beta.flatten()).view_as(rows).to(tokens.device)
        return torch.where(wanted & (drawn < self.num_tokens), drawn, tokens)

    def draw_all(self, wanted: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a token from p_i at every wanted position.

        Args:
            wanted: bool `(batch_size, L)`.
            uniform: noise, float64 `(batch_size, L)` in (0, 1).

        Returns:
            Tokens, int64, with `num_tokens` if no token can be drawn, and their log-probabilities, float64; both
            `(batch_size, L)`. Values at all other positions are meaningless.
        """
        if self._fused:
            read = self._kernel_rows(wanted=wanted)
            drawn, log_probs = kernels.row_draws(read, self._at_places(uniform), with_log_probs=True)
            assert log_probs is not None
            return self._placed(drawn, wanted), self._placed(log_probs, wanted)
        device = float64_device(self.logits.device)

        def draw_block(block: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
            probs = torch.softmax(block, -1, out=block).to(device)
            tokens = chunked_inverse_cdf(probs, uniform)
            return tokens, probs.gather(1, tokens.clamp(max=self.num_tokens - 1)[:, None])[:, 0].double().log_()

        rows = self._rows_of(wanted)
        tokens, log_probs = self.reduce(draw_block, rows, uniform.flatten()[rows])
        return self._placed(tokens, wanted), self._placed(log_probs, wanted)

    def draw_all_tempered(self, wanted: Tensor, uniform: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """Draw a token from the normalised p_i^beta at every wanted position.

        Args:
            wanted: bool `(batch_size, L)`.
            uniform: noise, float64 `(batch_size, L)` in (0, 1).
            beta: inverse temperature.

        Returns:
            Tokens, int64, with `num_tokens` if no token can be drawn, and their logits, divided by the temperature,
            float32; both `(batch_size, L)`. Values at all other positions are meaningless.
        """
        device = float64_device(self.logits.device)

        def draw_block(block: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
            probs = tempered_(block.clone(), block.new_tensor(beta))
            tokens = draw_index(probs.to(device), uniform)
            return tokens, block.gather(1, tokens.to(block.device).clamp(max=self.num_tokens - 1)[:, None])[:, 0]

        rows = self._rows_of(wanted)
        tokens, logits = self.reduce(draw_block, rows, uniform.flatten()[rows])
        return self._placed(tokens, wanted), self._placed(logits, wanted)

    def _rows_of(self, wanted: Tensor) -> Tensor:
        """Flat indices of the wanted positions. On an accelerator, where selecting them would make the host wait, of
        all positions that have logits."""
        if wanted.device.type == "cpu":
            return wanted.flatten().nonzero().squeeze(1)
        if self.places is None:
            return torch.arange(wanted.numel(), device=wanted.device)
        return self.places.flatten().clamp(min=0)

    def _placed(self, values: Tensor, wanted: Tensor) -> Tensor:
        """The values of `_rows_of`, or of all positions that have logits, put back into `(batch_size, L)`."""
        if wanted.device.type == "cpu" and not self._fused:
            return values.new_zeros(wanted.shape).masked_scatter_(wanted, values)
        if self.places is None:
            return values.view(wanted.shape)
        return (
            values.new_zeros(self.num_places + 1).scatter_(0, self._targets, values.flatten())[:-1].view(wanted.shape)
        )


@kept
def ranks(num_ranks: int, device: torch.device) -> Tensor:
    """The ranks 0, 1, ..., int64 `(num_ranks,)`."""
    return torch.arange(num_ranks, device=device)


@kept
def first_rows(batch_size: int, length: int, device: torch.device) -> Tensor:
    """Where each row of a batch begins in the flattened `(batch_size, L)`, int64 `(batch_size, 1)`."""
    return (torch.arange(batch_size, device=device) * length)[:, None]


def tempered_(block: Tensor, beta: Tensor) -> Tensor:
    """The normalised p^beta of a block of unnormalised log-probabilities, float32 `(M, V)`, which it overwrites.

    Args:
        beta: `(M, 1)`.
    """
    # Shift before multiplying: for logits near the largest one the difference is exact.
    block.sub_(block.amax(-1, keepdim=True)).mul_(beta)
    return torch.softmax(block, -1, out=block)


def draw_index(probs: Tensor, uniform: Tensor) -> Tensor:
    """Exact categorical draws, by whichever of the two functions below is faster; the arguments are theirs."""
    # Chosen by V alone: how a row is drawn must not depend on the number of rows.
    return inverse_cdf(probs, uniform) if probs.shape[-1] <= _ONE_PASS else chunked_inverse_cdf(probs, uniform)


def inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """Exact categorical draws: the first token at which the cumulative mass exceeds `uniform * total`.

    Cumulative sums are float64, so that even a long tail of improbable tokens keeps its mass. (With Gumbel-max draws
    from float32 uniform noise it would lose mass: arXiv 2409.02908.)

    Args:
        probs: masses, float32 `(M, V)`.
        uniform: noise, float64 `(M,)` in (0, 1).

    Returns:
        Tokens, int64 `(M,)`; V if no token can be drawn, because the row holds NaN or no mass.
    """
    return _first_above(probs, uniform)[0].squeeze(1)


def chunked_inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """`inverse_cdf` for large `M * V`: needs twice as many operations, but no float64 tensor `(M, V)`.

    The masses are summed in chunks. The cumulative sum over the chunks, and that inside the chosen chunk, are float64.
    """
    num_tokens = probs.shape[1]
    width = 1 << max(3, (num_tokens - 1).bit_length() // 2)
    missing = -num_tokens % width
    chunks = (torch.nn.functional.pad(probs, (0, missing)) if missing else probs).unflatten(1, (-1, width))
    chunk, level, cumulative = _first_above(chunks.sum(-1), uniform)
    none = chunk == chunks.shape[1]
    chunk.masked_fill_(none, 0)
    # Inside the chunk, level and masses are measured back from the chunk's end, which is 0. The level is strictly below
    # 0, so rounding cannot make it reach a column of mass 0 at the end; the maximum prevents the same at the start.
    level_inside = level - cumulative.gather(1, chunk)
    inside = chunks[torch.arange(len(probs), device=probs.device), chunk[:, 0]].cumsum(-1, dtype=torch.float64)
    mass = inside[:, -1:]
    token = torch.searchsorted(inside - mass, level_inside.maximum(-mass), right=True)
    return token.add_(chunk, alpha=width).masked_fill_(none, num_tokens).squeeze(1)


def _first_above(mass: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First column whose cumulative mass exceeds the level `uniform * total`, the level, and the cumulative masses.

    The column is V if there is no such column, because the row holds NaN or no mass.
    """
    cumulative = mass.cumsum(-1, dtype=torch.float64)
    # The noise is below 1, so the level is strictly below the total, and a last column of mass 0 is never reached.
    level = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, level, right=True), level, cumulative
