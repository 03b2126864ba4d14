"""Passes of a model whose row i - 1 predicts position i."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_maskdiff.caching import places_of


def with_predecessors(
    sequence: Tensor, tokens: Tensor, positions: Tensor, num_runs: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The queries of a partial pass when row i - 1 of the output predicts position i: both i - 1 and i, each once.

    Args:
        sequence: the tokens of the last pass, int64 `(batch_size, L)`.
        tokens: the new tokens at `positions`, int64 `(batch_size, K)`.
        positions: their positions in the sequence, int64 `(batch_size, K)`; `-p - 1` leaves the token at p unchanged.
        num_runs: an upper bound on the runs of neighbouring positions in any row, each of which has one predecessor
            outside; None if it is not known.

    Returns:
        The sequence with the new tokens, int64 `(batch_size, L)`; the positions of the queries, int64
        `(batch_size, min(K + num_runs, 2 K, L))`, with `-p - 1` for queries that only pad their row; and for each of
        `positions` the index of the query that predicts it, int64 `(batch_size, K)`.
    """
    places, valid = places_of(positions), positions >= 0
    sequence = sequence.scatter(1, places, torch.where(valid, tokens, sequence.gather(1, places)))
    before = (places - 1).clamp(min=0)
    # A query is needed at each valid position, whose token is new, and at its predecessor, which predicts it.
    wanted = torch.zeros_like(sequence, dtype=torch.int64)
    wanted.scatter_add_(1, places, valid.long())
    wanted.scatter_add_(1, before, valid.long())
    num_outside = places.shape[1] if num_runs is None else min(num_runs, places.shape[1])
    num_queries = min(places.shape[1] + num_outside, sequence.shape[1])
    order = (wanted == 0).long().argsort(dim=1, stable=True)
    queries = order[:, :num_queries]
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    index = rank.gather(1, before).clamp(max=num_queries - 1)  # the index of an invalid position is never used
    return sequence, torch.where(wanted.gather(1, queries) > 0, queries, ~queries), index
