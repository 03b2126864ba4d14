"""Estimators against exact enumeration: without bias, with honest error bars, and the promised smaller errors."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_maskdiff.evaluation.markov_chain import MarkovChain
from hf_maskdiff.likelihood import (
    AllMasks,
    Antithetic,
    Chain,
    Estimator,
    Independent,
    LLaDACounts,
    Nelbo,
    PseudoLikelihood,
    RandomOrders,
    ScoredTokens,
    Scoring,
    Sobol,
    Stratified,
    published_counts,
)

LENGTH, STATES = 5, 4
DRAWN: dict[str, Estimator] = {
    "independent": Independent(),
    "stratified": Stratified(8),
    "antithetic": Antithetic(8),
    "sobol": Sobol(8),
    "nelbo": Nelbo(8),
    "random orders": RandomOrders(),
}


def wild_logits(sample: Tensor) -> Tensor:
    """Of a model whose conditionals fit no joint law, so that orders differ: a table of the whole context."""
    keys = (sample * 7 ** torch.arange(sample.shape[1])).sum(-1).tolist()
    rows = [torch.randn(LENGTH, STATES + 1, generator=torch.Generator().manual_seed(key)) for key in keys]
    return 2 * torch.stack(rows).double()


class Model:
    """Answers as a model does, and counts its rows; a function gives the logits of all positions."""

    def __init__(self, logits: Any) -> None:
        self.logits, self.rows = logits, 0

    def __call__(self, input_ids: Tensor, timestep: float | Tensor, logits_at: Tensor) -> Tensor:
        self.rows += len(input_ids)
        logits = self.logits(input_ids)
        return logits.gather(1, logits_at[..., None].expand(-1, -1, logits.shape[-1]))


TOKENS = torch.tensor([2, 0, 3, 1, 1])


def totals(estimator: Estimator, num_samples: int, seed: int = 0, logits: Any = wild_logits) -> tuple[Tensor, int]:
    """What the patterns add up to, and the rows that the model computed."""
    model = Model(logits)
    text = ScoredTokens(TOKENS, torch.arange(LENGTH), torch.zeros(LENGTH, dtype=torch.bool))
    patterns = estimator.patterns(LENGTH, num_samples, torch.Generator().manual_seed(seed))
    passes = patterns.passes(tells_time=False)
    (found,) = Scoring(model, STATES, torch.device("cpu"))([text], [passes])  # type: ignore[arg-type]
    return patterns.totals(patterns.of_tokens(found, passes)), model.rows


def estimate(estimator: Estimator, num_samples: int, seed: int = 0, logits: Any = wild_logits) -> tuple[float, float]:
    return estimator.estimate(totals(estimator, num_samples, seed, logits)[0], num_samples)


ORDERS = list(permutations(range(LENGTH)))


def chain_by_hand(order: tuple[int, ...]) -> float:
    sample, total = torch.full((1, LENGTH), STATES), 0.0
    for place in order:
        log_probs = wild_logits(sample)[0, place, :STATES].log_softmax(-1)
        total += float(log_probs[TOKENS[place]])
        sample[0, place] = TOKENS[place]
    return total


def expected() -> float:
    return sum(map(chain_by_hand, ORDERS)) / len(ORDERS)


def test_a_chain_is_the_product_along_its_order() -> None:
    for order in (ORDERS[0], ORDERS[17], ORDERS[-1]):
        assert estimate(Chain(order), 1) == (pytest.approx(chain_by_hand(order), abs=1e-12), 0.0)
    assert estimate(Chain(), 7) == estimate(Chain(range(LENGTH)), 1)
    assert len({round(chain_by_hand(order), 6) for order in ORDERS}) > 50


def test_all_masks_are_the_mean_over_all_orders() -> None:
    found, error = estimate(AllMasks(), 1)
    assert (found, error) == (pytest.approx(expected(), abs=1e-12), 0)
    assert totals(AllMasks(), 1)[1] == 2**LENGTH - 1


@pytest.mark.parametrize("name", DRAWN)
def test_no_bias_and_an_honest_error(name: str) -> None:
    estimator, per_run, runs = DRAWN[name], 16, 2000
    values = totals(estimator, per_run * runs)[0].view(runs * per_run, -1).sum(-1)
    means = values.view(runs, per_run).mean(-1)
    assert abs(float(means.mean()) - expected()) < 3 * float(means.std()) / math.sqrt(runs)
    told = [estimator.estimate(run, per_run)[1] ** 2 for run in values.view(runs, per_run)]
    assert math.sqrt(sum(told) / runs) == pytest.approx(float(means.std()), rel=0.1)


LONG = MarkovChain.random(length=12, num_states=STATES, sharpness=2.0)
LONG_TOKENS = LONG.draw(1, seed=3)[0]


def chain_logits(sample: Tensor) -> Tensor:
    chain = MarkovChain.random(length=LENGTH, num_states=STATES, sharpness=1.5)
    return torch.nn.functional.pad(chain(sample), (0, 1), value=3.0)


def by_count(sample: Tensor) -> Tensor:
    """Of a model to which only the number of masks matters."""
    surer = 3 - sample.eq(STATES).sum(-1).double()[:, None] / 4
    logits = torch.zeros(*sample.shape, STATES + 1, dtype=torch.float64)
    return logits.index_put((torch.tensor(range(len(sample)))[:, None], torch.arange(12), LONG_TOKENS), surer)


def spread(estimator: Estimator, logits: Any) -> float:
    """Standard deviation of an estimate from 16 samples of a text of 12 tokens."""
    text = ScoredTokens(LONG_TOKENS, torch.arange(12), torch.zeros(12, dtype=torch.bool))
    patterns = estimator.patterns(12, 16 * 300, torch.Generator().manual_seed(1))
    passes = patterns.passes(tells_time=False)
    (found,) = Scoring(Model(logits), STATES, torch.device("cpu"), batch_size=512)([text], [passes])  # type: ignore[arg-type]
    return float(patterns.totals(patterns.of_tokens(found, passes)).view(300, 16).mean(-1).std())


def test_draws_that_are_spread_have_less_error() -> None:
    plain = spread(Independent(), by_count)
    assert spread(Stratified(), by_count) < 0.4 * plain
    assert spread(Antithetic(), by_count) < 0.4 * plain
    assert spread(Sobol(), by_count) < 0.4 * plain

    def chain(sample: Tensor) -> Tensor:
        return torch.nn.functional.pad(LONG(sample), (0, 1))

    plain = spread(Independent(), chain)  # most of it is which tokens are masked
    assert spread(Stratified(), chain) < plain
    assert spread(Antithetic(), chain) < 0.9 * plain
    assert spread(Sobol(), chain) < 0.8 * plain
    assert spread(Nelbo(), chain) > plain


def test_of_a_chain_with_exact_conditionals_all_of_them_are_the_likelihood() -> None:
    chain = MarkovChain.random(length=LENGTH, num_states=STATES, sharpness=1.5)
    likelihood = float(chain.log_evidence(TOKENS[None])[0])
    for exact in (AllMasks(), Chain(), Chain([4, 2, 0, 1, 3]), RandomOrders()):
        assert estimate(exact, 3, logits=chain_logits)[0] == pytest.approx(likelihood, abs=1e-9)


def test_pseudo_likelihood() -> None:
    total = 0.0
    for place in range(LENGTH):
        sample = TOKENS[None].clone()
        sample[0, place] = STATES
        total += float(wild_logits(sample)[0, place, :STATES].log_softmax(-1)[TOKENS[place]])
    assert estimate(PseudoLikelihood(), 1) == (pytest.approx(total, abs=1e-12), 0.0)


def test_a_mask_that_is_drawn_again_costs_nothing() -> None:
    assert totals(Independent(), 4096)[1] == 2**LENGTH - 1
    assert totals(RandomOrders(), 600)[1] == 2**LENGTH - 1
    assert totals(Nelbo(8), 4096)[1] == 2**LENGTH - 1  # and the empty one is none
    # Of a model that is told the time, the same mask at two times is two passes.
    patterns = Nelbo(8).patterns(LENGTH, 64, torch.Generator().manual_seed(0))
    assert len(patterns.passes(tells_time=True)) == int(patterns.masked.any(-1).sum()) > 2**LENGTH - 1


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("estimator", [Stratified, Antithetic, Sobol, LLaDACounts])
def test_sizes_of_masks_in_a_group(estimator: Any, size: int) -> None:
    """Each part of 1 .. n has its share in every group."""
    sizes = estimator(size).patterns(64, size * 50, torch.Generator().manual_seed(0)).masked.sum(-1)
    assert int(sizes.min()) >= 1
    assert int(sizes.max()) <= 64
    means = sizes.view(50, size).double().mean(-1)
    assert (means - 32.5).abs().max() < 32 / size + 0.6
    singles = Independent().patterns(64, size * 50, torch.Generator().manual_seed(0)).masked.sum(-1)
    assert singles.view(50, size).double().mean(-1).std() > 2 * means.std()


def test_published_counts() -> None:
    """By the formula in integers: the n-th part of a turn, b times, from the start on; halves to the even number."""
    for num_tokens, size, start in ((7, 4, 1), (8, 16, 3), (100, 16, 57), (1, 16, 1), (33, 32, 33)):
        found = published_counts(start, num_tokens, size).tolist()
        assert found == [(round(start + b * num_tokens / size) - 1) % num_tokens + 1 for b in range(size)]
    # Halves go to even numbers, so that these are more frequent: the bias that the documentation names.
    often = torch.cat([published_counts(start, 2, 16) for start in (1, 2)]).bincount().tolist()
    assert often == [0, 14, 18]
    even = torch.cat([published_counts(start, 16, 16) for start in range(1, 17)]).bincount().tolist()
    assert even == [0] + [16] * 16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Stratified(0), "`group_size` must be an integer of at least 1, got 0"),
        (lambda: Antithetic(3), "`group_size` must be an even integer of at least 2, got 3"),
        (lambda: Sobol(12), "`group_size` must be a power of two, got 12"),
        (lambda: LLaDACounts(1.5), "`group_size` must be an integer of at least 1, got 1.5"),  # type: ignore[arg-type]
        (lambda: Stratified(16).check(24), "`num_samples` must be a multiple of 16, .* got 24. .* 32"),
        (lambda: Chain([0, 0, 1]).patterns(3, 1, torch.Generator()), r"each of 0 \.\. 2 once, .* got \[0, 0, 1\]"),
        (lambda: AllMasks().patterns(17, 1, torch.Generator()), "at most 16 tokens to score, got 17"),
        (lambda: Sobol().patterns(30000, 16, torch.Generator()), "tokens to score, got 30000"),
    ],
)
def test_errors(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
