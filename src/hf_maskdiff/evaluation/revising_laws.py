"""The exact laws of samplers that take tokens back, by enumeration; see `laws`.

A state is a tuple with tokens at known positions and `MASK` elsewhere. What the start knows is given, and stays.
`denoiser` maps a state to the model's distributions (N, V), at known positions too: there they judge what stands there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, product

import numpy as np
from numpy.typing import ArrayLike

from .exponential_race import MASK, Law, State, race_subsets
from .laws import accumulate, moments, uniform_subsets

Denoiser = Callable[[State], ArrayLike]
# (state, its marginals, which positions are given) -> law of the next state
StepLaw = Callable[[State, np.ndarray, tuple[bool, ...]], Law]


def revising_run_law(denoiser: Denoiser, step_laws: Iterable[StepLaw], start: State) -> Law:
    """The law of the state after all steps, over all paths; a step in which all is given changes nothing."""
    given = tuple(token != MASK for token in start)
    law: Law = {start: 1.0}
    for step_law in step_laws:
        following: Law = {}
        for state, chance in law.items():
            marginals = np.asarray(denoiser(state), dtype=np.float64)
            accumulate(following, step_law(state, marginals, given), chance)
        law = following
    return law


# --- each position on its own -----------------------------------------------------------------------------------------


def independent_step_law(reveal: float, remasking: float | Sequence[float]) -> StepLaw:
    """ReMDM's step: masks are revealed and revealed tokens are masked, independently.

    Args:
        reveal: the probability that a masked position is revealed.
        remasking: sigma, one for all positions or one for each.
    """

    def step_law(state: State, marginals: np.ndarray, given: tuple[bool, ...]) -> Law:
        sigma = np.broadcast_to(np.asarray(remasking, dtype=np.float64), len(state))
        options = []
        for i, token in enumerate(state):
            if token == MASK:
                options.append([(MASK, 1 - reveal), *((v, reveal * p) for v, p in enumerate(marginals[i]))])
            else:
                options.append([(token, 1.0)] if given[i] else [(token, 1 - sigma[i]), (MASK, sigma[i])])
        law: Law = {}
        for outcome in product(*options):
            accumulate(law, {tuple(token for token, _ in outcome): 1.0}, float(np.prod([p for _, p in outcome])))
        return law

    return step_law


def doubtful_run_law(denoiser: Denoiser, steps: Sequence[tuple[float, float]], start: State) -> Law:
    """ReMDM's run with the strategy "conf": sigma of a position depends on the probability it was drawn with.

    Args:
        denoiser, start: see `revising_run_law`.
        steps: of each, the probability that a mask is revealed, and sigma_max.
    """
    given = tuple(token != MASK for token in start)
    paths = {(start, (0.0,) * len(start)): 1.0}
    for reveal, largest in steps:
        following: dict[tuple[State, tuple[float, ...]], float] = {}
        for (state, drawn_with), chance in paths.items():
            marginals = np.asarray(denoiser(state), dtype=np.float64)
            revealed = [token != MASK and not kept for token, kept in zip(state, given, strict=True)]
            weights = np.where(revealed, np.exp(-np.asarray(drawn_with)), 0.0)
            sigma = largest * weights / max(weights.sum(), 1e-300)
            for after, probability in independent_step_law(reveal, sigma.tolist())(state, marginals, given).items():
                noted = tuple(
                    float(marginals[i, token]) if before == MASK and token != MASK else drawn_with[i]
                    for i, (before, token) in enumerate(zip(state, after, strict=True))
                )
                key = (after, noted)
                following[key] = following.get(key, 0.0) + chance * probability
        paths = following
    law: Law = {}
    for (state, _), chance in paths.items():
        accumulate(law, {state: 1.0}, chance)
    return law


# --- exact counts -----------------------------------------------------------------------------------------------------


def counted_step_law(masks_left: int, remasking: float) -> StepLaw:
    """A random order with exact counts: sigma times the revealed are masked again, rounded at random; then as many
    masks are revealed as leave `masks_left`, but at least one more."""

    def step_law(state: State, marginals: np.ndarray, given: tuple[bool, ...]) -> Law:
        masked = [i for i, token in enumerate(state) if token == MASK]
        revealed = [i for i, token in enumerate(state) if token != MASK and not given[i]]
        count = min(max(len(masked) - masks_left, 1), len(masked))
        mean, law = remasking * len(revealed), Law()
        for taken, chance in ((int(mean), 1 - mean % 1), (int(mean) + 1, mean % 1)):
            taken = min(taken, len(masked) - count, len(revealed))
            for back, some in uniform_subsets(len(revealed), taken).items() if taken else [((), 1.0)]:
                fresh = uniform_subsets(len(masked), count + taken) if count + taken else {(): 1.0}
                for chosen, share in fresh.items():
                    moved = _moved(state, [revealed[j] for j in back], [masked[j] for j in chosen], marginals)
                    accumulate(law, moved, chance * some * share)
        return law

    return step_law


# --- both halves together ---------------------------------------------------------------------------------------------


def planned_step_law(masks_left: int, eta: float, measure: str = "drawn", standing: bool = True) -> StepLaw:
    """Path planning: what scores highest holds a token after the step, and `masks_left` positions do not.

    Args:
        masks_left: but at least one mask fewer than before.
        eta: the factor of the scores of revealed positions.
        measure: "drawn", or "uniform" for random scores.
        standing: whether the token that stands there is scored, or one drawn anew.
    """

    def step_law(state: State, marginals: np.ndarray, given: tuple[bool, ...]) -> Law:
        masked = [i for i, token in enumerate(state) if token == MASK]
        free = [i for i, token in enumerate(state) if not given[i]]
        revealed = [i for i in free if i not in masked]
        kept = len(free) - max(min(masks_left, len(masked) - 1), 0)
        law: Law = {}
        if measure == "uniform":
            rates = [0.0 if i in masked else -np.log(eta or 1.0) for i in free]
            chances = race_subsets(np.asarray(rates), kept).items() if eta else _never(free, masked, kept)
            for best, chance in chances:
                holds = [free[j] for j in best]
                back, fresh = [i for i in revealed if i not in holds], [i for i in masked if i in holds]
                accumulate(law, _moved(state, back, fresh, marginals), chance)
            return law
        looked_at = masked if standing else free
        for drawn in product(range(marginals.shape[1]), repeat=len(looked_at)):
            tokens = dict(zip(looked_at, drawn, strict=True))
            chance = float(np.prod([marginals[i, token] for i, token in tokens.items()]))
            scores = {i: np.log(marginals[i, tokens.get(i, state[i])]) * (1 if i in masked else eta) for i in free}
            order = sorted(free, key=lambda i: -scores[i])
            if kept < len(free) and abs(scores[order[kept - 1]] - scores[order[kept]]) < 1e-6 and chance > 0:
                raise ValueError(f"`{scores}` must not tie at the cut: rounding breaks ties. Choose another model.")
            after = list(state)
            for i in free:
                token = tokens[i] if i in masked else state[i]
                after[i] = token if i in order[:kept] else MASK
            accumulate(law, {tuple(after): 1.0}, chance)
        return law

    return step_law


def moment_planned_step_law(masks_left: int, eta: float, choice_temperature: float) -> StepLaw:
    """Path planning by the moment order: masked positions compete with noise, revealed ones by what stands there.

    With beta = 1 + 1 / alpha and m_i = sum p_i^beta, a masked position's score is `(log m_i + G_i) / beta`, a revealed
    one's `eta log p_i(x_i)`. As `exp(-beta score)` these are bells that ring at rates m_i, and fixed times.

    Args:
        masks_left: as in `planned_step_law`.
        eta: above 0.
        choice_temperature: alpha of this step.
    """

    def step_law(state: State, marginals: np.ndarray, given: tuple[bool, ...]) -> Law:
        masked = [i for i, token in enumerate(state) if token == MASK]
        revealed = [i for i, token in enumerate(state) if token != MASK and not given[i]]
        kept = len(masked) + len(revealed) - max(min(masks_left, len(masked) - 1), 0)
        log_moments, tempered = moments(marginals, choice_temperature)
        rates, beta = np.exp(log_moments), 1 + 1 / choice_temperature
        with np.errstate(divide="ignore"):
            times = {i: float(np.exp(-beta * eta * np.log(marginals[i, state[i]]))) for i in revealed}
        stays = sorted(revealed, key=times.__getitem__)
        law: Law = {}
        for number in range(max(0, kept - len(masked)), min(kept, len(revealed)) + 1):
            after = times[stays[number - 1]] if number else 0.0
            before = times[stays[number]] if number < len(stays) else np.inf
            for fresh in combinations(masked, kept - number):
                others = float(rates[[i for i in masked if i not in fresh]].sum())
                chance = _rings_between(rates[list(fresh)], others, after, before)
                tokens = marginals if len(fresh) == len(masked) else tempered  # a row's last masks are drawn plainly
                accumulate(law, _moved(state, stays[number:], fresh, tokens), chance)
        return law

    return step_law


def _rings_between(rates: np.ndarray, others: float, after: float, before: float) -> float:
    """The probability that bells of these rates ring before others, of that rate together, which ring after the time
    `after`, and that the last of them rings before the time `before`."""
    # The last one rings by the time t with probability sum_U (-1)^|U| exp(-t sum of U), over all sets U of them.
    total = 0.0
    for size in range(len(rates) + 1):
        for chosen in combinations(rates.tolist(), size):
            own, sign = sum(chosen), (-1.0) ** size
            total += sign * float(np.exp(-(own + others) * after))  # by `after`, and the others not yet
            if own:
                late, early = (float(np.exp(-(own + others) * t)) for t in (before, after))
                total += sign * own / (own + others) * (late - early)
    return total


# --- editing ----------------------------------------------------------------------------------------------------------


# (position, state, marginals) -> whether the token that stands there is doubted.
Doubt = Callable[[int, State, np.ndarray], bool]


def editing_step_law(
    threshold: float, editing_threshold: float, fewest: int, to_mask: bool = False, doubt: Doubt | None = None
) -> StepLaw:
    """Threshold decoding of tokens drawn at all positions, which also replaces revealed ones that are drawn otherwise.

    Args:
        threshold, editing_threshold: of the probability of the token drawn, at masked and at revealed positions.
        fewest: how many masked positions are revealed at least, the surest first.
        to_mask: mask what would be replaced.
        doubt: instead of the editing threshold, what is masked.
    """

    def step_law(state: State, marginals: np.ndarray, given: tuple[bool, ...]) -> Law:
        masked = [i for i, token in enumerate(state) if token == MASK]
        free = [i for i in range(len(state)) if not given[i]]
        law: Law = {}
        for drawn in product(range(marginals.shape[1]), repeat=len(free)):
            sure = {i: float(marginals[i, token]) for i, token in zip(free, drawn, strict=True)}
            tokens, after = dict(zip(free, drawn, strict=True)), list(state)
            order = sorted(masked, key=lambda i: -sure[i])
            count = min(max(sum(sure[i] > threshold for i in masked), fewest), len(masked))
            if 0 < count < len(order) and abs(sure[order[count - 1]] - sure[order[count]]) < 1e-7:
                raise ValueError(f"`{sure}` must not tie at the cut: rounding breaks ties. Choose another model.")
            for i in free:
                if i in order[:count]:
                    after[i] = tokens[i]
                elif i not in masked and doubt is None and tokens[i] != state[i] and sure[i] > editing_threshold:
                    after[i] = MASK if to_mask else tokens[i]
                elif i not in masked and doubt is not None and doubt(i, state, marginals):
                    after[i] = MASK
            accumulate(law, {tuple(after): 1.0}, float(np.prod(list(sure.values()))))
        return law

    return step_law


def changing_run_law(
    denoiser: Denoiser,
    threshold: float,
    most_change: float,
    fewest: Sequence[int],
    start: State,
    since_drawn: bool = False,
) -> Law:
    """As `editing_step_law`, a step for each of `fewest`, where a token is masked if its probability is not what it was
    in the pass before; the last step masks none. `since_drawn` compares with the pass that it was drawn from."""
    given = tuple(token != MASK for token in start)
    paths = {(start, (0.0,) * len(start)): 1.0}
    for n, number in enumerate(fewest):
        most = most_change if n + 1 < len(fewest) else np.inf
        following: dict[tuple[State, tuple[float, ...]], float] = {}
        for (state, before), chance in paths.items():
            marginals = np.asarray(denoiser(state), dtype=np.float64)
            step_law = editing_step_law(threshold, 0, number, doubt=_changed_since(before, most))
            for after, probability in step_law(state, marginals, given).items():
                seen = tuple(
                    before[i]
                    if since_drawn and state[i] != MASK
                    else float(marginals[i, token])
                    if token != MASK
                    else 0.0
                    for i, token in enumerate(after)
                )
                following[after, seen] = following.get((after, seen), 0.0) + chance * probability
        paths = following
    law: Law = {}
    for (state, _), chance in paths.items():
        accumulate(law, {state: 1.0}, chance)
    return law


def _changed_since(before: tuple[float, ...], most_change: float) -> Doubt:
    return lambda i, state, marginals: abs(float(marginals[i, state[i]]) - before[i]) > most_change


# --- the mean of a token's life ---------------------------------------------------------------------------------------


def corrected_run_law(denoiser: Denoiser, steps: Sequence[tuple[int, int]], start: State) -> Law:
    """FreeCorrection's run in a random order: the lowest means of the standing tokens' probabilities are taken back.

    Args:
        denoiser, start: see `revising_run_law`.
        steps: of each, how many masks it leaves, and how many positions it takes back where possible.
    """
    given = tuple(token != MASK for token in start)
    paths = {(start, ((0.0, 0),) * len(start)): 1.0}
    for masks_left, budget in steps:
        following: dict[tuple[State, tuple[tuple[float, int], ...]], float] = {}
        for (state, lives), chance in paths.items():
            marginals = np.asarray(denoiser(state), dtype=np.float64)
            masked = [i for i, token in enumerate(state) if token == MASK]
            revealed = [i for i, token in enumerate(state) if token != MASK and not given[i]]
            seen = tuple(
                (life[0] + float(marginals[i, state[i]]), life[1] + 1) if i in revealed else (0.0, 0)
                for i, life in enumerate(lives)
            )
            count = min(max(len(masked) - masks_left, 1), len(masked))
            taken = min(budget, len(masked) - count, len(revealed))
            back = sorted(revealed, key=lambda i: seen[i][0] / seen[i][1])[:taken]
            fresh = uniform_subsets(len(masked), count + taken) if count + taken else {(): 1.0}
            for chosen, share in fresh.items():
                for after, probability in _moved(state, back, [masked[j] for j in chosen], marginals).items():
                    key = (after, seen)
                    following[key] = following.get(key, 0.0) + chance * share * probability
        paths = following
    law: Law = {}
    for (state, _), chance in paths.items():
        accumulate(law, {state: 1.0}, chance)
    return law


def _never(free: list[int], masked: list[int], kept: int) -> list[tuple[tuple[int, ...], float]]:
    """All ways to keep what is revealed and add masked positions, equally likely."""
    old = tuple(j for j, i in enumerate(free) if i not in masked)
    new = [j for j, i in enumerate(free) if i in masked]
    ways = list(combinations(new, kept - len(old)))
    return [((*old, *way), 1 / len(ways)) for way in ways]


def _moved(state: State, back: Sequence[int], fresh: Sequence[int], marginals: np.ndarray) -> Law:
    """Some positions masked again, and tokens drawn at others."""
    law: Law = {}
    for tokens in product(range(marginals.shape[1]), repeat=len(fresh)):
        after, chance = list(state), 1.0
        for i in back:
            after[i] = MASK
        for i, token in zip(fresh, tokens, strict=True):
            after[i], chance = token, chance * float(marginals[i, token])
        accumulate(law, {tuple(after): 1.0}, chance)
    return law
