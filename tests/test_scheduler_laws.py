"""Every scheduler, black box through `step`, against the exact law of what it claims to sample.

One round: k = 2 of N = 4 positions, V = 3 tokens, peaked marginals, so 54 outcomes for a scheduler with a random order.
Each test computes, from the exact laws of its mutants (token temperature 5 % off, Gumbel scale 5 % off, alpha applied
twice, ...), how many rounds reject every one of them with power 0.999 at a false-alarm rate of 1e-6, runs that many
(between 20,000 and 900,000), and then also runs the mutants, each as often as it takes, and demands that they are
rejected. Seeds are fixed, so a pass stays a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from chi_square import (
    FALSE_ALARM,
    POWER,
    ChiSquare,
    count_outcomes,
    draw,
    goodness_of_fit,
    noncentrality,
    pooled_cells,
    power,
    rounds_for_power,
)
from scipy.stats import binom, binomtest, kstest

from hf_maskdiff import (
    ConfidenceScheduler,
    EntropyBoundedScheduler,
    HaltonScheduler,
    HybridScheduler,
    KLASSScheduler,
    MaskedDiffusionScheduler,
    MaskGITScheduler,
    MomentScheduler,
    ThresholdScheduler,
    UniformScheduler,
)
from hf_maskdiff.evaluation import laws
from hf_maskdiff.evaluation.adaptive_laws import apart_subsets, klass_run_law, threshold_round_law
from hf_maskdiff.evaluation.laws import Law

N, V, K = 4, 3, 2
MASK_ID = V
PEAKED = np.array([[0.90, 0.08, 0.02], [0.60, 0.30, 0.10], [0.40, 0.35, 0.25], [0.25, 0.70, 0.05]])
# A model's logits are normalised nowhere, so neither are these.
OFFSETS = np.array([[3.0], [-2.0], [0.0], [1.0]])
FEWEST, MOST = 20_000, 1_000_000
CHUNK = 200_000


def temper(marginals: np.ndarray, temperature: float) -> np.ndarray:
    powers = marginals ** (1 / temperature)
    return powers / powers.sum(1, keepdims=True)


def logits_of(marginals: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.log(marginals) + OFFSETS[: len(marginals)]).float()


def one_round(scheduler: MaskedDiffusionScheduler, rounds: int, grid: tuple[int, ...] = (N,), seed: int = 0) -> Mapping:
    """Counts of the outcomes of the first of two steps, started from nothing."""
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(2)
    logits, parts = logits_of(PEAKED), []
    for start in range(0, rounds, CHUNK):
        rows = min(CHUNK, rounds - start)
        sample = torch.full((rows, *grid), MASK_ID)
        step = scheduler.step(logits.expand(rows, N, V), scheduler.timesteps[0], sample, generator=generator)
        assert step.prev_sample.shape == sample.shape
        parts.append(step.prev_sample.flatten(1))
    return count_outcomes(torch.cat(parts).numpy(), MASK_ID)


def shared_config(**config) -> dict:
    return {"mask_token_id": MASK_ID, "codebook_size": V, "masking_schedule": [K, N]} | config


def tempered_config(alpha: float, **config) -> dict:
    return shared_config(choice_temperature=alpha, choice_temperature_schedule="constant", **config)


# --- the cases --------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """A scheduler, its law, the laws of its mutants and, where a mutant was built, its implementation."""

    scheduler: MaskedDiffusionScheduler
    law: Law
    mutant_laws: dict[str, Law]
    mutants: dict[str, MaskedDiffusionScheduler] = field(default_factory=dict)
    grid: tuple[int, ...] = (N,)


class WrongTokens(MomentScheduler):
    """Token temperature 5 % too high."""

    def token_beta(self, context, num_ranks):
        return super().token_beta(context, num_ranks) / 1.05


class WrongGumbel(MomentScheduler):
    """Gumbel scale 5 % too large: the scores' weight 5 % too small."""

    scale = 1.05

    def score_positions(self, marginals, context):
        # Nothing but differences of scores counts, and the noise is what two calls with other logits have in common.
        silent = type(marginals)(torch.zeros_like(marginals.logits[..., :1]), mask_token_id=MASK_ID)
        noise = super().score_positions(silent, context)
        return super().score_positions(marginals, context) + (self.scale - 1) * noise


class AlphaTwice(WrongGumbel):
    """Alpha scales the Gumbel noise although it is in beta already."""

    @property
    def scale(self):
        return self.config.choice_temperature


def maskgit(alpha: float) -> Case:
    log_p = np.log(PEAKED)
    return Case(
        MaskGITScheduler(**tempered_config(alpha)),
        laws.maskgit_round_law(PEAKED, K, alpha),
        {
            "model temperature 5 % off": laws.maskgit_round_law(temper(PEAKED, 1.05), K, alpha),
            "token temperature 5 % off": laws.sample_then_choose_law(temper(PEAKED, 1.05), log_p / alpha, K),
            "Gumbel scale 5 % off": laws.maskgit_round_law(PEAKED, K, 1.05 * alpha),
            "alpha twice": laws.maskgit_round_law(PEAKED, K, alpha**2),
        },
        # The settings of the scheduler itself are its mutants' implementations.
        {
            "model temperature 5 % off": MaskGITScheduler(**tempered_config(alpha, temperature=1.05)),
            "Gumbel scale 5 % off": MaskGITScheduler(**tempered_config(1.05 * alpha)),
            "alpha twice": MaskGITScheduler(**tempered_config(alpha**2)),
        },
    )


