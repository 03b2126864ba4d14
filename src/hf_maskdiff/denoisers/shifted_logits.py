"""Passes of a model whose row i - 1 predicts position i."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_maskdiff.caching import places_of


def with_predecessors(sequence: Tensor, tokens: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The queries of a partial pass where row i - 1 predicts position i: rows i - 1 and i, each once.

    Args:
        sequence: the tokens of the last pass, int64 `(batch_size, L)`.
        tokens: new ones at `positions`, int64 `(batch_size, K)`.
        positions: their places, p as `-p - 1` where nothing is to be written.

    Returns:
        The sequence with the new tokens; the queries' places, int64 `(batch_size, min(2 K, L))`, `-p - 1` where a query
        only fills a row up; and where among the queries each position's prediction stands, int64 `(batch_size, K)`.
    """
    places, valid = places_of(positions), positions >= 0
    sequence = sequence.scatter(1, places, torch.where(valid, tokens, sequence.gather(1, places)))
    before = (places - 1).clamp(min=0)
    # Predecessors of all, as all are predicted; of the positions themselves only what is new is written.
    wanted = torch.zeros_like(sequence, dtype=torch.int64)
    wanted.scatter_add_(1, places, valid.long())
    wanted.scatter_add_(1, before, valid.long())
    num_queries = min(2 * places.shape[1], sequence.shape[1])
    order = (wanted == 0).long().argsort(dim=1, stable=True)
    queries = order[:, :num_queries]
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    index = rank.gather(1, before).clamp(max=num_queries - 1)  # that of a position which is not valid is not read
    return sequence, torch.where(wanted.gather(1, queries) > 0, queries, ~queries), index
