"""Notes, for later steps of a run, with what probability tokens were drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sampling import Marginals
from .run_memory import DrawMemory
from .scheduling_choose_then_sample import Choice


def record_drawn(marginals: Marginals, choice: Choice, rows: Tensor, tokens: Tensor, group: Tensor | None) -> None:
    """Record it in the choice's memory, if that is one for it; the arguments are those of `note_drawn`."""
    if not isinstance(choice.memory, DrawMemory) or choice.first is None:
        return
    shape = choice.memory.known.shape
    wanted = choice.valid if group is None else choice.valid & group
    places = torch.where(wanted, choice.first + choice.positions, shape.numel())
    chosen = slice(None) if places.device.type != "cpu" else wanted.flatten()
    drawn_with = marginals.log_prob_at(rows.flatten()[chosen], tokens.flatten()[chosen]).exp()
    choice.memory.record(places.flatten()[chosen], drawn_with, shape)
