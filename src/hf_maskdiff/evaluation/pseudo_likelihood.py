"""Pseudo-likelihood: how likely a model finds each token of a sequence given all the others."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_maskdiff.denoisers import TextDenoiser
from hf_maskdiff.evaluation.likelihood import subs_log_probs


@torch.no_grad()
def pseudo_log_likelihood(
    denoiser: TextDenoiser, input_ids: Tensor, positions: Tensor, mask_token_id: int, batch_size: int = 32
) -> Tensor:
    """Log-probability of every token at `positions` when it alone is masked: no order of filling in has a part in it.

    `log p(x_i | x without x_i)`, normalised over all tokens but the mask. Its mean, with the sign turned, is the
    pseudo-likelihood in nats per token, lower for what the model finds more natural. It costs a row of a model pass for
    each number.

    Example:

        encoded = pipe.tokenizer(["EVQLVESGG"], return_tensors="pt")
        positions = torch.arange(1, 10)  # the residues, without [CLS] and [SEP]
        nats = -pseudo_log_likelihood(pipe.denoiser, encoded.input_ids, positions, pipe.mask_token_id).mean()

    Args:
        denoiser: of a text pipeline, or `text_denoiser(model)`.
        input_ids: whole sequences as the model is used to them, special tokens included and without padding, int64
            `(num_sequences, length)`, on the model's device.
        positions: the places to be scored, int64 `(n,)`, or `(num_sequences, n)` where they differ.
        mask_token_id: the mask, a row of the model.
        batch_size: rows of a model pass.

    Returns:
        `(num_sequences, n)`, at least float32, at most 0.

    Raises:
        ValueError: other shapes or dtypes, places outside the sequences, sequences that hold masks.
    """
    if input_ids.ndim != 2 or input_ids.dtype != torch.int64:
        raise ValueError(
            f"`input_ids` must be int64 of shape (num_sequences, length), got {input_ids.dtype} "
            f"{tuple(input_ids.shape)}. Pass sequences of other lengths one after another."
        )
    if bool((input_ids == mask_token_id).any()):
        raise ValueError(f"`input_ids` must hold no mask, got {mask_token_id} in them. Fill them in first.")
    num_sequences, length = input_ids.shape
    if (
        positions.ndim not in (1, 2)
        or positions.dtype != torch.int64
        or positions.shape[:-1]
        not in (
            (),
            (num_sequences,),
        )
    ):
        raise ValueError(
            f"`positions` must be int64 of shape (n,) or ({num_sequences}, n), got {positions.dtype} "
            f"{tuple(positions.shape)}. Pass the places to be scored."
        )
    if bool(((positions < 0) | (positions >= length)).any()):
        raise ValueError(
            f"`positions` must lie in 0 .. {length - 1}, got {int(positions.min())} to {int(positions.max())}. Count "
            "the special tokens too."
        )
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}. Pass the rows of a model pass.")
    positions = positions.to(input_ids.device).expand(num_sequences, -1)
    places = positions.reshape(-1, 1)
    rows = torch.arange(num_sequences, device=input_ids.device).repeat_interleave(positions.shape[1])
    parts = [input_ids.new_zeros(0, dtype=torch.float32)]
    for start in range(0, len(rows), batch_size):
        tokens, place = input_ids[rows[start : start + batch_size]], places[start : start + batch_size]
        masked = tokens.scatter(1, place, mask_token_id)
        logits = denoiser(masked, 1 / length, logits_at=place)
        log_probs = subs_log_probs(logits, masked.gather(1, place), mask_token_id)
        parts.append(log_probs.gather(-1, tokens.gather(1, place)[..., None])[:, 0, 0])
    return torch.cat(parts).view(num_sequences, -1)
