"""Noise that belongs to a position, and exact draws from the model's marginals.

Pure functions and one view of the logits. Randomness is separate from decision: a row draws one 64-bit key per step,
and the noise at a position is a hash of (key, position, purpose). It does not depend on batch mates, padding or the
device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


class Purpose(IntEnum):
    """What a noise value decides; each purpose is an independent stream of the same key."""

    CHOICE = 0
    TOKEN = 1
    EXPLORATION = 2
    FORWARD = 3
    SHIFT = 4
    GROUP = FORWARD  # of other keys: no step masks anything


def float64_device(device: torch.device) -> torch.device:
    """`device` itself where it computes in float64, else the CPU (Apple's MPS has no float64)."""
    return torch.device("cpu") if device.type == "mps" else device


# --- keys and noise ---------------------------------------------------------------------------------------------------


def check_generators(generator: Generators, batch_size: int) -> None:
    """Raise `ValueError` for what is no generator, and where a list of them does not hold one for each row."""
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

    With a list, row b takes one draw from generator b, so that the row's noise is its own. With a single generator, or
    None for torch's global one, all rows draw from that.
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
    """The finalizer of SplitMix64, on an int64 tensor or array, which it overwrites.

    Products wrap as unsigned ones do; a mask removes the copies of the sign that a shift brings in.
    """
    value ^= (value >> 30) & (2**34 - 1)
    value *= _MIX1
    value ^= (value >> 27) & (2**37 - 1)
    value *= _MIX2
    value ^= (value >> 31) & (2**33 - 1)
    return value


@lru_cache(maxsize=64)
def _counters(length: int, purposes: tuple[Purpose, ...], device: torch.device) -> Tensor:
    """What SplitMix64 adds to its seed at each position, `(purposes, 1, L)`; every purpose has counters of its own."""
    # As numbers, since they wrap: a compiler that follows the range of an index would overflow in these products.
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
        float64 `(purposes, batch_size, L)` with 51 random bits: odd multiples of 2^-52. Its product with a number is
        below that number, also after rounding.
    """
    counters = _counters(length, purposes, keys.device)
    if keys.device.type == "cpu":  # the same arithmetic by numpy costs a third of the time on so few numbers
        states = _mix(keys.numpy()[:, None] + counters.numpy())
        return torch.from_numpy((states >> 13) * 2.0**-51 + (0.5 + 2.0**-52))
    return _mix(keys[:, None] + counters).bitwise_right_shift_(13).double().mul_(2.0**-51).add_(0.5 + 2.0**-52)


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise from uniform noise in (0, 1)."""
    return uniform.log().neg_().log_().neg_()


# Steps draw few rows: up to this many tokens, fewer operations count for more than a shorter cumulative sum.
_ONE_PASS = 1024

# --- the model's marginals --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Marginals:
    """The distributions p_i that a sampler may draw from, read from logits block by block: no (B, L, V) copy is made.

    A block holds rows of `log p_i` up to a constant, float32, forbidden tokens at -inf. On a CPU blocks fit its cache;
    elsewhere they are large.

    Args:
        logits: `(batch_size, L, V)`, any float dtype, any strides.
        mask_token_id: never drawn. May lie outside the columns.
        codebook_size: columns from here on are never drawn; None allows all V.
        temperature: divides the logits.
        top_k: only the k most probable tokens (and ties with the k-th) may be drawn.
        top_p: only the smallest set of most probable tokens whose mass reaches `top_p`, the one that crosses it
            included, after temperature and `top_k`, as in transformers.
    """

    logits: Tensor
    mask_token_id: int
    codebook_size: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    @property
    def num_tokens(self) -> int:
        """Columns that are read: up to the codebook's end, and not a mask column that stands last."""
        size = self.logits.shape[-1]
        size = size if self.codebook_size is None else min(size, self.codebook_size)
        return size - 1 if self.mask_token_id == size - 1 else size

    def reduce(self, function: Callable[..., tuple[Tensor, ...]], rows: Tensor, *per_row: Tensor) -> list[Tensor]:
        """`function(block, *columns)` of every block, each of its results joined over the blocks.

        Args:
            rows: int64 `(M,)`, counted through the flattened `(batch_size, L)`.
            per_row: tensors `(M, ...)`; a block gets its rows of them.
        """
        elements = 2**18 if self.logits.device.type == "cpu" else 2**24
        size = max(1, elements // self.num_tokens)
        if rows.shape[0] <= size:  # spares small steps the cuts and the joins
            return list(function(self._block(rows), *per_row))
        parts = zip(*(values.split(size) for values in (rows, *per_row)), strict=True)
        results = [function(self._block(part), *columns) for part, *columns in parts]
        return [torch.cat(blocks) for blocks in zip(*results, strict=True)]

    @cached_property
    def _flat(self) -> Tensor | None:
        """The columns that are read, `(batch_size L, tokens)`, where that is a view."""
        logits, length = self.logits, self.logits.shape[1]
        if logits.shape[0] > 1 and logits.stride(0) != length * logits.stride(1):
            return None
        return logits.flatten(0, 1)[:, : self.num_tokens]

    def _block(self, rows: Tensor) -> Tensor:
        if self._flat is not None:
            return self._filtered(self._flat.index_select(0, rows).float())
        length = self.logits.shape[1]
        return self._filtered(self.logits[rows // length, rows % length, : self.num_tokens].float())

    def _filtered(self, block: Tensor) -> Tensor:
        """Apply temperature, top-k and top-p to a block that is ours to overwrite."""
        if 0 <= self.mask_token_id < self.num_tokens:
            block[:, self.mask_token_id] = -math.inf
        if self.temperature != 1.0:
            block /= self.temperature
        if self.top_k is not None and self.top_k < self.num_tokens:
            threshold = block.topk(self.top_k).values[:, -1:]
            block.masked_fill_(block < threshold, -math.inf)
        if self.top_p is not None and self.top_p < 1.0:
            ordered, order = block.sort(dim=-1, descending=True, stable=True)
            mass = ordered.softmax(-1)
            before = mass.cumsum(-1) - mass
            block.scatter_(1, order, ordered.masked_fill_(before >= self.top_p, -math.inf))
        return block

    def score(self, function: Callable[[Tensor], Tensor], wanted: Tensor) -> Tensor:
        """Reduce the logits of every wanted position to one number: `function(block)` gives `(rows,)`.

        Args:
            wanted: bool `(batch_size, L)`; other positions get 0. On an accelerator they are computed all the same,
                since gathering the wanted ones would make the host wait.

        Returns:
            float32 `(batch_size, L)`.
        """
        (scores,) = self.reduce(lambda block: (function(block),), _rows_of(wanted))
        return _place(scores, wanted)

    def draw(self, rows: Tensor, uniform: Tensor, beta: Tensor) -> Tensor:
        """Draw one token per row from p_i^beta, normalised, by the inverse of its distribution function.

        Args:
            rows: int64 `(M,)`, rows of the flattened `(batch_size, L)`.
            uniform: float64 `(M,)` in (0, 1).
            beta: inverse temperature `(M,)`.

        Returns:
            tokens int64 `(M,)`, `num_tokens` where nothing can be drawn (NaN or +inf logits, or no token allowed).
        """
        device = float64_device(self.logits.device)
        # By V alone: the number of rows must not decide how one of them is drawn.
        inverse = inverse_cdf if self.num_tokens <= _ONE_PASS else chunked_inverse_cdf

        def draw_block(block: Tensor, uniform: Tensor, beta: Tensor) -> tuple[Tensor]:
            # Shifted first: near the largest logit the difference is exact, and its product keeps that.
            block.sub_(block.amax(-1, keepdim=True)).mul_(beta)
            return (inverse(torch.softmax(block, -1, out=block).to(device), uniform),)

        return self.reduce(draw_block, rows, uniform, beta.to(self.logits.device, torch.float32)[:, None])[0]

    def draw_all(self, wanted: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a token from p_i at every wanted position, `wanted` bool, `uniform` float64, both `(batch_size, L)`.

        Returns:
            tokens int64, `num_tokens` where nothing can be drawn, and their log-probabilities float64, both
            `(batch_size, L)`; at positions that are not wanted they mean nothing.
        """
        device = float64_device(self.logits.device)

        def draw_block(block: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
            probs = torch.softmax(block, -1, out=block).to(device)
            tokens = chunked_inverse_cdf(probs, uniform)
            return tokens, probs.gather(1, tokens.clamp(max=self.num_tokens - 1)[:, None])[:, 0].double().log_()

        tokens, log_probs = self.reduce(draw_block, _rows_of(wanted), _take(uniform, wanted))
        return _place(tokens, wanted), _place(log_probs, wanted)


@lru_cache(maxsize=64)
def first_rows(batch_size: int, length: int, device: torch.device) -> Tensor:
    """Where each row of a batch begins in the flattened `(batch_size, L)`, int64 `(batch_size, 1)`."""
    return (torch.arange(batch_size, device=device) * length)[:, None]


def _place(values: Tensor, wanted: Tensor) -> Tensor:
    """Values of the wanted positions, or of all, at their positions `(batch_size, L)`; 0 elsewhere."""
    if values.shape[0] == wanted.numel():
        return values.view(wanted.shape)
    return values.new_zeros(wanted.shape).masked_scatter_(wanted, values)


def _take(values: Tensor, wanted: Tensor) -> Tensor:
    """The values `(batch_size, L)` of `_rows_of`."""
    return values.masked_select(wanted) if wanted.device.type == "cpu" else values.flatten()


def _rows_of(wanted: Tensor) -> Tensor:
    """Flat indices of the wanted positions; of all positions on an accelerator, where selecting would synchronise."""
    flat = wanted.flatten()
    return flat.nonzero().squeeze(1) if flat.device.type == "cpu" else torch.arange(len(flat), device=flat.device)


def inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """Exact categorical draws: the first token at which the cumulative mass exceeds `uniform * total`.

    Cumulative sums are float64, so a tail of any size keeps its mass. (A Gumbel-max draw from float32 uniforms does
    not: arXiv 2409.02908.)

    Args:
        probs: masses float32 `(M, V)`.
        uniform: float64 `(M,)` in (0, 1).

    Returns:
        tokens int64 `(M,)`, V where there is none: the row holds NaN, or no mass.
    """
    return _first_above(probs, uniform)[0].squeeze(1)


def chunked_inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """`inverse_cdf` for large M V: twice as many operations, but no float64 `(M, V)`.

    The masses are summed in chunks; the cumulative sum over chunks and the one inside the chosen chunk are float64.
    """
    num_tokens = probs.shape[1]
    width = 1 << max(3, (num_tokens - 1).bit_length() // 2)
    missing = -num_tokens % width
    chunks = (torch.nn.functional.pad(probs, (0, missing)) if missing else probs).unflatten(1, (-1, width))
    chunk, level, cumulative = _first_above(chunks.sum(-1), uniform)
    none = chunk == chunks.shape[1]
    chunk.masked_fill_(none, 0)
    # Inside the chunk all is counted back from its end, where both are 0: the level lies strictly below, and no
    # rounding makes it reach a column of mass 0, at the end or, by the maximum, at the start.
    level_inside = level - cumulative.gather(1, chunk)
    inside = chunks[torch.arange(len(probs), device=probs.device), chunk[:, 0]].cumsum(-1, dtype=torch.float64)
    mass = inside[:, -1:]
    token = torch.searchsorted(inside - mass, level_inside.maximum(-mass), right=True)
    return token.add_(chunk, alpha=width).masked_fill_(none, num_tokens).squeeze(1)


def _first_above(mass: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First column whose cumulative mass exceeds the level `uniform * total`, the level, and the cumulative masses.

    The column is V where there is none: the row holds NaN, or no mass.
    """
    cumulative = mass.cumsum(-1, dtype=torch.float64)
    # Strictly below the total, as the noise is below 1, so that a column of mass 0 at the end is never reached.
    level = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, level, right=True), level, cumulative
