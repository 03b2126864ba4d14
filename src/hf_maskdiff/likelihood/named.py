"""Estimators by the names that command lines use."""

from __future__ import annotations

from collections.abc import Callable

from hf_maskdiff.likelihood.estimators import (
    AllMasks,
    Antithetic,
    Chain,
    Estimator,
    Independent,
    LLaDACounts,
    Nelbo,
    PseudoLikelihood,
    RandomOrders,
    Sobol,
    Stratified,
)

_IN_GROUPS: dict[str, Callable[[int], Estimator]] = {
    "sobol": Sobol,
    "stratified": Stratified,
    "antithetic": Antithetic,
    "llada": LLaDACounts,
    "nelbo": Nelbo,
}
_OTHERS: dict[str, Callable[[], Estimator]] = {
    "independent": Independent,
    "all_masks": AllMasks,
    "random_orders": RandomOrders,
    "left_to_right": Chain,
    "pseudo": PseudoLikelihood,
}
NAMES = (*_IN_GROUPS, *_OTHERS)


def estimator_of(name: str, group_size: int | None = None) -> Estimator:
    """The estimator of a name.

    Args:
        name: one of `NAMES`.
        group_size: samples that are drawn together; None for 16.

    Raises:
        ValueError: another name, or a group size for an estimator without groups.
    """
    if name in _IN_GROUPS:
        return _IN_GROUPS[name](16 if group_size is None else group_size)
    if name not in _OTHERS:
        raise ValueError(f"`estimator` must be one of {', '.join(NAMES)}, got {name!r}. Leave it out for sobol.")
    if group_size is not None:
        raise ValueError(
            f"`group_size` must be left out for the estimator {name!r}, which draws no groups, got {group_size}. Leave "
            f"it out, or take one of {', '.join(_IN_GROUPS)}."
        )
    return _OTHERS[name]()
