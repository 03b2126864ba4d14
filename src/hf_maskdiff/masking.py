"""How many positions stay masked: schedules ``t -> m(t)`` and the counts that follow from them.

Pure functions. Time ``t`` runs from 1 (all masked) to 0 (none); ``m`` is the mask ratio, ``m(1) = 1`` and ``m(0) = 0``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .integers import is_integer

MaskingSchedule = str | Sequence[int]

# Papers write these in the progress r = 1 - t, as cos(pi r / 2), 1 - r, (2 / pi) arccos(r) and 1 - r^2. Written in t,
# the curves are exact at both ends: cos(pi / 2) would give 6e-17 instead of 0.
MASKING_SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": lambda t: torch.sin(math.pi / 2 * t),
    "linear": lambda t: t,
    "arccos": lambda t: 2 / math.pi * torch.arccos(1 - t),
    "square": lambda t: t * (2 - t),
    # MDLM's cosine noise (arXiv 2406.07524) is a different curve from MaskGIT's cosine schedule.
    "mdlm_cosine": lambda t: 1 - torch.sin(math.pi / 2 * (1 - t)),
}

# Counts may be float64 tensors, one per row, or one number for all rows; the arithmetic below is the same for both, and
# for one step or, as a tensor `(steps, 1)`, several.
Count = Tensor | float

# A product that is an integer in exact arithmetic may come out a hair below it in float64.
_TIE = 1e-9


def _floor_masked(initial: Count, ratio: Count, done: Count, num_steps: int) -> Count:
    return (initial * ratio + _TIE) // 1


def _floor_revealed(initial: Count, ratio: Count, done: Count, num_steps: int) -> Count:
    return initial - (initial * (1 - ratio) + _TIE) // 1


def _even(initial: Count, ratio: Count, done: Count, num_steps: int) -> Count:
    larger = initial % num_steps  # the first `larger` steps reveal one position more than the rest
    return initial - initial // num_steps * done - (larger - (larger - done) * (larger > done))


# (initial masks, mask ratio, steps done, total steps) -> masks left
ROUNDINGS: dict[str, Callable[[Count, Count, Count, int], Count]] = {
    "floor_masked": _floor_masked,
    "floor_revealed": _floor_revealed,
    "even": _even,
}


def check_masking_schedule(masking_schedule: MaskingSchedule, rounding: str) -> None:
    """Raise `ValueError` unless the schedule is a known name or an increasing table, and the rounding is known."""
    if rounding not in ROUNDINGS:
        raise ValueError(f"`rounding` must be one of {sorted(ROUNDINGS)}, got {rounding!r}. Pick one of these.")
    named = isinstance(masking_schedule, str)
    if not (masking_schedule in MASKING_SCHEDULES if named else isinstance(masking_schedule, Sequence)):
        raise ValueError(
            f"`masking_schedule` must be one of {sorted(MASKING_SCHEDULES)} or a table of cumulative counts, got "
            f"{masking_schedule!r}. Pick one of these names or pass a list of integers."
        )
    if isinstance(masking_schedule, str):
        return
    table = list(masking_schedule)
    integers = all(is_integer(count, at_least=1) for count in table)
    if not table or not integers or not all(a < b for a, b in zip([0, *table], table, strict=False)):
        raise ValueError(
            "A `masking_schedule` table must hold strictly increasing positive integers, the positions revealed after "
            f"each step, got {table}. For 10 positions in 3 steps write for example [2, 5, 10]."
        )


def mask_ratio(masking_schedule: MaskingSchedule, t: Tensor) -> Tensor:
    """The mask ratio m(t): the share of positions that are masked at time t.

    Args:
        masking_schedule: a name in `MASKING_SCHEDULES`, or a table of the number of positions revealed by the end of
            each step, which is interpolated linearly.
        t: times in [0, 1], any shape; computed in the dtype of `t` (float64 for exact counts).

    Returns:
        Ratios in [0, 1], with the shape and dtype of `t`.

    Example:
        >>> mask_ratio("linear", torch.tensor([1.0, 0.25, 0.0]))
        tensor([1.0000, 0.2500, 0.0000])
    """
    if isinstance(masking_schedule, str):
        return MASKING_SCHEDULES[masking_schedule](t)
    left = torch.tensor([0, *masking_schedule], dtype=t.dtype, device=t.device)
    left = 1 - left / left[-1]
    place = (1 - t) * (len(left) - 1)
    before = place.floor().long().clamp(0, len(left) - 2)
    return torch.lerp(left[before], left[before + 1], place - before)


def masks_left(
    initial: Count, step_index: int, num_inference_steps: int, masking_schedule: MaskingSchedule, rounding: str
) -> Count:
    """How many masks the schedule leaves in each row after a step.

    The rule that every step reveals at least one position is not applied here but in `reveal_counts`.

    Args:
        initial: number of masks each row started with, float64 `(batch_size,)`, or one number for all rows.
        step_index: the step n, 0 to `num_inference_steps - 1`; the last step leaves no mask.
        rounding: `"floor_masked"` rounds the number of remaining masks down; `"floor_revealed"` rounds the number of
            positions revealed so far down; `"even"` ignores the curve and reveals equally many positions in each step,
            with any remainder spread over the first steps (LLaDA's rule).

    Returns:
        Whole numbers as floats: a tensor if `initial` is a tensor, else one number.
    """
    done = step_index + 1
    if done >= num_inference_steps:
        return initial * 0
    schedule = masking_schedule if isinstance(masking_schedule, str) else tuple(masking_schedule)
    return ROUNDINGS[rounding](initial, _ratio_after(schedule, done, num_inference_steps), done, num_inference_steps)


@lru_cache(maxsize=4096)
def _ratio_after(masking_schedule: str | tuple[int, ...], done: int, num_inference_steps: int) -> float:
    t = torch.tensor(1 - done / num_inference_steps, dtype=torch.float64)
    return float(mask_ratio(masking_schedule, t))


def share_of_step(
    initial: Count, step_index: int, num_inference_steps: int, masking_schedule: MaskingSchedule, rounding: str
) -> Count:
    """How many positions the schedule alone reveals in a step, whatever was revealed before; arguments as `masks_left`.

    Returns:
        Whole numbers as floats, which may be 0: a tensor if `initial` is a tensor, else one number.
    """
    schedule = (num_inference_steps, masking_schedule, rounding)
    before = initial if step_index == 0 else masks_left(initial, step_index - 1, *schedule)
    return before - masks_left(initial, step_index, *schedule)


def reveal_counts(remaining: Tensor, target: Count) -> Tensor:
    """How many positions each row must reveal to get down to `target` masks.

    This is at least one in a row that still has masks, and 0 in a row without masks.

    Args:
        remaining: number of masks in each row now, int64 `(batch_size,)`.
        target: number of masks to leave, one per row or one for all rows, see `masks_left`.
    """
    target = target.long() if isinstance(target, Tensor) else int(target)
    return (remaining - target).clamp_(min=1).minimum(remaining)


def planned_counts(
    num_masked: Tensor,
    num_inference_steps: int,
    masking_schedule: MaskingSchedule,
    rounding: str,
    initial: Tensor | None = None,
    first_step: int = 0,
) -> Tensor:
    """The whole plan: how many positions each row reveals in each step that is run.

    Args:
        num_masked: number of masks in each row now, int64 `(batch_size,)`.
        initial: N_0, the number of masks each row has at step 0, int64 `(batch_size,)`; None if it is `num_masked`.
        first_step: the first step that is run; earlier ones are skipped, as in image-to-image.

    Returns:
        int64 `(num_inference_steps - first_step, batch_size)`; each column sums to that row's `num_masked`.

    Example:
        >>> planned_counts(torch.tensor([256]), 8, "cosine", "floor_masked").flatten().tolist()
        [5, 15, 24, 31, 39, 45, 48, 49]
    """
    initial = (num_masked if initial is None else initial).double()
    schedule = masking_schedule if isinstance(masking_schedule, str) else tuple(masking_schedule)
    steps = range(first_step + 1, num_inference_steps + 1)
    ratios = [_ratio_after(schedule, done, num_inference_steps) for done in steps]
    ratio, done = torch.tensor(ratios, dtype=torch.float64)[:, None], torch.tensor(steps)[:, None]
    target = torch.as_tensor(ROUNDINGS[rounding](initial, ratio, done, num_inference_steps)).long()
    target[-1] = 0
    # A step leaves as many masks as is planned, but one less than it finds: left_n = min(target_n, left_(n - 1) - 1),
    # until none is left. Written out, this is the smallest of what all steps up to n leave, less one for each since.
    nth = done - first_step
    left = ((target + nth).cummin(0).values.minimum(num_masked) - nth).clamp(min=0)
    return torch.cat([num_masked[None], left]).diff(dim=0).neg()