def moment(alpha: float) -> Case:
    log_moments, tokens = laws.moments(PEAKED, alpha)
    subsets = laws.race_subsets(log_moments, K)
    return Case(
        MomentScheduler(**tempered_config(alpha)),
        laws.moment_round_law(PEAKED, K, alpha),
        {
            "token temperature 5 % off": laws.choose_then_sample_law(subsets, temper(tokens, 1.05)),
            "Gumbel scale 5 % off": laws.choose_then_sample_law(laws.race_subsets(log_moments / 1.05, K), tokens),
            "alpha twice": laws.choose_then_sample_law(laws.race_subsets(log_moments / alpha, K), tokens),
            "MaskGIT": laws.maskgit_round_law(PEAKED, K, alpha),
        },
        {
            "token temperature 5 % off": WrongTokens(**tempered_config(alpha)),
            "Gumbel scale 5 % off": WrongGumbel(**tempered_config(alpha)),
            "alpha twice": AlphaTwice(**tempered_config(alpha)),
            "MaskGIT": MaskGITScheduler(**tempered_config(alpha)),
        },
    )


def apart(distance: int, alpha: float = 0.5) -> Case:
    """The moment sampler at a distance of 2, which always leaves enough, or of 3, which after position 1 or 2 does not.

    The order of a Gumbel race is that of a race without replacement, so what is passed over does not change the rest.
    """
    log_moments, tokens = laws.moments(PEAKED, alpha)

    def law(distance: int, scale: float = 1.0) -> Law:
        return laws.choose_then_sample_law(apart_subsets(log_moments / scale, K, distance), tokens)

    def scheduler(**config) -> MomentScheduler:
        return MomentScheduler(**tempered_config(alpha, **({"min_distance": distance} | config)))

    other = 5 - distance
    return Case(
        scheduler(),
        law(distance),
        {
            "no distance": law(1),
            "another distance": law(other),
            "Gumbel scale 5 % off": law(distance, 1.05),
            "the surest": laws.choose_then_sample_law({(0, 3): 1.0}, tokens),
            "token temperature 5 % off": laws.choose_then_sample_law(
                apart_subsets(log_moments, K, distance), temper(tokens, 1.05)
            ),
        },
        {
            "no distance": scheduler(min_distance=1),
            "another distance": scheduler(min_distance=other),
            "Gumbel scale 5 % off": WrongGumbel(**tempered_config(alpha, min_distance=distance)),
            "token temperature 5 % off": WrongTokens(**tempered_config(alpha, min_distance=distance)),
        },
    )


def uniform(alpha: float | None) -> Case:
    wrong = temper(PEAKED, 1.05)
    leaning = laws.race_subsets(0.05 * np.log(PEAKED.max(1)), K)
    tokens = PEAKED if alpha is None else laws.moments(PEAKED, alpha)[1]
    return Case(
        UniformScheduler(**tempered_config(alpha)),
        laws.uniform_round_law(PEAKED, K, alpha),
        {
            "token temperature 5 % off": laws.uniform_round_law(wrong, K, alpha),
            "positions lean by confidence^0.05": laws.choose_then_sample_law(leaning, tokens),
        },
        {"token temperature 5 % off": UniformScheduler(**tempered_config(alpha, temperature=1.05))},
    )


def halton(alpha: float | None, grid: tuple[int, ...]) -> Case:
    # Bit-reversed: 0, 1/2, 1/4, 3/4. On the grid the points (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9), (5/8, 7/9)
    # fall into the cells (1, 0), (0, 1), (1, 0) again, (0, 0), (1, 1).
    order = [0, 2, 1, 3] if grid == (N,) else [2, 1, 0, 3]
    other = [2, 1, 0, 3] if grid == (N,) else [0, 2, 1, 3]
    return Case(
        HaltonScheduler(**tempered_config(alpha)),
        laws.ordered_round_law(PEAKED, K, order, alpha),
        {
            "token temperature 5 % off": laws.ordered_round_law(temper(PEAKED, 1.05), K, order, alpha),
            "another order": laws.ordered_round_law(PEAKED, K, other, alpha),
        },
        {"token temperature 5 % off": HaltonScheduler(**tempered_config(alpha, temperature=1.05))},
        grid,
    )


def confidence(measure: str, alpha: float | None) -> Case:
    def scheduler(alpha: float | None, **config) -> ConfidenceScheduler:
        return ConfidenceScheduler(**tempered_config(alpha, measure=measure, **config))

    log_measures = laws.log_confidence(PEAKED, measure)
    case = Case(
        scheduler(alpha),
        laws.confidence_round_law(PEAKED, K, measure, alpha),
        {"model temperature 5 % off": laws.confidence_round_law(temper(PEAKED, 1.05), K, measure, alpha)},
        {"model temperature 5 % off": scheduler(alpha, temperature=1.05)},
    )
    if alpha is not None:
        right = laws.race_subsets(log_measures / alpha, K)
        case.mutant_laws |= {
            "token temperature 5 % off": laws.choose_then_sample_law(right, temper(PEAKED, 1.05)),
            "tokens as in moment": laws.choose_then_sample_law(right, laws.moments(PEAKED, alpha)[1]),
            "Gumbel scale 5 % off": laws.confidence_round_law(PEAKED, K, measure, 1.05 * alpha),
            "alpha twice": laws.confidence_round_law(PEAKED, K, measure, alpha**2),
        }
        case.mutants |= {
            "Gumbel scale 5 % off": scheduler(1.05 * alpha),
            "alpha twice": scheduler(alpha**2),
        }
    return case


