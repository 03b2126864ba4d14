"""Noise that belongs to a position.

Pure functions. Draws with it are in `draws.py`, and those from the model's marginals in `marginals.py`; their names are
found here too. Randomness is separate from decisions: each row draws one 64-bit
key per step, and the noise at a position is a hash of (key, position, purpose). So the noise does not depend on the
other rows of the batch, on padding or on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from . import kernels
from .draws import chunked_inverse_cdf, draw_index, float64_device, inverse_cdf, tempered_
from .kept_tensors import kept
from .marginals import Marginals

__all__ = [
    "Generators",
    "Marginals",
    "Purpose",
    "check_generators",
    "chunked_inverse_cdf",
    "draw_index",
    "draw_keys",
    "first_rows",
    "float64_device",
    "gumbel",
    "inverse_cdf",
    "keys_of_positions",
    "normal_noise",
    "position_noise",
    "ranks",
    "tempered_",
]

Generators = torch.Generator | Sequence[torch.Generator] | None


class Purpose(IntEnum):
    """What a noise value is used for; with the same key, each purpose gets an independent stream of noise."""

    CHOICE = 0
    TOKEN = 1
    EXPLORATION = 2
    FORWARD = 3
    SHIFT = 4
    GROUP = FORWARD  # safe to share: `FORWARD` noise is made from the keys of `add_noise`, never from a step's keys


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
        together = len({key.device for key in keys}) == 1  # then one copy to `device`, rather than one for each row
        keys = keys if together else [key.to(device, non_blocking=True) for key in keys]
        return torch.cat(keys).to(device, non_blocking=True)
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


@kept
def ranks(num_ranks: int, device: torch.device) -> Tensor:
    """The ranks 0, 1, ..., int64 `(num_ranks,)`."""
    return torch.arange(num_ranks, device=device)


@kept
def first_rows(batch_size: int, length: int, device: torch.device) -> Tensor:
    """Where each row of a batch begins in the flattened `(batch_size, L)`, int64 `(batch_size, 1)`."""
    return (torch.arange(batch_size, device=device) * length)[:, None]
