"""The exact laws of samplers that decide from the logits what is sure enough, by enumeration; see `laws`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations, product

import numpy as np
from numpy.typing import ArrayLike

from .exponential_race import MASK, Law, State, Subsets, check_count
from .laws import accumulate, check_marginals, choose_then_sample_law, log_confidence


def threshold_round_law(
    marginals: ArrayLike,
    threshold: float | None,
    measure: str = "confidence",
    factor: float | None = None,
    fewest: int = 1,
) -> Law:
    """Reveal every position surer than a threshold, and at least the `fewest` surest ones; tokens from `p_i`.

    Args:
        marginals: (N, V).
        threshold: of the measure: a probability, or an entropy in nats that those revealed are below. None with a
            `factor`.
        measure: as in `confidence_round_law`, or "drawn", the probability of the token that is drawn: then positions
            are chosen after their tokens.
        factor: f: instead of a threshold, the r surest for the largest r with `(r + 1) (1 - c_(r)) < f`.
        fewest: at least 1.
    """
    marginals = check_marginals(marginals)
    check_count(fewest, len(marginals))
    if measure == "drawn":
        law: Law = {}
        for tokens in product(range(marginals.shape[1]), repeat=len(marginals)):
            drawn = marginals[np.arange(len(marginals)), list(tokens)]
            kept = (
                set(_surest(np.log(np.maximum(drawn, 1e-300)), threshold, measure, factor, fewest))
                if drawn.all()
                else set()
            )
            outcome = tuple(token if i in kept else MASK for i, token in enumerate(tokens))
            accumulate(law, {outcome: 1.0}, float(drawn.prod()))
        return law
    chosen = _surest(log_confidence(marginals, measure), threshold, measure, factor, fewest)
    return choose_then_sample_law({chosen: 1.0}, marginals)


def apart_subsets(log_weights: ArrayLike, k: int, min_distance: int, places: Sequence[int] | None = None) -> Subsets:
    """The law of the k positions of a sequence that a race with these weights reveals at a distance.

    `places` says where in the sequence each of the positions is, if they are not all of it.

    Going down the order in which the bells ring, a position is passed over if it is nearer than `min_distance` to one
    that was taken; where no others are left, those passed over are taken in the same order. By enumeration of orders.
    """
    weights = np.exp(np.asarray(log_weights, dtype=np.float64) - np.max(log_weights))
    check_count(k, len(weights))
    places = range(len(weights)) if places is None else places
    subsets: dict[tuple[int, ...], float] = {}
    for order in permutations(range(len(weights))):
        left, chance = float(weights.sum()), 1.0
        taken: list[int] = []
        for position in order:
            chance *= weights[position] / left
            left = max(left - weights[position], 1e-300)
            if all(abs(places[position] - places[other]) >= min_distance for other in taken):
                taken.append(position)
        chosen = (taken + [position for position in order if position not in taken])[:k]
        key = tuple(sorted(chosen))
        subsets[key] = subsets.get(key, 0.0) + chance
    return subsets


def _surest(
    log_measures: np.ndarray, threshold: float | None, measure: str, factor: float | None, fewest: int
) -> tuple[int, ...]:
    """The positions that a threshold or a factor admits, at least the first `fewest`, the surest first."""
    order = np.argsort(-log_measures, kind="stable")
    ordered = log_measures[order]
    if factor is not None:
        slack = [factor - (r + 1) * (1 - np.exp(log_c)) for r, log_c in enumerate(ordered, start=1)]
    elif threshold is not None:
        slack = list(ordered - (-threshold if measure == "entropy" else np.log(max(threshold, 1e-300))))
    else:
        raise ValueError("`threshold` must be a number where there is no `factor`, got None. Pass one of them.")
    k = max([fewest, *(r for r, room in enumerate(slack, start=1) if room > 0)])
    tie = k < len(order) and np.isclose(ordered[k - 1], ordered[k], rtol=0, atol=1e-6) and k == fewest
    if tie or np.isclose(slack, 0, rtol=0, atol=1e-6).any():
        raise ValueError(
            f"The {measure} of the positions must be clear of the threshold, and of each other at the cut, got "
            f"{np.exp(ordered)}. Rounding breaks ties: choose other marginals."
        )
    return tuple(order[:k].tolist())


def klass_run_law(
    denoiser: Callable[[State], ArrayLike],
    shares: Sequence[int],
    confidence_threshold: float,
    kl_threshold: float,
    history_length: int,
    start: State,
) -> Law:
    """The law of the sequence after a whole run of KLASS, over all paths: what is revealed depends on earlier passes.

    Args:
        denoiser: maps a state to marginals of shape (N, V); rows of known positions are ignored.
        shares: how many positions the schedule has for each step; the last step reveals all that are left.
        confidence_threshold: tau; what is ready has `max p` above it.
        kl_threshold: kappa, in nats; what is ready has diverged from the marginal of the pass before by less.
        history_length: H; in as many passes in a row.
        start: the first state; `(MASK,) * N` if all positions are masked.
    """
    # A path is a state, with the marginals of its last pass and for how long each position has been stable.
    paths: list[tuple[State, float, np.ndarray | None, np.ndarray]] = [(start, 1.0, None, np.zeros(len(start)))]
    for step, share in enumerate(shares):
        following = []
        for state, chance, last, stable in paths:
            masked = [i for i, token in enumerate(state) if token == MASK]
            if not masked:
                following.append((state, chance, last, stable))
                continue
            marginals = np.asarray(denoiser(state), dtype=np.float64)
            now = np.zeros(len(state))
            if last is not None:
                divergence = (marginals * np.log(marginals / last)).sum(1)
                if kl_threshold:
                    _require_clear(divergence[masked], kl_threshold)
                now = np.where(divergence < kl_threshold, stable + 1, 0)
            order = sorted(masked, key=lambda i: -marginals[i].max())
            _require_clear(marginals[masked].max(1), confidence_threshold)
            sure = [i for i in order if now[i] >= history_length and marginals[i].max() > confidence_threshold]
            chosen = order if step == len(shares) - 1 else sure or order[:share]
            for tokens in product(range(marginals.shape[1]), repeat=len(chosen)):
                after, probability = list(state), chance
                for position, token in zip(chosen, tokens, strict=True):
                    after[position] = token
                    probability *= marginals[position, token]
                following.append((tuple(after), probability, marginals, now))
        paths = following
    law: Law = {}
    for state, chance, _, _ in paths:
        accumulate(law, {state: 1.0}, chance)
    return law


def _require_clear(values: np.ndarray, threshold: float) -> None:
    if np.isclose(values, threshold, rtol=0, atol=1e-5).any():
        raise ValueError(f"`{values}` must be clear of the threshold {threshold}: rounding breaks ties. Take another.")
