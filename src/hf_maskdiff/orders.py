"""Which position comes first: scores (larger is earlier), fixed orders, and how two orders merge.

Pure functions. Those that take a `block`, rows of unnormalised log-probabilities `(rows, V)`, reduce it to one score
per row and may overwrite it; see `hf_maskdiff.sampling.Marginals`. They use `log_softmax` because its largest entry is
`-log sum exp(z - max z)`: one fused pass in place gives this sum without storing the exponentials.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .kept_tensors import kept

# --- exploitation: what the model knows -------------------------------------------------------------------------------


def _log_softmax_(block: Tensor) -> Tensor:
    return torch.log_softmax(block, -1, out=block)


def log_moment(block: Tensor, beta: float) -> Tensor:
    r"""`(1 / beta) log sum_x p(x)^beta`, the score of the moment sampler divided by beta.

    Args:
        block: `(rows, V)`.
        beta: at least 1. Division by beta keeps the score finite as beta grows: it tends to `log max p`.
    """
    largest = _log_softmax_(block).amax(-1)
    return largest.sub_(_log_softmax_(block.mul_(beta)).amax(-1).div_(beta))


def log_confidence(block: Tensor) -> Tensor:
    """`log max_x p(x)`."""
    return _log_softmax_(block).amax(-1)


def log_margin(block: Tensor) -> Tensor:
    """`log(p_(1) - p_(2))` of the two most probable tokens; -inf if they are equally probable."""
    first = _log_softmax_(block).amax(-1)
    # topk(2) would take three times as long, and so would a comparison that returns bools.
    largest = torch.eq(block, first[:, None], out=torch.empty_like(block))
    second = block.sub_(largest, alpha=1e30).amax(-1)
    second = torch.where(largest.sum(-1) > 1, first, second)
    return torch.log1p(second.sub_(first).exp_().neg_()).add_(first)


def negative_entropy(block: Tensor) -> Tensor:
    """`sum_x p(x) log p(x)`, in nats."""
    block.sub_(block.amax(-1, keepdim=True))
    probs = torch.softmax(block, -1)
    # log p = z - max z + log max p. Where p is 0 its logarithm must be finite, so that the product is 0.
    block.clamp_(min=torch.finfo(block.dtype).min)
    return probs.amax(-1).log_().add_(block.mul_(probs).sum(-1))


def log_calibrated(block: Tensor, surprisal: Tensor, limit: float) -> Tensor:
    """`log min(limit, p(x) h(x))` of the most probable token x: what is both sure and says much comes first.

    Args:
        block: `(rows, V)`.
        surprisal: h, minus the logarithm of how frequent each token is, float32 `(V,)`.
        limit: above 0.
    """
    largest, tokens = _log_softmax_(block).max(-1)
    return largest.exp_().mul_(surprisal[tokens]).clamp_(0, limit).log_()


def zero_where_likely(block: Tensor, token_ids: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """`function(block)`, but -inf, the logarithm of a certainty of zero, where one of these tokens is the likeliest.

    Args:
        block: `(rows, V)`.
        token_ids: int64 `(n,)`, below V.
        function: another of these.
    """
    likely = block[:, token_ids].amax(-1) >= block.amax(-1)
    return function(block).masked_fill(likely, -torch.inf)


# --- exploration: what spreads ----------------------------------------------------------------------------------------


def radical_inverse(index: int, base: int) -> tuple[int, int]:
    """Van der Corput's radical inverse of `index` as an exact fraction (numerator, denominator)."""
    numerator, denominator = 0, 1
    while index:
        index, digit = divmod(index, base)
        numerator, denominator = numerator * base + digit, denominator * base
    return numerator, denominator