def calibrated() -> Case:
    """A prior and a decay: the weights `(min(l, -p log f) exp(-d i))^(1 / alpha)`; the limit matters at position 0."""
    alpha, decay, limit, prior = 0.5, 0.2, 1.0, np.array([0.2, 0.7, 0.1])

    def law(decay: float = decay, limit: float = limit, prior: np.ndarray | None = prior, off: float = 1.0) -> Law:
        marginals, largest = temper(PEAKED, off), temper(PEAKED, off).max(1)
        surprisal = 1.0 if prior is None else -np.log(prior[marginals.argmax(1)] + 1e-9)
        log_weights = np.log(np.minimum(limit, largest * surprisal)) - decay * np.arange(N)
        return laws.choose_then_sample_law(laws.race_subsets(log_weights / alpha, K), marginals)

    def scheduler(**config) -> ConfidenceScheduler:
        own = {"token_prior": prior, "position_decay": decay, "prior_limit": limit}
        return ConfidenceScheduler(**tempered_config(alpha, **(own | config)))

    return Case(
        scheduler(),
        law(),
        {
            "no prior": law(prior=None),
            "no decay": law(decay=0),
            "no limit": law(limit=10.0),
            "decay twice": law(decay=2 * decay),
            "model temperature 5 % off": law(off=1.05),
        },
        {
            "no prior": scheduler(token_prior=None),
            "no decay": scheduler(position_decay=0),
            "no limit": scheduler(prior_limit=10.0),
            "decay twice": scheduler(position_decay=2 * decay),
            "model temperature 5 % off": scheduler(temperature=1.05),
        },
    )


class WithTheLargest(EntropyBoundedScheduler):
    """The last position's own entropy counts too."""

    def count_positions(self, scores, context):
        return (scores.neg().cumsum(-1) <= self.config.entropy_bound).sum(-1)


class Descending(EntropyBoundedScheduler):
    """The least certain positions first."""

    def score_positions(self, marginals, context):
        return -super().score_positions(marginals, context)

    def count_positions(self, scores, context):
        return super().count_positions(-scores, context)


def entropy_bounded(bound: float) -> Case:
    def first(count: int, order: list[int]) -> Law:
        return laws.ordered_round_law(PEAKED, count, order)

    def scheduler(bound: float = bound, **config) -> EntropyBoundedScheduler:
        return EntropyBoundedScheduler(**shared_config(entropy_bound=bound, **config))

    # Entropies 0.38, 0.90, 1.08, 0.75: by their order 0, 3, 1, 2 the sums before the last are 0, 0.38, 1.12 and 2.02.
    order, (count, wrong) = [0, 3, 1, 2], {1.0: (2, 1.2), 1.3: (3, 1.04)}[bound]
    law = laws.entropy_bounded_round_law(PEAKED, bound)
    assert law == first(count, order)
    tempered = laws.ordered_round_law(temper(PEAKED, 1.05), count, order)
    largest = WithTheLargest(**shared_config(entropy_bound=bound))
    return Case(
        scheduler(),
        law,
        {
            "bound 20 % off": laws.entropy_bounded_round_law(PEAKED, wrong),
            "the largest entropy counts too": first(count - 1, order),
            "descending entropy": first({1.0: 1, 1.3: 2}[bound], order[::-1]),
            "at least what the schedule plans, one more": first(count + 1, order),
            "token temperature 5 % off": tempered,
        },
        {
            "bound 20 % off": scheduler(wrong),
            "the largest entropy counts too": largest,
            "descending entropy": Descending(**shared_config(entropy_bound=bound)),
            "at least what the schedule plans, one more": scheduler(
                follow_schedule=True, masking_schedule=[count + 1, N + 1]
            ),
        },
    )


def entropy_on_schedule() -> Case:
    """A bound for one position, a schedule of two."""
    tight = shared_config(entropy_bound=0.1)
    return Case(
        EntropyBoundedScheduler(**tight, follow_schedule=True),
        laws.confidence_round_law(PEAKED, K, "entropy"),
        {"the bound alone": laws.entropy_bounded_round_law(PEAKED, 0.1)},
        {"the bound alone": EntropyBoundedScheduler(**tight)},
    )


class Unsure(ThresholdScheduler):
    """The first position that is not sure is revealed too."""

    def count_positions(self, scores, context):
        return (super().count_positions(scores, context) + 1).minimum(context.remaining)


def threshold(others: dict[str, dict[str, Any]], **config: Any) -> Case:
    """`others` are settings with other laws. Confidences .9, .6, .4, .7; margins .82, .3, .05, .45."""

    def law(marginals: np.ndarray = PEAKED, **settings: Any) -> Law:
        settings = {"threshold": 0.9} | config | settings
        fewest = max(settings.pop("min_count", 1), K if settings.pop("follow_schedule", False) else 1)
        return threshold_round_law(marginals, **settings, fewest=fewest)

    def scheduler(**settings: Any) -> ThresholdScheduler:
        return ThresholdScheduler(**shared_config(**config | settings))

    chosen = {tuple(np.flatnonzero(np.array(outcome) >= 0)) for outcome in law()}
    case = Case(
        scheduler(),
        law(),
        {"model temperature 5 % off": law(temper(PEAKED, 1.05))}
        | {name: law(**other) for name, other in others.items()},
        {"model temperature 5 % off": scheduler(temperature=1.05)}
        | {name: scheduler(**other) for name, other in others.items()},
    )
    if len(chosen) == 1:
        order = [0, 3, 1, 2]
        case.mutant_laws["one more"] = laws.ordered_round_law(PEAKED, len(*chosen) + 1, order)
        case.mutants["one more"] = Unsure(**shared_config(**config))
    return case


