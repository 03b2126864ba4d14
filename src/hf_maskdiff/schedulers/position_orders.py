"""Position orders by name. Each is a function that scores all positions, given the marginals and the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ..kept_tensors import kept
from ..orders import (
    bit_reversed,
    log_confidence,
    log_margin,
    log_moment,
    negative_entropy,
    spread_ranks,
    zero_where_likely,
)
from ..sampling import Marginals, Purpose, position_noise
from .step_context import StepContext


def uniform(marginals: Marginals, context: StepContext, purpose: Purpose) -> Tensor:
    """Random order."""
    return context.uniform(purpose)


def halton(marginals: Marginals, context: StepContext, purpose: Purpose) -> Tensor:
    """Halton order on a grid, bit-reversed order on a sequence."""
    return _spread_scores(context.grid, context.keys.device).expand(context.tokens.shape)


@kept
def _spread_scores(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return -spread_ranks(shape, device).double()


def randomized_halton(marginals: Marginals, context: StepContext, purpose: Purpose) -> Tensor:
    """Halton order, begun at a place of each row's own, the same in all steps of a run and a new one in the next."""
    place = position_noise(context.run_keys, 1, Purpose.SHIFT)[0]
    if len(context.grid) == 1:  # a row's place must not depend on what is padding of a longer one, which has no rank
        return -((_bit_reversed(context.grid[0], context.keys.device) + place) % 1)
    ranks = -_spread_scores(context.grid, context.keys.device)
    return -((ranks + (place * len(ranks)).floor()) % len(ranks))


@kept
def _bit_reversed(length: int, device: torch.device) -> Tensor:
    return bit_reversed(length).to(device, non_blocking=True)


def moment(marginals: Marginals, context: StepContext, purpose: Purpose) -> Tensor:
    """`log sum_x p_i(x)^beta + G_i`."""
    # Score and noise are both divided by beta: this keeps the order, and beta may grow without bound. In a row's last
    # step beta should be 1, but there the order does not matter, since all remaining positions are revealed.
    noise = context.gumbel(purpose).div_(context.sharpness)
    return noise.add_(marginals.score(partial(log_moment, beta=context.sharpness), context.masked).to(noise.device))


def confidence(marginals: Marginals, context: StepContext, purpose: Purpose) -> Tensor:
    """`log max_x p_i(x)`."""
    return certainty(marginals, context, log_confidence)


def margin(marginals: Marginals, context: StepContext, purpose: Purpose) -> Tensor:
    """`log(p_(1) - p_(2))`."""
    return certainty(marginals, context, log_margin)


def entropy(marginals: Marginals, context: StepContext, purpose: Purpose) -> Tensor:
    """`-H(p_i)`, in nats."""
    return certainty(marginals, context, negative_entropy)


def certainty(
    marginals: Marginals,
    context: StepContext,
    measure: Callable[[Tensor], Tensor],
    unsure_token_ids: Sequence[int] | None = None,
) -> Tensor:
    """How sure the model is of each masked position, float32 `(batch_size, L)`.

    Args:
        measure: of rows of log-probabilities, see `hf_maskdiff.orders`.
        unsure_token_ids: a position at which one of these tokens is the likeliest has a certainty of zero, -inf here.
    """
    unsure = tuple(token for token in unsure_token_ids or () if token < marginals.num_tokens)  # others are never drawn
    if unsure:
        tokens = token_tensor(unsure, marginals.logits.device)
        measure = partial(zero_where_likely, token_ids=tokens, function=measure)
    return marginals.score(measure, context.masked)


@kept
def token_tensor(token_ids: tuple[int, ...], device: torch.device) -> Tensor:
    """Token ids, int64 `(n,)`; they are kept, so that only the first step puts them on the device."""
    return torch.tensor(token_ids).to(device, non_blocking=True)


MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "confidence": log_confidence,
    "margin": log_margin,
    "entropy": negative_entropy,
}
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
