"""The chain with known conditionals: against enumeration, and what samplers show on it."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_maskdiff import MaskedDiffusionScheduler, MomentScheduler, PartialCacheConfig, UniformScheduler
from hf_maskdiff.evaluation.markov_chain import ChainDenoiser, MarkovChain, bigram_divergence, path_divergence
from hf_maskdiff.pipelines import denoise

SMALL = MarkovChain.random(length=5, num_states=3, seed=1)
EVERY = torch.tensor(list(itertools.product(range(3), repeat=5)))


def log_probability(chain: MarkovChain, sequences: Tensor) -> Tensor:
    total = chain.initial[sequences[:, 0]].log()
    for i, step in enumerate(chain.transitions):
        total = total + step[sequences[:, i], sequences[:, i + 1]].log()
    return total


@pytest.mark.parametrize("pattern", list(itertools.product([False, True], repeat=5)))
def test_marginals_and_evidence_for_every_mask_pattern(pattern: tuple[bool, ...]) -> None:
    masked, probabilities = torch.tensor(pattern), log_probability(SMALL, EVERY).exp()
    assert math.isclose(float(probabilities.sum()), 1, abs_tol=1e-12)
    sample = torch.where(masked, 3, EVERY[[17, 101, 230]])
    logits, evidence = SMALL(sample), SMALL.log_evidence(sample)
    for row, log_marginals, log_evidence in zip(sample, logits, evidence, strict=True):
        fits = ((row == 3) | (row == EVERY)).all(-1)
        mass = probabilities[fits].sum()
        assert math.isclose(float(log_evidence), float(mass.log()), abs_tol=1e-12)
        for i in range(5):
            exact = torch.stack([probabilities[fits & (EVERY[:, i] == v)].sum() for v in range(3)]) / mass
            torch.testing.assert_close(log_marginals[i].exp(), exact, atol=1e-12, rtol=0)


def test_draws_and_pairs_are_the_chain_s() -> None:
    samples = SMALL.draw(200_000)
    counts = torch.bincount((samples * 3 ** torch.arange(4, -1, -1)).sum(-1), minlength=243)
    expected = log_probability(SMALL, EVERY).exp() * len(samples)
    chi_square = float(((counts - expected) ** 2 / expected)[expected > 5].sum())
    assert chi_square < 243 + 6 * math.sqrt(2 * 243)  # a false alarm in less than 1e-8
    assert float(bigram_divergence(samples, SMALL)) < 3 * 8 / (2 * len(samples))
    assert float(bigram_divergence(samples.flip(1), SMALL)) > 0.05


def test_other_samples_are_refused() -> None:
    for sample in (torch.zeros(2, 4, dtype=torch.int64), torch.full((2, 5), 4), torch.full((2, 5), -1)):
        with pytest.raises(ValueError, match=r"`sample` must hold tokens 0 \.\. 3"):
            SMALL(sample)


# --- samplers ---------------------------------------------------------------------------------------------------------

CHAIN = MarkovChain.random()


def run(
    scheduler: MaskedDiffusionScheduler, steps: int, num_samples: int, seed: int = 0, num_substeps: int = 1
) -> list[Tensor]:
    """The samples before every pass, and the last one."""
    scheduler.set_timesteps(steps)
    denoiser = ChainDenoiser(CHAIN)
    final = denoise(
        denoiser,
        scheduler,
        denoiser.start(num_samples),
        torch.Generator().manual_seed(seed),
        partial_cache=PartialCacheConfig(num_substeps, full_pass_threshold=1),
        progress_bar=partial(tqdm, disable=True),
        on_step_end=lambda i, t, sample: sample,
    )
    return [*denoiser.path, final]


def uniform() -> UniformScheduler:
    return UniformScheduler(mask_token_id=CHAIN.mask_token_id, masking_schedule="linear")


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


@pytest.mark.parametrize("steps", [4, pytest.param(8, marks=pytest.mark.exhaustive)])
def test_two_groups_are_twice_the_steps_of_uniform(steps: int) -> None:
    """With partial passes that are exact; by the likelihood, 4 standard errors of the difference."""
    grouped = CHAIN.log_evidence(run(uniform(), steps, 4000, seed=1, num_substeps=2)[-1])
    twice = CHAIN.log_evidence(run(uniform(), 2 * steps, 4000, seed=2)[-1])
    plain = CHAIN.log_evidence(run(uniform(), steps, 4000, seed=3)[-1])
    (a, a_error), (b, b_error), (c, c_error) = map(mean_and_error, (grouped, twice, plain))
    assert abs(a - b) < 4 * math.hypot(a_error, b_error)
    assert a - c > 8 * math.hypot(a_error, c_error)


def test_uniform_converges_and_one_token_at_a_time_is_exact() -> None:
    """The path's divergence falls with the steps to 0, and has no tempering."""
    means = []
    for steps in (4, 8, 16, 64):
        found = path_divergence(CHAIN, run(uniform(), steps, 500))
        assert not found.tempering.any()
        means.append(mean_and_error(found.total))
    assert all(a[0] - b[0] > 4 * math.hypot(a[1], b[1]) for a, b in itertools.pairwise(means))
    assert abs(means[-1][0]) < 1e-9


@pytest.mark.exhaustive
def test_more_steps_at_a_low_choice_temperature_sharpen_too_much() -> None:
    """The pairs come nearer to the chain's and then leave it again; uniform draws only come nearer."""
    sharp, plain = [], []
    for steps in (2, 8, 64):
        moment = MomentScheduler(
            mask_token_id=CHAIN.mask_token_id,
            masking_schedule="linear",
            choice_temperature=1.0,
            choice_temperature_schedule="constant",
        )
        sharp.append(float(bigram_divergence(run(moment, steps, 1500)[-1], CHAIN)))
        plain.append(float(bigram_divergence(run(uniform(), steps, 1500)[-1], CHAIN)))
    # Seen: 0.411, 0.170, 0.213 and 0.362, 0.053, 0.021; what 1500 samples add is near 0.02 for all.
    assert sharp[1] < sharp[0] - 0.02
    assert sharp[1] < sharp[2] - 0.02
    assert plain[0] > plain[1] + 0.02 > plain[2] + 0.04


def test_the_terms_of_the_chain_rule() -> None:
    """Their sum is the log-ratio of the law of the whole path, where nothing but tokens is drawn."""
    chain, beta = SMALL, 1.5
    start = torch.full((243, 5), 3)
    middle = torch.where(torch.tensor([True, False, True, False, True]), EVERY, 3)
    betas = [torch.full((243,), beta, dtype=torch.float64), torch.ones(243, dtype=torch.float64)]
    found = path_divergence(chain, [start, middle, EVERY], betas)
    first, second = torch.log_softmax(chain(start) * beta, -1), chain(middle)
    drawn = (first.gather(-1, EVERY[..., None])[..., 0] * (middle < 3)).sum(-1)
    drawn = drawn + (second.gather(-1, EVERY[..., None])[..., 0] * (middle == 3)).sum(-1)
    torch.testing.assert_close(found.total, drawn - log_probability(chain, EVERY))
    for term in (found.tempering, found.dependence, found.total):
        assert float((drawn.exp() * term).sum()) > 1e-3
