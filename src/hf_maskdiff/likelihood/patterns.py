"""Which tokens are masked, and what each log-probability counts: pure functions of counts, orders and times."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor


@dataclass(frozen=True)
class Patterns:
    """What is masked and read of the n scored tokens of one text, pattern by pattern.

    Args:
        masked: bool `(num_patterns, n)`.
        weights: what the log-probability of each token counts, float64 `(num_patterns, n)`; 0 where it is not read.
            Only masked tokens are read.
        times: the share of the scored tokens that is masked, for models that are told the time, float64
            `(num_patterns,)`.
    """

    masked: Tensor
    weights: Tensor
    times: Tensor

    def of_tokens(self, log_probs: Tensor, passes: Passes) -> Tensor:
        """What each pattern reads of the passes' log-probabilities, float64 `(num_patterns, n)`, 0 elsewhere.

        Args:
            log_probs: of the passes, float64 `(num_passes, n)`.
            passes: `self.passes(...)`.
        """
        if not len(passes):
            return torch.zeros_like(self.weights)
        return torch.where(self.weights != 0, log_probs[passes.of_pattern.clamp(min=0)], 0.0)

    def totals(self, of_tokens: Tensor) -> Tensor:
        """`sum_i weight_i log p_i` of each pattern, float64 `(num_patterns,)`.

        Args:
            of_tokens: see there.
        """
        return torch.where(self.weights != 0, self.weights * of_tokens, 0.0).sum(-1)

    def passes(self, tells_time: bool) -> Passes:
        """The passes that have to be computed: one for each mask, however often it was drawn.

        Args:
            tells_time: whether the model is told the time, so that the same mask at another time is another pass.
        """
        read = self.weights != 0
        needed = read.any(-1).nonzero()[:, 0]
        keys = self.masked[needed].double()
        if tells_time:
            keys = torch.cat([keys, self.times[needed, None]], 1)
        _, inverse = keys.unique(dim=0, return_inverse=True)
        count = int(inverse.max()) + 1 if len(needed) else 0
        first = torch.full((count,), len(needed)).scatter_reduce_(0, inverse, torch.arange(len(needed)), "amin")
        reads = torch.zeros(count, read.shape[1], dtype=torch.int64).index_add_(0, inverse, read[needed].long())
        of_pattern = torch.full((len(read),), -1).index_copy_(0, needed, inverse)
        return Passes(self.masked[needed[first]], reads > 0, self.times[needed[first]], of_pattern)


@dataclass(frozen=True)
class Passes:
    """Different passes over one text.

    Args:
        masked: bool `(num_passes, n)`.
        read: which tokens any pattern reads, bool `(num_passes, n)`, at least one in each pass.
        times: float64 `(num_passes,)`.
        of_pattern: the pass of each pattern, int64 `(num_patterns,)`; -1 of those that read nothing.
    """

    masked: Tensor
    read: Tensor
    times: Tensor
    of_pattern: Tensor

    def __len__(self) -> int:
        return len(self.masked)


def of_counts(counts: Tensor, ranks: Tensor) -> Patterns:
    """Masks of given sizes: `n / k` times the sum over k masked tokens has the likelihood as its mean.

    For an order drawn at random, the likelihood along it is the sum over k = 1 .. n of `log p` of the token that k - 1
    others follow. All k tokens that are left are equally probable there: their mean has the same mean. Then k is drawn
    too, uniformly, which gives the factor n.

    Args:
        counts: k, how many are masked, int64 `(num_patterns,)` in 1 .. n.
        ranks: a random permutation of 0 .. n - 1 each, int64 `(num_patterns, n)`; those below k are masked.
    """
    num_tokens = ranks.shape[1]
    masked = ranks < counts[:, None]
    shares = counts.double() / num_tokens
    return Patterns(masked, masked / shares[:, None], shares)


def of_orders(orders: Tensor) -> Patterns:
    """The chain rule along orders: n passes for each, one for each token given those before it in the order.

    Args:
        orders: the token that is revealed first, second and so on, int64 `(num_orders, n)`.

    Returns:
        `num_orders * n` patterns.
    """
    num_orders, num_tokens = orders.shape
    ranks = orders.argsort(-1)[:, None]  # (num_orders, 1, n)
    steps = torch.arange(num_tokens)[:, None]
    masked = (ranks >= steps).flatten(0, 1)
    times = torch.arange(num_tokens, 0, -1, dtype=torch.float64) / num_tokens
    return Patterns(masked, (ranks == steps).flatten(0, 1).double(), times.repeat(num_orders))


def of_all_masks(num_tokens: int) -> Patterns:
    """Every mask once, weighted by how often it is drawn: what `of_counts` is on average, without error.

    Returns:
        `2^n - 1` patterns.
    """
    numbers = torch.arange(1, 2**num_tokens)
    masked = (numbers[:, None] >> torch.arange(num_tokens)) % 2 == 1
    counts = masked.sum(-1)
    often = torch.tensor([k * comb(num_tokens, k) for k in range(num_tokens + 1)], dtype=torch.float64)
    return Patterns(masked, masked / often[counts][:, None], counts.double() / num_tokens)


def of_single_tokens(num_tokens: int) -> Patterns:
    """Every token given all others: n passes, each with one mask."""
    times = torch.full((num_tokens,), 1 / num_tokens, dtype=torch.float64)
    return Patterns(torch.eye(num_tokens, dtype=torch.bool), torch.eye(num_tokens, dtype=torch.float64), times)


def of_times(times: Tensor, uniform: Tensor) -> Patterns:
    """The bound that a diffusion model is trained on, at given times: each token is masked with probability t.

    Args:
        times: t in (0, 1], float64 `(num_patterns,)`.
        uniform: in [0, 1), float64 `(num_patterns, n)`.
    """
    masked = uniform < times[:, None]
    return Patterns(masked, masked / times[:, None], times)


def published_counts(start: int, num_tokens: int, group_size: int) -> Tensor:
    """How many tokens LLaDA's own program masks in the rows of a batch, int64 `(group_size,)`.

    Evenly spaced from `start`, rounded to the nearest integer (halves to the even one), and begun anew beyond n.

    Since halves go to even numbers, not every count is equally frequent in rows b for which `b n / group_size` is a
    half. For n = 2 in batches of 16, two masks are drawn 18 times for every 14 times that one is: the estimate has a
    bias, which `Stratified` has not.

    Args:
        start: drawn uniformly from 1 .. n.
        num_tokens: n.
        group_size: rows of a batch.

    Source: ML-GSAI/LLaDA, `get_log_likelihood.py` and `eval_llada.py`.
    """
    last = start + (group_size - 1) * (num_tokens / group_size)
    spaced = torch.linspace(float(start), last, steps=group_size)
    return (spaced.round().long() - 1) % num_tokens + 1
