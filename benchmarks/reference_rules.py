"""Which positions the published loops reveal: the rules of Fast-dLLM, dLLM, KLASS and SDAR, each in a few lines.

They read logits of all positions that were computed, as the originals do.
"""

from __future__ import annotations

import torch
from torch import Tensor


def even_counts(num_masked: Tensor, steps: int) -> Tensor:
    """LLaDA's and Fast-dLLM's: as equal as can be, larger ones first; int64 `(batch_size, steps)`."""
    base, more = num_masked // steps, num_masked % steps
    return base[:, None] + (torch.arange(steps, device=num_masked.device) < more[:, None])


def shares_of_the_rest(num_masked: Tensor, steps: int) -> Tensor:
    """dLLM's for the linear schedule: of what is left, 1 / (steps left), rounded half to even; zeros left out."""
    counts = torch.zeros(len(num_masked), steps, dtype=torch.int64)
    for row, left in enumerate(num_masked.tolist()):
        taken = []
        for step in range(steps):
            count = min(round(left * (1 / (steps - step))), left)
            left -= count
            if count:
                taken.append(count)
        counts[row, : len(taken)] = torch.tensor(taken, dtype=torch.int64)
    return counts[:, : max(int((counts > 0).sum(1).max()), 1)].to(num_masked.device)


def with_gumbel_noise(logits: Tensor, temperature: float) -> Tensor:
    """What LLaDA's family takes the largest of, float64 unless greedy."""
    if temperature == 0:
        return logits
    logits = logits.to(torch.float64)
    return logits.exp() / (-torch.rand_like(logits, dtype=torch.float64).log()) ** temperature


def drawn_and_confidence(
    logits: Tensor, temperature: float, dtype: torch.dtype, random_order: bool = False
) -> tuple[Tensor, Tensor]:
    """Tokens of all positions, and the probabilities of these; or random numbers instead of them."""
    drawn = with_gumbel_noise(logits, temperature).argmax(-1)
    if random_order:
        return drawn, torch.rand(drawn.shape, device=drawn.device)
    probs = logits.to(dtype).softmax(-1)
    return drawn, probs.gather(-1, drawn[..., None])[..., 0]


def top_count(confidence: Tensor, counts: Tensor) -> Tensor:
    """Where to reveal, bool: the `counts` surest of each row."""
    chosen = torch.zeros_like(confidence, dtype=torch.bool)
    for row, count in enumerate(counts.tolist()):
        chosen[row, confidence[row].topk(count).indices] = True
    return chosen


def above_threshold(confidence: Tensor, num_masked: Tensor, threshold: float) -> Tensor:
    """Fast-dLLM's: all that are as sure as `threshold`, and always the surest one."""
    chosen = torch.zeros_like(confidence, dtype=torch.bool)
    for row, count in enumerate(num_masked.tolist()):
        order = confidence[row].topk(count).indices
        chosen[row, order] = True
        for rank in range(1, count):
            if confidence[row, order[rank]] < threshold:
                chosen[row, order[rank]] = False
    return chosen


def by_factor(confidence: Tensor, num_masked: Tensor, factor: float) -> Tensor:
    """dLLM's: as many of the surest as there are ranks r with `c_(r) >= 1 - factor / (r + 1)`, at least one."""
    chosen = torch.zeros_like(confidence, dtype=torch.bool)
    for row, count in enumerate(num_masked.tolist()):
        if count == 0:
            continue
        sure = confidence[row].topk(count).values
        needed = 1 - factor / torch.arange(2, count + 2, dtype=sure.dtype, device=sure.device)
        needed[0] = -1
        chosen[row, confidence[row].topk(int((sure >= needed).sum())).indices] = True
    return chosen


def top_k_top_p(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """SDAR's: the k largest, and of these the largest that hold `top_p`, with the one that crosses it."""
    if top_k > 0:
        least = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        gone = ordered.softmax(-1).cumsum(-1) > top_p
        gone = torch.cat([torch.zeros_like(gone[..., :1]), gone[..., :-1]], -1)
        logits = logits.masked_fill(torch.zeros_like(gone).scatter(-1, order, gone), -torch.inf)
    return logits
