"""Estimators of a log-likelihood: each says which passes it needs of a text, and how they add up."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_maskdiff.likelihood.patterns import (
    Patterns,
    of_all_masks,
    of_counts,
    of_orders,
    of_single_tokens,
    of_times,
    published_counts,
)

_MOST_ENUMERATED = 16
_MOST_DIMENSIONS = torch.quasirandom.SobolEngine.MAXDIM


class Estimator(ABC):
    """Says which tokens of a text are masked, and adds up what the passes find.

    Samples come in groups. Groups are independent of each other, and the mean of a group has no bias; so the error of
    the whole is that of the groups' means.
    """

    group_size: int = 1  # samples that are drawn together

    @property
    def is_exact(self) -> bool:
        """Whether the result has no error of sampling, so that the number of samples has no part in it."""
        return False

    @abstractmethod
    def patterns(self, num_tokens: int, num_samples: int, generator: torch.Generator) -> Patterns:
        """What is masked of a text of `num_tokens` scored tokens, all patterns of a sample next to each other.

        Args:
            num_tokens: n, at least 1.
            num_samples: a multiple of `group_size`.
            generator: of this text, on the CPU.
        """

    def check(self, num_samples: int) -> None:
        """Raise `ValueError` unless samples come in whole groups."""
        if num_samples % self.group_size:
            raise ValueError(
                f"`num_samples` must be a multiple of {self.group_size}, the samples that {type(self).__name__} draws "
                f"together, got {num_samples}. Pass for example {-(-num_samples // self.group_size) * self.group_size}."
            )

    def estimate(self, totals: Tensor, num_samples: int) -> tuple[float, float]:
        """The log-likelihood of a text, in nats, and its standard error: 0 if exact, NaN of a single group.

        Args:
            totals: of the patterns, float64 `(num_patterns,)`.
            num_samples: as of `patterns`.
        """
        if self.is_exact:
            return float(totals.sum()), 0.0
        num_groups = num_samples // self.group_size
        means = totals.view(num_samples, -1).sum(-1).view(num_groups, -1).mean(-1)
        error = float(means.std()) / math.sqrt(num_groups) if num_groups > 1 else math.nan
        return float(means.mean()), error


def _uniform(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _ranks(num_samples: int, num_tokens: int, generator: torch.Generator) -> Tensor:
    return _uniform(num_samples, num_tokens, generator=generator).argsort(-1).argsort(-1)


def _strata(num_samples: int, group_size: int, generator: torch.Generator) -> Tensor:
    """Numbers in [0, 1), one in each of `group_size` equal intervals for each group, float64 `(num_samples,)`."""
    shifts = _uniform(num_samples, generator=generator).view(-1, group_size)
    return ((torch.arange(group_size) + shifts) / group_size).flatten()


def _counts(uniform: Tensor, num_tokens: int) -> Tensor:
    return (uniform * num_tokens).long().clamp(max=num_tokens - 1) + 1


def _require_group(group_size: int, least: int, rule: str, fits: bool) -> None:
    if type(group_size) is not int or group_size < least or not fits:
        raise ValueError(f"`group_size` must be {rule}, got {group_size!r}. Pass 16, say.")


@dataclass(frozen=True)
class Independent(Estimator):
    """Masks of any size, drawn independently: the plain Monte Carlo estimate, without bias, with the largest error.

    `n / k` times the sum of `log p` over k masked tokens, k uniform in 1 .. n. Its mean is the log-likelihood of the
    text written one token at a time in random order, averaged over orders.
    """

    def patterns(self, num_tokens: int, num_samples: int, generator: torch.Generator) -> Patterns:
        counts = _counts(_uniform(num_samples, generator=generator), num_tokens)
        return of_counts(counts, _ranks(num_samples, num_tokens, generator))


@dataclass(frozen=True)
class Stratified(Estimator):
    """As `Independent`, with the sizes of the masks spread evenly over each group: no bias, less error.

    Args:
        group_size: samples whose sizes are spread together, one in each of so many equal parts of 1 .. n.
    """

    group_size: int = 16

    def __post_init__(self) -> None:
        _require_group(self.group_size, 1, "an integer of at least 1", True)

    def patterns(self, num_tokens: int, num_samples: int, generator: torch.Generator) -> Patterns:
        counts = _counts(_strata(num_samples, self.group_size, generator), num_tokens)
        return of_counts(counts, _ranks(num_samples, num_tokens, generator))


@dataclass(frozen=True)
class LLaDACounts(Estimator):
    """As LLaDA's authors publish their numbers: sizes of masks evenly spaced from a random start in each batch.

    See `published_counts` for the small bias that its rounding has. Their program counts the mask among the tokens that
    the model may predict (`mask_counts=True`).

    Args:
        group_size: their batch size; their tasks use 128 samples in batches of 16 or 32.

    Source: Nie et al., arXiv 2502.09992, appendix; ML-GSAI/LLaDA, `get_log_likelihood.py`.
    """

    group_size: int = 16

    def __post_init__(self) -> None:
        _require_group(self.group_size, 1, "an integer of at least 1", True)

    def patterns(self, num_tokens: int, num_samples: int, generator: torch.Generator) -> Patterns:
        starts = torch.randint(1, num_tokens + 1, (num_samples // self.group_size,), generator=generator)
        counts = [published_counts(start, num_tokens, self.group_size) for start in starts.tolist()]
        return of_counts(torch.cat(counts), _ranks(num_samples, num_tokens, generator))


@dataclass(frozen=True)
class Antithetic(Estimator):
    """As `Stratified`, in pairs that mask opposite ends of one order: k tokens, and the n + 1 - k others.

    Together the two masks of a pair hold every token. That helps where tokens differ more than sizes of masks do.

    Args:
        group_size: samples whose sizes are spread together, an even number.
    """

    group_size: int = 16

    def __post_init__(self) -> None:
        _require_group(self.group_size, 2, "an even integer of at least 2", self.group_size % 2 == 0)

    def patterns(self, num_tokens: int, num_samples: int, generator: torch.Generator) -> Patterns:
        num_pairs = num_samples // 2
        counts = _counts(_strata(num_pairs, self.group_size // 2, generator), num_tokens)
        ranks = _ranks(num_pairs, num_tokens, generator)
        both = torch.stack([counts, num_tokens + 1 - counts], 1).flatten()
        return of_counts(both, torch.stack([ranks, num_tokens - 1 - ranks], 1).flatten(0, 1))


@dataclass(frozen=True)
class Sobol(Estimator):
    """Sizes and orders from scrambled Sobol points, evenly spread over both: no bias, and the least error.

    On `pipelines/mdlm-shakespeare`, 64 samples have 0.4 to 0.5 of the standard error of `Independent`. Drawing the
    points takes 0.1 s for 128 samples of 100 tokens, and grows with their number.

    Args:
        group_size: points of a sequence, a power of two; each group has a scrambling of its own.
    """

    group_size: int = 16

    def __post_init__(self) -> None:
        size = self.group_size
        _require_group(size, 1, "a power of two", type(size) is int and size & (size - 1) == 0)

    def patterns(self, num_tokens: int, num_samples: int, generator: torch.Generator) -> Patterns:
        if num_tokens >= _MOST_DIMENSIONS:
            raise ValueError(
                f"`Sobol` must have at most {_MOST_DIMENSIONS - 1} tokens to score, got {num_tokens}. Use `Stratified`."
            )
        seeds = torch.randint(2**31, (num_samples // self.group_size,), generator=generator).tolist()
        points = torch.cat(
            [
                torch.quasirandom.SobolEngine(num_tokens + 1, scramble=True, seed=seed).draw(
                    self.group_size, dtype=torch.float64
                )
                for seed in seeds
            ]
        )
        return of_counts(_counts(points[:, 0], num_tokens), points[:, 1:].argsort(-1).argsort(-1))


@dataclass(frozen=True)
class Nelbo(Estimator):
    """The bound that diffusion models are trained on, which models that are told the time need: `NELBO <= log p`.

    A time t in each of `group_size` equal parts of (0, 1], each token masked with probability t, and the sum of `log p`
    over masked tokens divided by t. For a model that is not told the time its mean is that of `Independent`, with more
    error, as small times have large weights.

    Args:
        group_size: samples whose times are spread together.

    Source: Sahoo et al., arXiv 2406.07524, equation 10, for a linear masking schedule.
    """

    group_size: int = 16

    def __post_init__(self) -> None:
        _require_group(self.group_size, 1, "an integer of at least 1", True)

    def patterns(self, num_tokens: int, num_samples: int, generator: torch.Generator) -> Patterns:
        times = 1 - _strata(num_samples, self.group_size, generator)  # in (0, 1]
        return of_times(times, _uniform(num_samples, num_tokens, generator=generator))


@dataclass(frozen=True)
class AllMasks(Estimator):
    """What `Independent` is on average, exactly, of short texts: every mask of n tokens once, `2^n - 1` passes.

    The answers of multiple choice are often so short that this costs less than 128 samples.
    """

    @property
    def is_exact(self) -> bool:
        return True

    def patterns(self, num_tokens: int, num_samples: int, generator: torch.Generator) -> Patterns:
        if num_tokens > _MOST_ENUMERATED:
            raise ValueError(
                f"`AllMasks` must have at most {_MOST_ENUMERATED} tokens to score, got {num_tokens}, which have "
                f"2^{num_tokens} masks. Use `Stratified`."
            )
        return of_all_masks(num_tokens)


@dataclass(frozen=True)
class Chain(Estimator):
    """The exact likelihood of writing the text one token at a time in one order, by the chain rule: n passes.

    Args:
        order: the token that is written first, second and so on, a permutation of 0 .. n - 1 of the scored tokens, or
            of those of each block where the model sees blocks; None for left to right.
    """

    order: Sequence[int] | None = None

    @property
    def is_exact(self) -> bool:
        return True

    def patterns(self, num_tokens: int, num_samples: int, generator: torch.Generator) -> Patterns:
        order = range(num_tokens) if self.order is None else self.order
        if sorted(order) != list(range(num_tokens)):
            raise ValueError(
                f"`order` must hold each of 0 .. {num_tokens - 1} once, the tokens to score, got {list(order)}. Leave "
                "it out for left to right, or score texts of one length."
            )
        return of_orders(torch.tensor(list(order))[None])


@dataclass(frozen=True)
class RandomOrders(Estimator):
    """The mean over random orders of the exact likelihood along each: n passes a sample; best of short texts.

    Where a model's conditionals fit together, every order gives the same number, so that few orders are enough. On
    `pipelines/mdlm-shakespeare`, 8 orders of 8 tokens have 0.4 of the error of `Sobol` at equal passes, and 2 orders of
    40 tokens 1.3 times as much.
    """

    def patterns(self, num_tokens: int, num_samples: int, generator: torch.Generator) -> Patterns:
        return of_orders(_uniform(num_samples, num_tokens, generator=generator).argsort(-1))


@dataclass(frozen=True)
class PseudoLikelihood(Estimator):
    """`sum_i log p(x_i | all others)`, of masked language models: exact, n passes, and no probability of the text.

    It ranks texts, and is nearer to 0 than a likelihood: every token sees all others.

    Source: Salazar et al., "Masked Language Model Scoring", arXiv 1910.14659.
    """

    @property
    def is_exact(self) -> bool:
        return True

    def patterns(self, num_tokens: int, num_samples: int, generator: torch.Generator) -> Patterns:
        return of_single_tokens(num_tokens)
