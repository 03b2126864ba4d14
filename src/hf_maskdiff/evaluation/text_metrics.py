"""Measures of generated text that the field quotes together: likelihood never without diversity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def sentence_entropy(sequences: Sequence[Tensor]) -> Tensor:
    """Diversity within a sequence: the entropy of its token counts, `-sum_v (c_v / L) ln(c_v / L)`, in nats.

    It falls where a sampler repeats itself, which likelihood rewards. Report the mean over sequences.

    Args:
        sequences: token ids, int64 `(length,)` each, none empty.

    Returns:
        float64 `(len(sequences),)`.

    Example:
        >>> sentence_entropy([torch.tensor([5, 5, 5, 5]), torch.tensor([1, 2, 1, 2])])
        tensor([0.0000, 0.6931], dtype=torch.float64)
    """
    _require_tokens(sequences, 1)

    def entropy(sequence: Tensor) -> Tensor:
        shares = sequence.unique(return_counts=True)[1].double() / len(sequence)
        return (shares * shares.log()).sum().abs()

    return torch.stack([entropy(sequence) for sequence in sequences])


def distinct_n(sequences: Sequence[Tensor], n: int) -> float:
    """Diversity of a whole set: the share of its n-grams of tokens that are different ones.

    It falls with the number and length of the sequences: compare sets of equal size only.

    Args:
        sequences: token ids, int64 `(length,)` each, of at least n tokens.
        n: tokens of an n-gram; n-grams do not cross from one sequence to the next.

    Raises:
        ValueError: a sequence of fewer tokens.

    Source: Li et al., arXiv 1510.03055, over a set of sequences.
    """
    _require_tokens(sequences, n)
    windows = torch.cat([sequence.unfold(0, n, 1) for sequence in sequences])
    return len(windows.unique(dim=0)) / len(windows)


@dataclass(frozen=True)
class GenerativePerplexity:
    """How likely a causal model finds a set of texts.

    Args:
        perplexity: `exp(total negative log-likelihood / scored tokens)`.
        mean_per_text: the mean over texts of each one's own perplexity.
        nats_per_token: the logarithm of `perplexity`.
        standard_error: of `nats_per_token`, over texts; NaN for one text.
        num_tokens: tokens that were scored: all but the first of each text.
    """

    perplexity: float
    mean_per_text: float
    nats_per_token: float
    standard_error: float
    num_tokens: int


@torch.no_grad()
def generative_perplexity(
    texts: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 8,
    max_length: int | None = None,
) -> GenerativePerplexity:
    """Perplexity of texts under a causal language model; state `sentence_entropy` beside it.

    Repetition lowers it, and so does a low temperature: alone it says nothing about a sampler.

    Args:
        texts: what a sampler wrote. They are tokenized with the judge's own tokenizer, without special tokens.
        model: any causal language model of transformers, in evaluation mode. Its logits are read as float32.
        tokenizer: the tokenizer of `model`.
        batch_size: texts a forward pass; it changes no result beyond rounding, since padding is hidden.
        max_length: tokens of a text that are scored at most; None scores all.

    Raises:
        ValueError: a text of fewer than two tokens, since the first of a text is not scored, or of more than `model`
            has positions.
    """
    encoded = [
        torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids[:max_length]) for text in texts
    ]
    _require_tokens(encoded, 2)
    longest, limit = max(map(len, encoded)), getattr(model.config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise ValueError(
            f"A text must have at most {limit} tokens, the positions of the judge, got one of {longest}. Pass "
            f"max_length={limit} to score the beginnings."
        )
    losses = []
    for start in range(0, len(encoded), batch_size):
        rows = encoded[start : start + batch_size]
        ids = pad_sequence(rows, batch_first=True).long().to(model.device)
        real = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(model.device)
        logits = model(input_ids=ids, attention_mask=real).logits[:, :-1].float()
        loss = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        losses += [loss[row, : len(text) - 1].double().cpu() for row, text in enumerate(rows)]
    totals = torch.stack([loss.sum() for loss in losses])
    counts = torch.tensor([len(loss) for loss in losses], dtype=torch.float64)
    rate = totals.sum() / counts.sum()
    # Of a ratio of sums, by the spread of what each text adds to it.
    spread = math.nan
    if texts[1:]:
        spread = (totals - rate * counts).std().item() / counts.mean().item() / len(texts) ** 0.5
    return GenerativePerplexity(
        perplexity=rate.exp().item(),
        mean_per_text=(totals / counts).exp().mean().item(),
        nats_per_token=rate.item(),
        standard_error=spread,
        num_tokens=int(counts.sum()),
    )


def _require_tokens(sequences: Sequence[Tensor], at_least: int) -> None:
    shortest = min((len(sequence) for sequence in sequences), default=0)
    if shortest < at_least:
        raise ValueError(
            f"Each sequence must hold at least {at_least} token(s), got one of {shortest}. Leave such sequences out."
        )
