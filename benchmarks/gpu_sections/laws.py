"""Tests every scheduler on the device: against its exact law, and against the same scheduler on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product

import numpy as np
import torch
from torch import Tensor

from hf_maskdiff import (
    AncestralScheduler,
    ConfidenceScheduler,
    EntropyBoundedScheduler,
    FirstHittingScheduler,
    HaltonScheduler,
    HybridScheduler,
    MaskedDiffusionScheduler,
    MaskGITScheduler,
    MomentScheduler,
    UniformScheduler,
)
from hf_maskdiff.evaluation import laws
from hf_maskdiff.evaluation.laws import Law, State

from .measures import Bench, Case, Row, chi_square_p_value, in_a_way, ways

N, V, K = 4, 3, 2  # positions, tokens, positions of the first round
ALPHA = 1.5
FALSE_ALARM = 1e-6
MIN_EXPECTED = 10.0
PEAKED = np.array([[0.90, 0.08, 0.02], [0.60, 0.30, 0.10], [0.40, 0.35, 0.25], [0.25, 0.70, 0.05]])
# Marginals of each position given its left neighbour's token (the mask is the last), so that draws affect later ones.
TABLE = np.stack([[np.roll(PEAKED[i], left) for left in range(V)] + [PEAKED[(i + 1) % N]] for i in range(N)])


def marginals_of(state: State) -> np.ndarray:
    return np.stack([TABLE[i, state[i - 1]] for i in range(N)])


FIRST = marginals_of((laws.MASK,) * N)


@dataclass(frozen=True)
class Sampler:
    """A scheduler, and the law of the first of its two rounds."""

    scheduler: partial[MaskedDiffusionScheduler]
    first_round: Callable[[], Law]


def _two_and_two(scheduler: type[MaskedDiffusionScheduler], **config: object) -> partial[MaskedDiffusionScheduler]:
    """Two positions in each of two steps."""
    return partial(scheduler, masking_schedule=[K, N], **config)


def _tempered(scheduler: type[MaskedDiffusionScheduler], **config: object) -> partial[MaskedDiffusionScheduler]:
    return _two_and_two(scheduler, choice_temperature=ALPHA, choice_temperature_schedule="constant", **config)


def _each_by_itself() -> Law:
    """Every position is revealed with probability 1/2, independently of the others."""
    subsets = [subset for size in range(N + 1) for subset in combinations(range(N), size)]
    return laws.choose_then_sample_law(dict.fromkeys(subsets, 0.5**N), FIRST)


SAMPLERS: dict[str, Sampler] = {
    "MaskGIT": Sampler(_tempered(MaskGITScheduler), lambda: laws.maskgit_round_law(FIRST, K, ALPHA)),
    "moment": Sampler(_tempered(MomentScheduler), lambda: laws.moment_round_law(FIRST, K, ALPHA)),
    "hybrid": Sampler(
        _tempered(HybridScheduler, exploration="uniform", exploration_ratio=0.5),
        lambda: laws.hybrid_round_law(FIRST, K, laws.uniform_subsets(N, 1), ALPHA),
    ),
    "uniform": Sampler(_two_and_two(UniformScheduler), lambda: laws.uniform_round_law(FIRST, K)),
    "uniform, alpha": Sampler(_tempered(UniformScheduler), lambda: laws.uniform_round_law(FIRST, K, ALPHA)),
    "Halton": Sampler(_two_and_two(HaltonScheduler), lambda: laws.ordered_round_law(FIRST, K, [0, 2, 1, 3])),
    "confidence": Sampler(_two_and_two(ConfidenceScheduler), lambda: laws.confidence_round_law(FIRST, K)),
    "margin": Sampler(
        _two_and_two(ConfidenceScheduler, measure="margin"), lambda: laws.confidence_round_law(FIRST, K, "margin")
    ),
    "entropy": Sampler(
        _two_and_two(ConfidenceScheduler, measure="entropy"), lambda: laws.confidence_round_law(FIRST, K, "entropy")
    ),
    "confidence, alpha": Sampler(
        _tempered(ConfidenceScheduler), lambda: laws.confidence_round_law(FIRST, K, "confidence", ALPHA)
    ),
    "entropy-bounded": Sampler(
        partial(EntropyBoundedScheduler, entropy_bound=1.0), lambda: laws.entropy_bounded_round_law(FIRST, 1.0)
    ),
    "ancestral": Sampler(partial(AncestralScheduler, masking_schedule="linear"), _each_by_itself),
    "first-hitting": Sampler(partial(FirstHittingScheduler), lambda: laws.uniform_round_law(FIRST, 1)),
}
# A sampler, and another whose law it must not satisfy: this shows that the test can fail.
MUTANTS = (("moment", "MaskGIT"), ("uniform", "uniform, alpha"), ("Halton", "uniform"))


def cases(bench: Bench) -> Iterator[Case]:
    rounds = bench.pick(400_000, 40_000)
    for way in ways(bench):
        for name in SAMPLERS:
            work = partial(against_the_law, name, name, rounds, bench.device)
            yield f"{name}, by {way}", partial(in_a_way, way, work)
        for name, other in MUTANTS:
            work = partial(against_the_law, name, other, rounds, bench.device)
            yield f"{name} against the law of {other}, by {way}", partial(in_a_way, way, work)
        for name in SAMPLERS:
            yield f"{name} on both, by {way}", partial(in_a_way, way, partial(on_both_devices, name, bench))


# --- chi-square -------------------------------------------------------------------------------------------------------


def against_the_law(name: str, of: str, rounds: int, device: torch.device) -> Iterator[Row]:
    """Tests after the first round and after both; also of a sampler's two rounds against another sampler's law."""
    counts, law = two_rounds(SAMPLERS[name].scheduler(mask_token_id=V), rounds, device), SAMPLERS[of].first_round()
    for after, observed, expected in zip(("the first", "both"), counts, (law, finished(law)), strict=True):
        statistic, freedom, p_value = goodness_of_fit(observed, expected)
        if name != of and after == "both":
            return  # the order of the rounds may leave little trace in finished rows
        yield {
            "sampler": name,
            "law of": of,
            "after": after,
            "rounds": rounds,
            "chi-square": statistic,
            "degrees of freedom": freedom,
            "p-value": p_value,
            "false-alarm rate": FALSE_ALARM,
            "passed": (p_value > FALSE_ALARM) == (name == of),
        }


def two_rounds(
    scheduler: MaskedDiffusionScheduler, rounds: int, device: torch.device
) -> tuple[dict[State, int], dict[State, int]]:
    """How often each outcome of the first round, and of both, was seen."""
    generator = torch.Generator(device).manual_seed(0)
    logits_of = torch.from_numpy(np.log(TABLE) + 1.0).float().to(device)
    positions = torch.arange(N, device=device)
    scheduler.set_timesteps(2)
    sample, counts = torch.full((rounds, N), V, device=device), []
    for t in scheduler.timesteps:
        logits = logits_of[positions, sample.roll(1, dims=1)]
        sample = scheduler.step(logits, t, sample, generator=generator).prev_sample
        counts.append(count_outcomes(sample))
    return counts[0], counts[1]


def count_outcomes(sample: Tensor) -> dict[State, int]:
    """Equal rows, by their digits in base V + 1; the mask, digit V, becomes that of `laws`."""
    base = V + 1
    powers = torch.tensor([base**i for i in range(N)], device=sample.device)
    counts = torch.bincount((sample * powers).sum(-1), minlength=base**N).tolist()
    digits = ([code // base**i % base for i in range(N)] for code in range(base**N))
    states = (tuple(laws.MASK if digit == V else digit for digit in row) for row in digits)
    return {state: count for state, count in zip(states, counts, strict=True) if count}


def finished(first_round: Law) -> Law:
    """The law after the second round, which draws all remaining tokens from their plain marginals."""
    law: Law = {}
    for state, chance in first_round.items():
        marginals = marginals_of(state)
        missing = [i for i in range(N) if state[i] == laws.MASK]
        for tokens in product(range(V), repeat=len(missing)):
            outcome = list(state)
            for i, token in zip(missing, tokens, strict=True):
                outcome[i] = token
            probability = chance * float(np.prod([marginals[i, outcome[i]] for i in missing]))
            law[tuple(outcome)] = law.get(tuple(outcome), 0.0) + probability
    return law


def goodness_of_fit(counts: dict[State, int], law: Law) -> tuple[float, int, float]:
    """Pearson's statistic, its degrees of freedom and the p-value, which is 0 if an impossible outcome occurred.

    Outcomes that are expected fewer than `MIN_EXPECTED` times share cells.
    """
    rounds = sum(counts.values())
    cells, expected, observed = [], 0.0, 0
    for state, probability in sorted(law.items(), key=lambda item: item[1]):
        expected, observed = expected + probability * rounds, observed + counts.get(state, 0)
        if expected >= MIN_EXPECTED:
            cells.append((expected, observed))
            expected, observed = 0.0, 0
    cells[-1] = (cells[-1][0] + expected, cells[-1][1] + observed)
    statistic = sum((seen - wanted) ** 2 / wanted for wanted, seen in cells)
    allowed = sum(count for state, count in counts.items() if law.get(state, 0) > 0)
    return statistic, len(cells) - 1, chi_square_p_value(statistic, len(cells) - 1) if allowed == rounds else 0.0


# --- both devices -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def on_both_devices(name: str, bench: Bench) -> Iterator[Row]:
    """The steps of a run on the CPU, each taken on the device too, from the same tokens, logits and generators."""
    batch_size, length, vocabulary, steps = bench.pick((16, 256, 2048, 8), (2, 16, 32, 4))
    config = {"masking_schedule": "cosine"} if "masking_schedule" in SAMPLERS[name].scheduler.keywords else {}
    scheduler = SAMPLERS[name].scheduler(mask_token_id=vocabulary, **config)
    scheduler.set_timesteps(steps)
    logits = 3 * torch.randn(batch_size, length, vocabulary, generator=torch.Generator().manual_seed(0))
    there, sample = logits.to(bench.device), torch.full((batch_size, length), vocabulary)
    revealed = equal = 0
    for n, t in enumerate(scheduler.timesteps):
        seeds = [batch_size * n + row for row in range(batch_size)]
        here, other = (
            scheduler.step(
                values, t, sample.to(values.device), generator=[torch.Generator().manual_seed(seed) for seed in seeds]
            ).prev_sample.cpu()
            for values in (logits, there)
        )
        new = (sample == vocabulary) & ((here != vocabulary) | (other != vocabulary))
        revealed, equal = revealed + int(new.sum()), equal + int((new & (here == other)).sum())
        sample = here
    yield {"sampler": name, "steps": steps, "positions revealed": revealed, "share of equal tokens": equal / revealed}
