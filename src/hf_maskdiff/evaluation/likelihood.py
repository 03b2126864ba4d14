"""The likelihood of tokens under a masked diffusion model: its log-probabilities, and the bound it is trained on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def subs_log_probs(logits: Tensor, sample: Tensor, mask_token_id: int) -> Tensor:
    """Log-probabilities of the clean tokens: the mask has probability 0, and a known token has probability 1.

    Args:
        logits: `(batch_size, sequence_length, vocab_size)`, any float dtype.
        sample: partly masked tokens, int64 `(batch_size, sequence_length)`.
        mask_token_id: id of the mask, a column of `logits`.

    Returns:
        `(batch_size, sequence_length, vocab_size)`, at least float32; -inf where a token is impossible.

    Source: "SUBS" in Sahoo et al., arXiv 2406.07524, section 3.2.3.
    """
    known = sample != mask_token_id
    own = F.one_hot(sample, logits.shape[-1]).bool()
    log_probs = _without_mask(logits, mask_token_id).log_softmax(-1)
    return torch.where(known[..., None], torch.where(own, 0.0, -torch.inf), log_probs)


def nelbo(logits: Tensor, sample: Tensor, original_samples: Tensor, timesteps: Tensor, mask_token_id: int) -> Tensor:
    """Negative evidence lower bound of a linear masking schedule, per token, in nats, estimated at one time per row.

    `-log p(x) / t` at masked positions and 0 elsewhere. Averaged over times uniform in (0, 1] and over masks drawn
    with probability proportional to t, it bounds the negative log-likelihood per token from above; so it is both the
    training loss and the number to report. Small times have large weights, so use evenly spaced times in a batch.

    Args:
        logits: `(batch_size, sequence_length, vocab_size)`, the model's output for `sample`; any float dtype.
        sample: the partly masked tokens, int64 `(batch_size, sequence_length)`.
        original_samples: the tokens before masking, shaped like `sample`.
        timesteps: t in (0, 1], `(batch_size,)`.
        mask_token_id: id of the mask, a column of `logits`.

    Returns:
        `(batch_size, sequence_length)`, at least float32.

    Source: Sahoo et al., arXiv 2406.07524, equation 10; the weight is m'(t) / m(t) of any schedule m(t) = c t.
    """
    log_likelihood = -F.cross_entropy(
        _without_mask(logits, mask_token_id).transpose(1, 2), original_samples, reduction="none"
    )
    weight = (sample == mask_token_id) / timesteps[:, None]
    return -log_likelihood * weight.to(log_likelihood.dtype)


def _without_mask(logits: Tensor, mask_token_id: int) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.index_fill(-1, torch.tensor([mask_token_id], device=logits.device), -torch.inf)