def hybrid(exploration: str, alpha: float, plain: bool, grid: tuple[int, ...] = (N,)) -> Case:
    # A ratio of 0.5 explores one position of two.
    explored = {"uniform": laws.uniform_subsets(N, 1), "halton": {(0 if grid == (N,) else 2,): 1.0}}[exploration]

    def scheduler(alpha: float = alpha, **config) -> HybridScheduler:
        defaults = {"exploration": exploration, "exploration_ratio": 0.5, "plain_exploration": plain}
        return HybridScheduler(**tempered_config(alpha, **(defaults | config)))

    def mutated(scale: float = 1.0, off: float = 1.0) -> Law:
        log_moments, tempered = laws.moments(PEAKED, alpha)
        mutant: Law = {}
        for (first,), chance in explored.items():
            tokens = tempered.copy()
            if plain:
                tokens[first] = PEAKED[first]
            rest = [i for i in range(N) if i != first]
            exploited = laws.race_subsets(log_moments[rest] / scale, K - 1)
            subsets = {(first, rest[i]): chance * c for (i,), c in exploited.items()}
            for state, probability in laws.choose_then_sample_law(subsets, temper(tokens, off)).items():
                mutant[state] = mutant.get(state, 0.0) + probability
        return mutant

    return Case(
        scheduler(),
        laws.hybrid_round_law(PEAKED, K, explored, alpha, plain),
        {
            "token temperature 5 % off": mutated(off=1.05),
            "Gumbel scale 5 % off": mutated(scale=1.05),
            "alpha twice": mutated(scale=alpha),
            "the other tokens explored": laws.hybrid_round_law(PEAKED, K, explored, alpha, not plain),
            "exploitation only": laws.moment_round_law(PEAKED, K, alpha),
        },
        {
            "the other tokens explored": scheduler(plain_exploration=not plain),
            "exploitation only": scheduler(exploration_ratio=0.0),
        },
        grid,
    )


CASES: dict[str, Callable[[], Case]] = {
    "maskgit, alpha 0.5": lambda: maskgit(0.5),
    "maskgit, alpha 1.5": lambda: maskgit(1.5),
    "moment, alpha 0.5": lambda: moment(0.5),
    "moment, alpha 1.5": lambda: moment(1.5),
    "moment, 2 apart": lambda: apart(2),
    "moment, 3 apart": lambda: apart(3),
    "uniform, plain": lambda: uniform(None),
    "uniform, alpha 1.5": lambda: uniform(1.5),
    "halton, sequence, plain": lambda: halton(None, (N,)),
    "halton, sequence, alpha 1.5": lambda: halton(1.5, (N,)),
    "halton, grid, plain": lambda: halton(None, (2, 2)),
    "confidence": lambda: confidence("confidence", None),
    "margin": lambda: confidence("margin", None),
    "entropy": lambda: confidence("entropy", None),
    "confidence, alpha 0.5": lambda: confidence("confidence", 0.5),
    "margin, alpha 0.5": lambda: confidence("margin", 0.5),
    "entropy, alpha 0.5": lambda: confidence("entropy", 0.5),
    "confidence, calibrated": calibrated,
    "entropy-bounded, 1 nat": lambda: entropy_bounded(1.0),
    "entropy-bounded, 1.3 nats": lambda: entropy_bounded(1.3),
    "entropy-bounded, on schedule": entropy_on_schedule,
    "threshold": lambda: threshold(
        {"threshold 30 % off": {"threshold": 0.65}, "of the margin": {"measure": "margin"}}, threshold=0.5
    ),
    "threshold, two at least": lambda: threshold({"one at least": {"min_count": 1}}, threshold=0.95, min_count=2),
    "threshold, on schedule": lambda: threshold(
        {"the threshold alone": {"follow_schedule": False}}, threshold=0.95, follow_schedule=True
    ),
    "threshold, margin": lambda: threshold(
        {"of the confidence": {"measure": "confidence"}}, threshold=0.42, measure="margin"
    ),
    "threshold, entropy": lambda: threshold(
        {"threshold 20 % off": {"threshold": 0.96}}, threshold=0.8, measure="entropy"
    ),
    "threshold, factor": lambda: threshold({"factor 30 % off": {"factor": 0.89}}, threshold=None, factor=1.3),
    "threshold, drawn": lambda: threshold(
        {"of the confidence": {"measure": "confidence"}, "threshold too low": {"threshold": 0.09}},
        threshold=0.2,
        measure="drawn",
    ),
    "hybrid, uniform": lambda: hybrid("uniform", 0.5, plain=False),
    "hybrid, uniform, plain exploration": lambda: hybrid("uniform", 0.5, plain=True),
    "hybrid, halton on a grid": lambda: hybrid("halton", 0.5, plain=False, grid=(2, 2)),
}


# Those whose mutants take most rounds; what they add are further settings of a scheduler.
COSTLY = {"maskgit, alpha 1.5", "moment, alpha 1.5", "hybrid, uniform, plain exploration", "hybrid, halton on a grid"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.exhaustive if name in COSTLY else ()) for name in CASES]
)
def test_one_round_has_its_law_and_its_mutants_have_not(name: str) -> None:
    case = CASES[name]()
    needed = {name: max(FEWEST, rounds_for_power(case.law, law)) for name, law in case.mutant_laws.items()}
    rounds = max(needed.values())
    assert rounds <= MOST
    assert set(case.mutants) <= set(case.mutant_laws)

    fit = goodness_of_fit(one_round(case.scheduler, rounds, case.grid), case.law)
    assert fit.p_value > FALSE_ALARM, fit

    rng = np.random.default_rng(0)
    for mutant, law in case.mutant_laws.items():
        assert power(case.law, law, rounds) >= POWER, mutant
        assert power(case.law, law, needed[mutant]) >= POWER, mutant
        if mutant in case.mutants:
            counts = one_round(case.mutants[mutant], needed[mutant], case.grid)
            # The implementation of the mutant is the mutant whose power was computed.
            assert goodness_of_fit(counts, law).p_value > FALSE_ALARM, mutant
        else:
            counts = draw(law, needed[mutant], rng)
        assert goodness_of_fit(counts, case.law).p_value < FALSE_ALARM, mutant


