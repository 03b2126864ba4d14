"""Position orders by name. Each is a function that scores all positions, given the marginals and the step."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from ..orders import log_confidence, log_margin, log_moment, negative_entropy, spread_ranks
from ..sampling import Marginals, Purpose, position_noise
from .step_context import StepContext


def uniform(marginals: Marginals, context: StepContext, purpose: Purpose) -> Tensor:
    """Random order."""
    return context.uniform(purpose)


def halton(marginals: Marginals, context: StepContext, purpose: Purpose) -> Tensor:
    """Halton order on a grid, bit-reversed order on a sequence."""
    return _spread_scores(context.grid, context.keys.device).expand(context.tokens.shape)


@lru_cache(maxsize=64)
def _spread_scores(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return -spread_ranks(shape, device).double()


def randomized_halton(marginals: Marginals, context: StepContext, purpose: Purpose) -> Tensor:
    """Halton order, begun at a place of each row's own, the same in all steps of a run and a new one in the next."""
    ranks = spread_ranks(context.grid, context.keys.device)
    place = position_noise(context.run_keys, 1, Purpose.SHIFT)[0]
    return -((ranks + (place * len(ranks)).long()) % len(ranks)).double()


def moment(marginals: Marginals, context: StepContext, purpose: Purpose) -> Tensor:
    """`log sum_x p_i(x)^beta + G_i`."""
    # Score and noise are both divided by beta: this keeps the order, and beta may grow without bound. In a row's last
    # step beta should be 1, but there the order does not matter, since all remaining positions are revealed.
    noise = context.gumbel(purpose).div_(context.sharpness)
    return noise.add_(marginals.score(partial(log_moment, beta=context.sharpness), context.masked).to(noise.device))


def confidence(marginals: Marginals, context: StepContext, purpose: Purpose) -> Tensor:
    """`log max_x p_i(x)`."""
    return marginals.score(log_confidence, context.masked)


def margin(marginals: Marginals, context: StepContext, purpose: Purpose) -> Tensor:
    """`log(p_(1) - p_(2))`."""
    return marginals.score(log_margin, context.masked)


def entropy(marginals: Marginals, context: StepContext, purpose: Purpose) -> Tensor:
    """`-H(p_i)`, in nats."""
    return marginals.score(negative_entropy, context.masked)


CERTAINTIES: dict[str, Callable[[Marginals, StepContext, Purpose], Tensor]] = {
    "confidence": confidence,
    "margin": margin,
    "entropy": entropy,
}
# Orders that do not depend on the model.
WITHOUT_LOGITS = {"uniform", "halton", "randomized_halton"}
POSITION_ORDERS = {
    "uniform": uniform,
    "halton": halton,
    "randomized_halton": randomized_halton,
    "moment": moment,
    **CERTAINTIES,
}
