"""Which tokens may be drawn at a position: top-k, top-p and typical tokens.

Pure functions. Each takes a `block`, rows of unnormalised log-probabilities `(rows, V)`, and overwrites what may not be
drawn with -inf. A row that holds NaN stays as it is, so that it cannot go unnoticed.
"""

from __future__ import annotations

import math

from torch import Tensor


def keep_top_k(block: Tensor, top_k: int) -> None:
    """Keep the `top_k` most probable tokens, and those that tie with the last of them."""
    if top_k < block.shape[1]:
        threshold = block.topk(top_k).values[:, -1:]
        block.masked_fill_(block < threshold, -math.inf)


def keep_top_p(block: Tensor, top_p: float) -> None:
    """Keep the most probable tokens, up to and including the one with which their total probability reaches `top_p`."""
    if top_p < 1.0:
        ordered, order = block.sort(dim=-1, descending=True, stable=True)
        mass = ordered.softmax(-1)
        before = mass.cumsum(-1) - mass
        block.scatter_(1, order, ordered.masked_fill_(before >= top_p, -math.inf))


def keep_typical(block: Tensor, typical_p: float, min_tokens: int = 1) -> None:
    r"""Keep the tokens whose information `-log p(x)` is nearest to the entropy, until their probability is `typical_p`.

    The token with which it reaches `typical_p`, and those that tie with it, are kept, and `min_tokens` at least. The
    most probable token may be dropped: where the entropy is high, it is not typical. "Locally Typical Sampling" (arXiv
    2202.00666).
    """
    if typical_p < 1.0:
        log_probs = block.log_softmax(-1)
        probs = log_probs.exp()
        entropy = (log_probs * probs).nansum(-1, keepdim=True).neg()  # 0 log 0 is NaN, and counts as 0
        distance = log_probs.neg().sub_(entropy).abs_()
        ordered, order = distance.sort(dim=-1)
        below = (probs.gather(1, order).cumsum(-1) < typical_p).sum(-1, keepdim=True)
        farthest = ordered.gather(1, below.clamp(min=min_tokens - 1).clamp(max=block.shape[1] - 1))
        block.masked_fill_(distance > farthest, -math.inf)
