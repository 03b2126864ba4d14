"""What is taken back: probabilities, shares and choices of samplers that mask revealed positions again.

Pure functions. `share` is the share of positions that are revealed, 1 - m(t): alpha in the papers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .orders import sort_positions

# --- each position on its own (ReMDM, arXiv 2503.00307) ---------------------------------------------------------------


def largest_remasking(share: float, next_share: float) -> float:
    """The largest sigma for which the share of revealed positions can still become `next_share`."""
    return min(1.0, (1 - next_share) / share) if share > 0 else 1.0


def reveal_probability(share: float, next_share: float, remasking: float) -> float:
    r"""With which probability a masked position is revealed where a revealed one is masked with probability sigma:

    $$ a = \frac{\alpha_s - (1 - \sigma) \alpha_t}{1 - \alpha_t}, $$

    so that the share of revealed positions goes from `share` to `next_share`; cut to [0, 1].

    Example:
        >>> reveal_probability(0.5, 0.75, remasking=0.0), reveal_probability(0.5, 0.75, remasking=0.5)
        (0.5, 1.0)
    """
    probability = (next_share - (1 - remasking) * share) / (1 - share) if share < 1 else 1.0
    return min(1.0, max(0.0, probability))


def forward_backward(share: float, next_share: float) -> float:
    """Sigma of a step forwards in time to where `share` was, after one backwards; 1 where nothing is revealed yet."""
    return (next_share - share) / share if share > 0 else 1.0


def flow_corrector(share: float, next_share: float) -> float:
    r"""Sigma of the corrector of discrete flow matching (arXiv 2407.15595), with the strength that ReMDM compares with.

    $$ \sigma = b \, \frac{\alpha_s - \alpha_t}{\alpha_t}, \qquad b = 10 \, (\alpha_t (1 - \alpha_t))^{1/4}, $$

    so that `b` positions are masked for each by which the share rises, and `1 + b` are revealed. It can be above 1.

    Example:
        >>> round(flow_corrector(0.5, 0.51), 4)
        0.1414
    """
    return 10 * (share * (1 - share)) ** 0.25 * forward_backward(share, next_share)


def loop_shares(time: float, next_time: float, start: float, end: float, plateau: float) -> tuple[float, float, bool]:
    """The shares before and after a step of the loop, and whether the step is on its plateau.

    The share of revealed positions rises to `plateau` until the time `start`, stays there until `end`, and rises to 1.

    Example:
        >>> loop_shares(0.5, 0.4, start=0.55, end=0.05, plateau=0.9)
        (0.9, 0.9, True)
    """
    if time > start:
        slope = plateau / (1 - start)
        return (1 - time) * slope, min(1.0, (1 - next_time) * slope), False
    if time > end:
        return plateau, plateau, True
    slope = (1 - plateau) / end
    return 1 - time * slope, 1 - next_time * slope, False


def doubt_shares(probabilities: Tensor, revealed: Tensor) -> Tensor:
    """`softmax_i(-p_i)` over the revealed positions of each row: how much of the row's remasking each of them gets.

    Args:
        probabilities: of each token when it was drawn, `(batch_size, L)`; NaN where nobody has recorded one, which
            gets no share.
        revealed: bool `(batch_size, L)`.

    Returns:
        `(batch_size, L)`, 0 where nothing is revealed.

    Example:
        >>> doubt_shares(torch.tensor([[0.2, 0.2, 0.9, 0.5]]), torch.tensor([[True, True, False, False]]))
        tensor([[0.5000, 0.5000, 0.0000, 0.0000]])
    """
    wanted = revealed & ~probabilities.isnan()
    return (-probabilities).masked_fill(~wanted, -torch.inf).softmax(-1).nan_to_num(0.0)


# --- both halves together (path planning, arXiv 2502.03540) -----------------------------------------------------------


def keep_best(scores: Tensor, masked: Tensor, revealed: Tensor, num_masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The positions that hold a token after a step are those that score highest, whether they held one before or not.

    Args:
        scores: floating point `(batch_size, L)`.
        masked, revealed: bool `(batch_size, L)`; a position that is neither is given.
        num_masks: how many masks each row keeps, int64 `(batch_size,)`.

    Returns:
        All positions, int64 `(batch_size, L)`, those to reveal first and the highest score first; how many are
        revealed, int64 `(batch_size,)`; which ones are masked again, bool `(batch_size, L)`.

    Example:
        >>> scores = torch.tensor([[-1.0, -9.0, -2.0, -3.0]])
        >>> masked = torch.tensor([[True, False, True, True]])
        >>> keep_best(scores, masked, ~masked, torch.tensor([2]))
        (tensor([[0, 2, 3, 1]]), tensor([2]), tensor([[False,  True, False, False]]))
    """
    free = masked | revealed
    _, positions = sort_positions(scores, free)
    ranks = torch.arange(positions.shape[1], device=positions.device)
    best = ranks < (free.sum(-1) - num_masks)[:, None]
    fresh = best & masked.gather(1, positions)
    kept = torch.zeros_like(free).scatter_(1, positions, best)
    ranked = positions.gather(1, (~fresh).long().argsort(dim=1, stable=True))
    return ranked, fresh.sum(-1), revealed & ~kept