# --- rows with known tokens, rows of different kinds in one batch -----------------------------------------------------


@pytest.mark.parametrize("name", ["maskgit", "moment", "uniform"])
def test_each_row_of_a_mixed_batch_has_its_own_law(name: str) -> None:
    """Rows of 4 masked positions alternate with rows of 3, which reveal 1 and keep a known token in their midst."""
    alpha, rounds = 0.5, 100_000
    scheduler = {"maskgit": MaskGITScheduler, "moment": MomentScheduler, "uniform": UniformScheduler}[name](
        **tempered_config(alpha) | {"masking_schedule": "linear", "rounding": "floor_revealed"}
    )
    law = {"maskgit": laws.maskgit_round_law, "moment": laws.moment_round_law, "uniform": laws.uniform_round_law}[name]
    scheduler.set_timesteps(2)
    sample = torch.full((2 * rounds, N), MASK_ID)
    sample[1::2, 1] = 2
    ratio = torch.tensor([1.0, 0.75]).repeat(rounds)
    result = scheduler.step(
        logits_of(PEAKED).expand(2 * rounds, N, V),
        scheduler.timesteps[0],
        sample,
        starting_mask_ratio=ratio,
        generator=torch.Generator().manual_seed(1),
    ).prev_sample
    full, partial = result[0::2].numpy(), result[1::2].numpy()
    assert goodness_of_fit(count_outcomes(full, MASK_ID), law(PEAKED, 2, alpha)).p_value > FALSE_ALARM
    assert (partial[:, 1] == 2).all()
    counts = count_outcomes(np.delete(partial, 1, axis=1), MASK_ID)
    partial_law = law(np.delete(PEAKED, 1, axis=0), 1, alpha)
    assert goodness_of_fit(counts, partial_law).p_value > FALSE_ALARM
    # Blind to the known token, the second kind of row would have another law.
    assert power(partial_law, law(PEAKED[1:], 1, alpha), rounds) >= POWER


# --- whole generations ------------------------------------------------------------------------------------------------

# Marginals of each position given its left neighbour's token (the mask is the last), so that the order matters.
LEANING = np.stack([[np.roll(PEAKED[i], left) for left in range(V)] + [PEAKED[(i + 1) % N]] for i in range(N)])
COUNTS = [1, 1, 2]
ALPHA = 1.5
GENERATORS = ["maskgit", "moment", "uniform", "uniform, alpha", "halton", "confidence", "hybrid"]


def denoiser(state: laws.State, table: np.ndarray = LEANING) -> np.ndarray:
    return np.stack([table[i, state[i - 1]] for i in range(N)])


def generator_of(name: str, alpha: float = ALPHA, table: bool = True) -> MaskedDiffusionScheduler:
    tables = {"masking_schedule": np.cumsum(COUNTS).tolist()} if table else {"masking_schedule": "cosine"}
    plain, tempered = shared_config() | tables, shared_config(choice_temperature=alpha) | tables
    return {
        "maskgit": lambda: MaskGITScheduler(**tempered),
        "moment": lambda: MomentScheduler(**tempered),
        "uniform": lambda: UniformScheduler(**plain),
        "uniform, alpha": lambda: UniformScheduler(**tempered),
        "halton": lambda: HaltonScheduler(**plain),
        "confidence": lambda: ConfidenceScheduler(**tempered),
        "hybrid": lambda: HybridScheduler(**tempered, exploration="uniform"),
    }[name]()


def generate(
    scheduler: MaskedDiffusionScheduler, rows: int, num_steps: int, table: np.ndarray = LEANING, remembers: bool = True
) -> Mapping:
    generator = torch.Generator().manual_seed(2)
    log_probs, positions = torch.from_numpy(np.log(table)).float(), torch.arange(N)
    scheduler.set_timesteps(num_steps)
    sample, memory = torch.full((rows, N), MASK_ID), scheduler.new_memory() if remembers else None
    for t in scheduler.timesteps:
        logits = log_probs[positions, sample.roll(1, dims=1)]
        sample = scheduler.step(logits, t, sample, generator=generator, memory=memory).prev_sample
    assert not (sample == MASK_ID).any()
    return count_outcomes(sample.numpy(), MASK_ID)


def round_law(name: str, alpha: float, p: np.ndarray, k: int, masked: tuple[int, ...]) -> Law:
    """The law of one step of the scheduler `name` at alpha_n = `alpha`."""
    if name == "maskgit":
        return laws.maskgit_round_law(p, k, alpha)
    if name == "moment":
        return laws.moment_round_law(p, k, alpha)
    if name == "confidence":
        return laws.confidence_round_law(p, k, "confidence", alpha)
    if name == "hybrid":  # half of one position, rounded up, explores
        return laws.hybrid_round_law(p, k, laws.uniform_subsets(len(p), 1), alpha)
    if name == "halton":
        order = [0, 2, 1, 3]
        return laws.ordered_round_law(p, k, sorted(range(len(p)), key=lambda i: order.index(masked[i])))
    return laws.uniform_round_law(p, k, alpha if name == "uniform, alpha" else None)