def halton_order(height: int, width: int) -> list[tuple[int, int]]:
    """Cells of a grid in the order in which the Halton sequence (bases 2 and 3) first visits them.

    Point k = 1, 2, ... lies in the cell `(floor(height * vdc_2(k)), floor(width * vdc_3(k)))`, computed in exact
    integers; points are added until every cell has been visited. Source: arXiv 2503.17076.

    Example:
        >>> halton_order(16, 16)[:4]
        [(8, 5), (4, 10), (12, 1), (2, 7)]
    """
    seen: dict[tuple[int, int], None] = {}
    index = 0
    while len(seen) < height * width:
        index += 1
        (a, b), (c, d) = radical_inverse(index, 2), radical_inverse(index, 3)
        seen.setdefault((height * a // b, width * c // d))
    return list(seen)


@kept
def bit_reversed(length: int) -> Tensor:
    """The base-2 radical inverse of every index of a sequence, float64 `(L,)` in [0, 1), on the CPU."""
    fractions = (radical_inverse(index, 2) for index in range(length))
    return torch.tensor([a / b for a, b in fractions], dtype=torch.float64)


def spread_ranks(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Rank of every position in a low-discrepancy order, int64 `(L,)`, 0 first.

    Args:
        shape: `(height, width)` for a grid, whose positions (counted row by row) get the Halton order; `(L,)` for a
            sequence, which is sorted by the base-2 radical inverse of the index (bit-reversed order). The relative
            order of two positions of a sequence does not depend on its length, so padding on the right changes nothing.
    """
    if len(shape) == 2:
        order = torch.tensor([row * shape[1] + column for row, column in halton_order(*shape)])
    else:
        order = bit_reversed(shape[0]).argsort(stable=True)
    return order.argsort().to(device, non_blocking=True)


# --- choosing and merging ---------------------------------------------------------------------------------------------


def ranking(scores: Tensor, candidates: Tensor) -> Tensor:
    """Positions of each row from first to last: the candidates by descending score, then all other positions.

    Equal scores are ordered by position.

    Args:
        scores: `(batch_size, L)`; NaN comes first, so that it cannot go unnoticed.
        candidates: bool `(batch_size, L)`.

    Returns:
        int64 `(batch_size, L)`; each row is a permutation of its positions.
    """
    return sort_positions(scores, candidates)[1]


def sort_positions(scores: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """The scores sorted as by `ranking`, and the ranking itself; both `(batch_size, L)`."""
    lowest = torch.finfo(scores.dtype).min
    scores = torch.where(candidates, scores.clamp(min=lowest), -torch.inf)
    ordered, positions = scores.sort(dim=-1, descending=True, stable=True)
    return ordered, positions


def explore_first(scores: Tensor, exploration: Tensor, num_explored: Tensor) -> Tensor:
    """Merges two orders: raises the scores of the first `num_explored` positions of an exploration above all others.

    Args:
        scores: scores of the exploitation order, below 1e30, `(batch_size, L)`.
        exploration: the exploration order, int64 `(batch_size, L)`; each row is a permutation, as `ranking` returns it.
        num_explored: how many positions of each row explore, int64 `(batch_size,)`.

    Returns:
        The scores, `(batch_size, L)`; the raised ones keep the exploration's order among themselves.

    Example:
        >>> scores = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
        >>> merged = explore_first(scores, torch.tensor([[3, 1, 0, 2]]), torch.tensor([2]))
        >>> ranking(merged, torch.ones(1, 4, dtype=torch.bool))
        tensor([[3, 1, 0, 2]])
    """
    ranks, raised = _ranks_and_raised_scores(exploration.shape[1], exploration.device)
    explored = torch.where(ranks < num_explored[:, None], raised, scores.gather(1, exploration))
    return scores.scatter(1, exploration, explored)


@kept
def _ranks_and_raised_scores(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    ranks = torch.arange(length, device=device)
    return ranks, 1e38 / (1 + ranks)


def apart_first(
    ranked: Tensor, candidates: Tensor, shape: tuple[int, ...], min_distance: int, max_count: int | None = None
) -> Tensor:
    """Puts candidates that are near an earlier one behind the others: a greedy choice of positions that lie apart.

    Going down the order, a candidate is passed over if one that was taken is nearer than `min_distance`. All that were
    taken come first, then those passed over, then the rest; each of the three keeps its order.

    Every round takes all candidates that are the first among the open ones near them, at once, and closes what is near
    those. So the candidate that is taken m-th in the order is found in round m at the latest, mostly much earlier. On a
    CPU the rounds end when nothing is open. Elsewhere, where to ask this would make the host wait, there are as many as
    can be needed.

    Args:
        ranked: positions of each row from first to last, candidates first, int64 `(batch_size, L)`.
        candidates: bool `(batch_size, L)`.
        shape: `(L,)`, or `(height, width)` for a grid, on which the distance is the larger one of rows and columns.
        min_distance: at least 1, which changes nothing.
        max_count: how many positions will be used, if that is known: the order of later ones may be another.

    Returns:
        int64 `(batch_size, L)`; each row is a permutation of its positions.

    Example:
        >>> apart_first(torch.tensor([[2, 1, 3, 0]]), torch.ones(1, 4, dtype=torch.bool), (4,), min_distance=2)
        tensor([[2, 0, 1, 3]])
    """
    length, reach = ranked.shape[1], min(min_distance, max(shape)) - 1
    ranks = torch.arange(length, device=ranked.device, dtype=torch.float32)  # exact up to 2^24
    rank = torch.empty_like(ranked, dtype=torch.float32).scatter_(1, ranked, ranks.expand(ranked.shape))
    room = math.prod(-(-size // min_distance) for size in shape)  # no more than these can lie apart
    taken, open_ones = torch.zeros_like(candidates), candidates
    for _ in range(room if max_count is None else min(room, max_count)):
        if ranked.device.type == "cpu" and not open_ones.any():
            break
        waiting = rank.masked_fill(~open_ones, length)
        first = open_ones & (waiting == -_largest_near(-waiting, shape, reach))
        taken = taken | first
        open_ones = open_ones & (_largest_near(first.float(), shape, reach) == 0)
    return torch.where(taken, rank, rank + length).argsort(-1)


def _largest_near(values: Tensor, shape: tuple[int, ...], reach: int) -> Tensor:
    """The largest value at most `reach` away from each position, along every side of `shape`; `(batch_size, L)`."""
    near = values.view(-1, *shape)
    for side in range(1, near.ndim):
        margin = near.new_full((*near.shape[:side], reach, *near.shape[side + 1 :]), -torch.inf)
        near = torch.cat([margin, near, margin], side)
        width = 1  # of the windows whose largest values `near` holds; they grow, at most to twice the width at a time
        while width < 2 * reach + 1:
            step = min(width, 2 * reach + 1 - width)
            size = near.shape[side] - step
            near = torch.maximum(near.narrow(side, 0, size), near.narrow(side, step, size))
            width += step
    return near.reshape(values.shape)


def largest_prefix(costs: Tensor, bound: float) -> Tensor:
    """Length of each row's longest prefix whose sum without its last entry is at most `bound`; at least 1.

    Args:
        costs: `(batch_size, L)`, not negative and ascending in each row, so that the last entry of a prefix is its
            largest. A NaN is the last entry of its prefix, so that it cannot go unnoticed. Sums are float64.
        bound: at least 0.

    Returns:
        int64 `(batch_size,)`.

    Example:
        >>> largest_prefix(torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.5, 9.0]]), bound=1.0)
        tensor([4, 3])
    """
    before = costs[:, :-1].cumsum(-1, dtype=torch.float64)
    return 1 + (before <= bound).sum(-1)


def passing_ranks(log_confidences: Tensor, factor: float) -> Tensor:
    """The largest r of each row with `(r + 1) (1 - c_(r)) < factor`, c_(r) being its r-th largest confidence.

    Args:
        log_confidences: `log c_(1), log c_(2), ...`, descending in each row, `(batch_size, L)`.
        factor: above 0.

    Returns:
        int64 `(batch_size,)`, 0 if no r will do.

    Example:
        >>> passing_ranks(torch.tensor([[0.99, 0.9, 0.8, 0.5]]).log(), factor=1.0)
        tensor([3])
    """
    # The left side grows with r, so those that pass are the first ones.
    after = _minus_next_ranks(log_confidences.shape[1], log_confidences.device)
    return (log_confidences.expm1() * after < factor).sum(-1)


@kept
def _minus_next_ranks(length: int, device: torch.device) -> Tensor:
    return -torch.arange(2, length + 2, device=device)
