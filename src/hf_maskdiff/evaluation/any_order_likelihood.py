"""The likelihood of a sequence under a model that fills it in one token at a time, in random order."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_maskdiff.denoisers import TextDenoiser
from hf_maskdiff.evaluation.likelihood import subs_log_probs


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
    one token a pass draws from, and cares for how tokens fit together, unlike the pseudo-likelihood.

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
    count, num_rows = len(positions), len(input_ids) * num_masks
    offset = torch.rand(len(input_ids), num_masks, generator=generator, dtype=torch.float64)
    sizes = ((torch.arange(num_masks) + offset) * count / num_masks).long().flatten() + 1
    order = torch.rand(num_rows, count, generator=generator).argsort(-1).argsort(-1)
    chosen = (order < sizes[:, None]).to(input_ids.device)
    tokens = input_ids.repeat_interleave(num_masks, 0)
    places = positions.to(input_ids.device).expand(num_rows, -1)
    masked = tokens.scatter(1, places, tokens.gather(1, places).masked_fill(chosen, mask_token_id))
    found = []
    for rows in torch.arange(num_rows).split(batch_size):
        logits = denoiser(masked[rows], 1.0, logits_at=places[rows])
        log_probs = subs_log_probs(logits, masked[rows].gather(1, places[rows]), mask_token_id)
        true = log_probs.gather(-1, tokens[rows].gather(1, places[rows])[..., None])[..., 0].double()
        found.append(torch.where(chosen[rows], true, 0.0).sum(-1).cpu() / sizes[rows])
    return torch.cat(found).view(-1, num_masks).mean(-1)