def law_of(name: str, alphas: tuple[float, ...], final: Callable[[np.ndarray], Law] | None = None) -> Law:
    """`final` replaces the law of the last step."""
    steps = [lambda p, k, masked, a=a: round_law(name, a, p, k, masked) for a in alphas]
    if final is not None:
        steps[-1] = lambda p, k, masked: final(p)
    return laws.generation_law(denoiser, steps, COUNTS, (laws.MASK,) * N)


def rounds_and_more(rounds: int) -> list[Any]:
    """Rounds enough to reject the mutants with power 0.999, and as many as show lesser defects."""
    return [rounds, pytest.param(200_000, marks=pytest.mark.exhaustive)]


@pytest.mark.parametrize("rounds", rounds_and_more(20_000))
@pytest.mark.parametrize("name", GENERATORS)
def test_three_steps_have_the_law_of_enumeration(name: str, rounds: int) -> None:
    # alpha_n = alpha (1 - (n + 1) / T); the last step draws plainly whatever its alpha.
    alphas = (ALPHA * 2 / 3, ALPHA / 3, ALPHA)
    law = law_of(name, alphas)
    counts = generate(generator_of(name), rounds, 3)
    fit = goodness_of_fit(counts, law)
    assert fit.p_value > FALSE_ALARM, fit

    def tempered_end(p: np.ndarray) -> Law:
        return laws.plain_round_law(laws.moments(p, 1e-2 if name == "maskgit" else 0.5)[1])

    mutants = {
        "no final-step rule": law_of(name, alphas, tempered_end),
        **{f"the order of {other}": law_of(other, alphas) for other in ("uniform", "halton") if other != name},
    }
    if name not in ("uniform", "halton"):
        mutants["alpha one step late"] = law_of(name, tuple(ALPHA * (1 - n / 3) for n in range(3)))
        mutants["alpha constant"] = law_of(name, (ALPHA,) * 3)
    for mutant, mutant_law in mutants.items():
        assert power(law, mutant_law, rounds) >= POWER, mutant
        # What was observed refutes each of them, and rounds of each refute the law.
        assert goodness_of_fit(counts, mutant_law).p_value < FALSE_ALARM, mutant
        assert goodness_of_fit(draw(mutant_law, rounds, np.random.default_rng(1)), law).p_value < FALSE_ALARM, mutant


# The left neighbour's token also decides how warm a marginal is, so that what is drawn decides how many come next.
WARMING = np.stack(
    [
        [temper(np.roll(PEAKED[i : i + 1], left), warmth)[0] for left, warmth in enumerate((0.5, 1.0, 1.7, 1.2))]
        for i in range(N)
    ]
)


# Warmed a little differently at each position, so that no two probabilities are the same.
CLEAR = np.stack([temper(WARMING[i], 1.0 + 0.013 * i) for i in range(N)])


@pytest.mark.parametrize("rounds", rounds_and_more(80_000))
def test_three_entropy_bounded_steps_have_the_law_of_enumeration(rounds: int) -> None:
    """How many a step reveals depends on the tokens revealed before; the third reveals what is left."""
    rng = np.random.default_rng(1)

    def law_of_run(first_steps: laws.RoundLaw) -> Law:
        steps = [first_steps] * 2 + [lambda p, k, masked: laws.plain_round_law(p)]
        return laws.generation_law(lambda s: denoiser(s, WARMING), steps, COUNTS, (laws.MASK,) * N)

    def law_at(bound: float) -> Law:
        return law_of_run(lambda p, k, masked: laws.entropy_bounded_round_law(p, bound))

    def run(bound: float) -> Mapping:
        scheduler = EntropyBoundedScheduler(**shared_config(entropy_bound=bound, masking_schedule="linear"))
        return generate(scheduler, rounds, 3, WARMING)

    law, counts = law_at(1.0), run(1.0)
    fit = goodness_of_fit(counts, law)
    assert fit.p_value > FALSE_ALARM, fit
    mutants = {
        "bound 20 % too small": law_at(0.8),
        "bound 20 % too large": law_at(1.2),
        "the counts of the schedule": law_of_run(lambda p, k, masked: laws.confidence_round_law(p, k, "entropy")),
        "all at once": laws.plain_round_law(denoiser((laws.MASK,) * N, WARMING)),
    }
    for mutant, mutant_law in mutants.items():
        assert power(law, mutant_law, rounds) >= POWER, mutant
        assert goodness_of_fit(counts, mutant_law).p_value < FALSE_ALARM, mutant
        assert goodness_of_fit(draw(mutant_law, rounds, rng), law).p_value < FALSE_ALARM, mutant
    for bound in (0.8, 1.2):
        assert goodness_of_fit(run(bound), law).p_value < FALSE_ALARM


THRESHOLDS = {
    "threshold": ({"threshold": 0.6}, {"threshold": 0.75}),
    "factor": ({"threshold": None, "factor": 1.0}, {"threshold": None, "factor": 1.7}),
    "drawn": ({"threshold": 0.33, "measure": "drawn"}, {"threshold": 0.33}),
}


@pytest.mark.parametrize("rounds", rounds_and_more(80_000))
@pytest.mark.parametrize("name", THRESHOLDS)
def test_three_steps_with_a_threshold_have_the_law_of_enumeration(name: str, rounds: int) -> None:
    """How many a step reveals depends on the tokens revealed before; the third reveals what is left."""

    def law_of_run(settings: dict[str, Any]) -> Law:
        steps = [lambda p, k, masked: threshold_round_law(p, **settings)] * 2
        steps.append(lambda p, k, masked: laws.plain_round_law(p))
        return laws.generation_law(lambda s: denoiser(s, CLEAR), steps, COUNTS, (laws.MASK,) * N)

    def run(settings: dict[str, Any]) -> Mapping:
        return generate(ThresholdScheduler(**shared_config(**settings, masking_schedule="linear")), rounds, 3, CLEAR)

    settings, wrong = THRESHOLDS[name]
    law, mutant_law = law_of_run(settings), law_of_run(wrong)
    fit = goodness_of_fit(run(settings), law)
    assert fit.p_value > FALSE_ALARM, fit
    assert power(law, mutant_law, rounds) >= POWER
    assert goodness_of_fit(run(wrong), mutant_law).p_value > FALSE_ALARM
    assert goodness_of_fit(run(wrong), law).p_value < FALSE_ALARM


