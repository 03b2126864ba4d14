"""The likelihood of a sequence under a model that fills it in one token at a time, in random order."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_maskdiff.denoisers import TextDenoiser
from hf_maskdiff.likelihood import ScoredTokens, Scoring, Stratified


@torch.no_grad()
def any_order_log_likelihood(
    denoiser: TextDenoiser,
    input_ids: Tensor,
    positions: Tensor,
    mask_token_id: int,
    num_masks: int = 16,
    generator: torch.Generator | None = None,
    batch_size: int = 32,
) -> Tensor:
    """Log-likelihood per token, estimated without bias from `num_masks` random masks of each sequence.

    `E_order [sum_k log p(x_order(k) | the tokens before it in the order)] / n`: for how many tokens are masked, equally
    many of 1 .. n, and which ones, at random, it is the mean of `log p` at the masked tokens. It is what a sampler of
    one token a pass draws from, and cares for how tokens fit together, unlike the pseudo-likelihood. A pipeline's
    `log_likelihood` gives the same of texts and prompts, with error bars and other estimators.

    Example:

        ids = pipe.tokenizer(["EVQLVESGG"], return_tensors="pt").input_ids
        positions = torch.arange(1, 10)  # the residues, without [CLS] and [SEP]
        nats = -any_order_log_likelihood(pipe.denoiser, ids, positions, pipe.mask_token_id).mean()

    Args:
        denoiser: of a text pipeline, or `text_denoiser(model)`.
        input_ids: whole sequences as the model is used to them, int64 `(num_sequences, length)`.
        positions: the places to be scored, the same in all sequences, int64 `(n,)`; the others are never masked.
        mask_token_id: the mask, a row of the model.
        num_masks: of each sequence; their sizes are spread evenly over 1 .. n, with a random offset.
        generator: of sizes and places, on the CPU.
        batch_size: rows of a model pass.

    Returns:
        `(num_sequences,)`, float64, in nats per token, at most 0.

    Raises:
        ValueError: other shapes or dtypes, no mask asked for.
    """
    if input_ids.ndim != 2 or input_ids.dtype != torch.int64 or positions.ndim != 1 or not len(positions):
        raise ValueError(
            "`input_ids` must be int64 (num_sequences, length) and `positions` (n,) with n of at least 1, got "
            f"{input_ids.dtype} {tuple(input_ids.shape)} and {tuple(positions.shape)}. Pass sequences of one length."
        )
    if num_masks < 1:
        raise ValueError(f"`num_masks` must be at least 1, got {num_masks}. Pass the passes for each sequence.")
    nowhere = torch.zeros(input_ids.shape[1], dtype=torch.bool)
    texts = [ScoredTokens(ids, positions.cpu(), nowhere) for ids in input_ids.cpu()]
    own = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
    estimator = Stratified(num_masks)
    patterns = [estimator.patterns(len(positions), num_masks, own) for _ in texts]
    passes = [one.passes(tells_time=True) for one in patterns]
    found = Scoring(denoiser, mask_token_id, input_ids.device, batch_size)(texts, passes)
    totals = [
        one.totals(one.of_tokens(log_probs, of_one)).mean()
        for one, of_one, log_probs in zip(patterns, passes, found, strict=True)
    ]
    return torch.stack(totals) / len(positions)