@pytest.mark.parametrize("rounds", rounds_and_more(80_000))
@pytest.mark.parametrize("history", [1, 2])
def test_four_steps_of_klass_have_the_law_of_enumeration(history: int, rounds: int) -> None:
    """A marginal changes with the token to its left, so stable is what has had the same neighbour for long enough."""

    def law_of_run(confidence: float = 0.5, kl: float = 0.2, history: int = history) -> Law:
        return klass_run_law(lambda s: denoiser(s, CLEAR), [1, 1, 1, 1], confidence, kl, history, (laws.MASK,) * N)

    def run(confidence: float = 0.5, kl: float = 0.2, history: int = history, remembers: bool = True) -> Mapping:
        rule = {"confidence_threshold": confidence, "kl_threshold": kl, "history_length": history}
        scheduler = KLASSScheduler(**shared_config(masking_schedule="linear", rounding="even") | rule)
        return generate(scheduler, rounds, 4, CLEAR, remembers)

    law = law_of_run()
    fit = goodness_of_fit(run(), law)
    assert fit.p_value > FALSE_ALARM, fit
    for other in ({"confidence": 0.8}, {"kl": 2.0}, {"kl": 0.0}, {"history": 3 - history}):
        if law_of_run(**other) != law:
            assert power(law, law_of_run(**other), rounds) >= POWER, other
            assert goodness_of_fit(run(**other), law_of_run(**other)).p_value > FALSE_ALARM, other
            assert goodness_of_fit(run(**other), law).p_value < FALSE_ALARM, other
    assert goodness_of_fit(run(remembers=False), law_of_run(kl=0.0)).p_value > FALSE_ALARM


@pytest.mark.parametrize("name", GENERATORS)
def test_one_step_is_the_product_of_the_marginals(name: str) -> None:
    rounds = 200_000
    law = laws.plain_round_law(denoiser((laws.MASK,) * N))
    fit = goodness_of_fit(generate(generator_of(name, table=False), rounds, 1), law)
    assert fit.p_value > FALSE_ALARM, fit
    mutant = laws.plain_round_law(temper(denoiser((laws.MASK,) * N), 1.05))
    assert power(law, mutant, rounds) >= POWER
    wrong = generator_of(name, table=False)
    wrong.register_to_config(temperature=1.05)
    assert goodness_of_fit(generate(wrong, rounds, 1), law).p_value < FALSE_ALARM


# --- the noise --------------------------------------------------------------------------------------------------------


def test_positions_of_one_row_are_independent() -> None:
    """One row of 600,000 positions: its tokens and those of its neighbours follow the product law."""
    scheduler = UniformScheduler(mask_token_id=MASK_ID)
    scheduler.set_timesteps(1)
    length = 600_000
    logits = logits_of(PEAKED[1:2]).expand(1, length, V)
    sample = torch.full((1, length), MASK_ID)
    drawn = scheduler.step(logits, 1.0, sample, generator=torch.Generator().manual_seed(3)).prev_sample
    law = laws.plain_round_law(PEAKED[[1, 1, 1]])
    assert goodness_of_fit(count_outcomes(drawn.view(-1, 3).numpy(), MASK_ID), law).p_value > FALSE_ALARM
    # A third token that repeats the second one time in fifty would be seen.
    p = PEAKED[1]
    clumped = {s: 0.98 * chance + 0.02 * p[s[0]] * p[s[1]] * (s[1] == s[2]) for s, chance in law.items()}
    assert power(law, clumped, length // 3) >= POWER


def test_generators_with_consecutive_seeds_give_independent_rows() -> None:
    """What a batch of images does: one generator per row, seeded 0, 1, 2, ..."""
    rounds = 30_000
    scheduler = MomentScheduler(**tempered_config(0.5))
    scheduler.set_timesteps(2)
    generators = [torch.Generator().manual_seed(seed) for seed in range(rounds)]
    sample = torch.full((rounds, N), MASK_ID)
    step = scheduler.step(logits_of(PEAKED).expand(rounds, N, V), 1.0, sample, generator=generators)
    law = laws.moment_round_law(PEAKED, K, 0.5)
    assert goodness_of_fit(count_outcomes(step.prev_sample.numpy(), MASK_ID), law).p_value > FALSE_ALARM
    # Neighbouring rows: do they reveal the same positions more often than chance has it?
    revealed = [frozenset(np.flatnonzero(row != MASK_ID)) for row in step.prev_sample.numpy()]
    subsets = laws.race_subsets(laws.moments(PEAKED, 0.5)[0], K)
    equal = sum(a == b for a, b in zip(revealed[::2], revealed[1::2], strict=True))
    chance = sum(p**2 for p in subsets.values())
    assert binomtest(equal, rounds // 2, chance).pvalue > FALSE_ALARM
    # One row in twenty that copies its neighbour's positions would be seen.
    accepted = binom.isf(FALSE_ALARM / 2, rounds // 2, chance) + 1
    assert binom.sf(accepted, rounds // 2, 0.95 * chance + 0.05) >= POWER


VOCABULARY, HEAD, TAIL_MASS = 50_257, {0: 0.7, 25_000: 0.2, 50_256: 0.099}, 1e-3


def tail_distribution() -> np.ndarray:
    p = np.full(VOCABULARY, TAIL_MASS / (VOCABULARY - len(HEAD)))
    p[list(HEAD)] = list(HEAD.values())
    return p


def float32_gumbel_max_tail(draws: int) -> int:
    """Tail tokens among the draws of an arg max of `log p + G`, with G from float32 uniforms, multiples of 2^-24.

    The largest of M such uniforms has the law of the M-th root of one uniform, put on the grid, so the tail needs
    no more than one number a draw.
    """
    rng, p, size = np.random.default_rng(4), tail_distribution(), VOCABULARY - len(HEAD)
    with np.errstate(divide="ignore"):
        largest = np.floor(rng.random(draws) ** (1 / size) * 2**24).astype(np.float32) / np.float32(2**24)
        tail = np.float32(np.log(p[1])) - np.log(-np.log(largest))
        uniforms = np.floor(rng.random((draws, len(HEAD))) * 2**24).astype(np.float32) / np.float32(2**24)
        head = np.log(p[list(HEAD)]).astype(np.float32) - np.log(-np.log(uniforms))
    return int((tail > head.max(1)).sum())


@pytest.mark.exhaustive
@pytest.mark.parametrize("scheduler_class", [MaskGITScheduler, MomentScheduler])
def test_a_far_tail_keeps_its_mass(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    """Mass 1e-3 spread over 50,254 tokens; the biased sampler of arXiv 2409.02908 draws it at about 1.6e-4."""
    rows, length, calls = 8, 128, 52
    draws = rows * length * calls
    scheduler = scheduler_class(mask_token_id=VOCABULARY)
    scheduler.set_timesteps(1)
    logits = torch.from_numpy(np.log(tail_distribution())).float().expand(rows, length, VOCABULARY)
    sample = torch.full((rows, length), VOCABULARY)
    generator = torch.Generator().manual_seed(5)
    head, in_tail = torch.tensor(list(HEAD)), []
    for _ in range(calls):
        tokens = scheduler.step(logits, 1.0, sample, generator=generator).prev_sample
        in_tail.append(tokens[~torch.isin(tokens, head)])
    tail = torch.cat(in_tail)
    assert binomtest(len(tail), draws, TAIL_MASS).pvalue > FALSE_ALARM
    # Inside the tail all tokens are alike.
    assert kstest(tail.numpy() / VOCABULARY, "uniform").pvalue > FALSE_ALARM

    biased = float32_gumbel_max_tail(10**6) / 10**6
    assert biased < 0.3 * TAIL_MASS
    rejected = binom.ppf(FALSE_ALARM / 2, draws, TAIL_MASS) - 1
    assert binom.cdf(rejected, draws, biased) >= POWER
    assert binomtest(float32_gumbel_max_tail(draws), draws, TAIL_MASS).pvalue < FALSE_ALARM


# --- the machinery itself ---------------------------------------------------------------------------------------------


def test_p_values_of_the_law_itself_are_uniform() -> None:
    law, rng = laws.maskgit_round_law(PEAKED, K, 0.5), np.random.default_rng(6)
    fits = [goodness_of_fit(draw(law, 20_000, rng), law) for _ in range(400)]
    assert kstest([fit.p_value for fit in fits], "uniform").pvalue > 1e-3
    assert len({fit.degrees_of_freedom for fit in fits}) == 1


def test_computed_power_is_the_rate_of_rejection() -> None:
    law, mutant = laws.maskgit_round_law(PEAKED, K, 0.5), laws.maskgit_round_law(PEAKED, K, 0.55)
    rounds = rounds_for_power(law, mutant, wanted=0.8, false_alarm=0.01)
    assert 0.8 <= power(law, mutant, rounds, false_alarm=0.01) < 0.82
    rng = np.random.default_rng(7)
    rejected = sum(goodness_of_fit(draw(mutant, rounds, rng), law).p_value < 0.01 for _ in range(400))
    assert binomtest(rejected, 400, 0.8).pvalue > 1e-3


def test_small_cells_are_pooled_and_the_impossible_is_rejected() -> None:
    law = {(0,): 0.979, (1,): 0.02, (2,): 0.0005, (3,): 0.0005, (4,): 0.0}
    assert pooled_cells(law, 10**6) == [[(2,)], [(3,)], [(1,)], [(0,)]]
    assert pooled_cells(law, 10**4) == [[(1,)], [(0,)], [(2,), (3,)]]
    # Together the rare ones expect 1 of 1,000, too few for a cell, so the next outcome joins them.
    assert pooled_cells(law, 10**3) == [[(0,)], [(2,), (3,), (1,)]]
    assert goodness_of_fit({(0,): 979, (1,): 20, (2,): 1}, law) == ChiSquare(
        pytest.approx(0, abs=0.1), 1, pytest.approx(1, abs=0.3), 1000
    )
    assert goodness_of_fit({(0,): 979, (1,): 20, (4,): 1}, law).p_value == 0.0
    assert noncentrality(law, law, 10**6) == 0.0
    assert noncentrality({(0,): 1.0}, {(1,): 1.0}, 100) == np.inf
    with pytest.raises(ValueError, match="must differ from the law"):
        rounds_for_power(law, law, most=10**6)


def test_outcomes_are_counted() -> None:
    samples = np.array(list(product([0, 2, 7], repeat=3)) + [(7, 7, 7)] * 4)
    counts = count_outcomes(samples, mask_token_id=7)
    assert counts[(-1, -1, -1)] == 5
    assert counts[(0, 2, -1)] == 1
    assert sum(counts.values()) == 31
