"""Measures of generated text: likelihood, and the diversity that must be reported beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def sentence_entropy(sequences: Sequence[Tensor]) -> Tensor:
    """Diversity within a sequence: the entropy of its token counts, `-sum_v (c_v / L) ln(c_v / L)`, in nats.

    It is low for repetitive text, to which language models assign a high likelihood. Report the mean over sequences.

    Args:
        sequences: token ids, int64 `(length,)` each, not empty.

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
    """Diversity of a whole set: the number of distinct token n-grams, as a share of all n-grams in the set.

    It falls with the number and length of the sequences: compare sets of equal size only.

    Args:
        sequences: token ids, int64 `(length,)` each, of at least n tokens.
        n: number of tokens in an n-gram; n-grams do not span two sequences.

    Raises:
        ValueError: a sequence has fewer than n tokens.

    Source: Li et al., arXiv 1510.03055, over a set of sequences.
    """
    _require_tokens(sequences, n)
    windows = torch.cat([sequence.unfold(0, n, 1) for sequence in sequences])
    return len(windows.unique(dim=0)) / len(windows)


@dataclass(frozen=True)
class GenerativePerplexity:
    """The likelihood of a set of texts under a causal model.

    Args:
        perplexity: `exp(total negative log-likelihood / scored tokens)`.
        mean_per_text: the mean of the texts' own perplexities.
        nats_per_token: the logarithm of `perplexity`.
        standard_error: standard error of `nats_per_token`, over texts; NaN for one text.
        num_tokens: number of scored tokens: all but the first of each text.
    """

    perplexity: float
    mean_per_text: float
    nats_per_token: float
    standard_error: float
    num_tokens: int


@dataclass(frozen=True)
class Reading:
    """The results of one pass of a causal model over each text.

    Args:
        tokens: the texts in the model's tokens, int64 `(length,)` each.
        losses: minus the log-probability of every token but the first, in nats, float64 `(length - 1,)` each.
        features: the model's last hidden state at each text's last token, which MAUVE uses: float32
            `(len(texts), hidden_size)`.
    """

    tokens: list[Tensor]
    losses: list[Tensor]
    features: Tensor

    @property
    def perplexity(self) -> GenerativePerplexity:
        totals = torch.stack([loss.sum() for loss in self.losses])
        counts = torch.tensor([len(loss) for loss in self.losses], dtype=torch.float64)
        rate = totals.sum() / counts.sum()
        # The standard error of a ratio of sums, from the spread of each text's contribution.
        spread = math.nan
        if self.losses[1:]:
            spread = (totals - rate * counts).std().item() / counts.mean().item() / len(totals) ** 0.5
        return GenerativePerplexity(
            perplexity=rate.exp().item(),
            mean_per_text=(totals / counts).exp().mean().item(),
            nats_per_token=rate.item(),
            standard_error=spread,
            num_tokens=int(counts.sum()),
        )


def generative_perplexity(
    texts: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 8,
    max_length: int | None = None,
) -> GenerativePerplexity:
    """Perplexity of texts under a causal language model; report `sentence_entropy` beside it.

    Repetition and a low temperature both lower perplexity, so on its own it says nothing about a sampler. Arguments and
    errors are those of `read_texts`.
    """
    return read_texts(texts, model, tokenizer, batch_size, max_length).perplexity


@torch.no_grad()
def read_texts(
    texts: Sequence[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int = 8,
    max_length: int | None = None,
) -> Reading:
    """Tokens, losses and features of texts under a causal language model, each text read once.

    Args:
        texts: the generated texts. They are tokenized with the judge's own tokenizer, without special tokens.
        model: any causal language model of transformers, in evaluation mode. Its logits are read as float32.
        tokenizer: the tokenizer of `model`.
        batch_size: number of texts in a forward pass; it changes results only by rounding, since padding is hidden.
        max_length: the largest number of tokens read of a text; None reads all.

    Raises:
        ValueError: a text has fewer than two tokens (the first is not scored), or more tokens than `model` has
            positions; the model is not causal, or the tokenizer belongs to another model.
    """
    tokens = _encode(texts, model, tokenizer, max_length)
    losses, features, states = [], [], []
    # Keep only the hidden states that the head reads, one batch at a time: those of all layers would not fit.
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
    try:
        for rows, ids, real in _batches(tokens, model, batch_size):
            states.clear()
            logits = model(input_ids=ids, attention_mask=real).logits[:, :-1].float()
            loss = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            losses += [loss[row, : len(text) - 1].double().cpu() for row, text in enumerate(rows)]
            features += [states[0][row, len(text) - 1].float().cpu() for row, text in enumerate(rows)]
    finally:
        hook.remove()
    return Reading(tokens, losses, torch.stack(features))


def _encode(
    texts: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> list[Tensor]:
    """Tokenize the texts for the judge, and check that it can judge them."""
    _require_fitting(model, tokenizer)
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
    _require_causal(model, max(encoded, key=len))
    return encoded


def _batches(
    encoded: list[Tensor], model: PreTrainedModel, batch_size: int
) -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
    """Batches: their texts' ids, and on the model's device these ids padded on the right, and their attention mask."""
    starts = range(0, len(encoded), batch_size)
    for start in tqdm(starts, desc="judge", unit="batch", leave=False, disable=len(starts) < 2):
        rows = encoded[start : start + batch_size]
        ids = pad_sequence(rows, batch_first=True).long().to(model.device)
        real = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(model.device)
        yield rows, ids, real


def _require_fitting(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ValueError` if the tokenizer has ids beyond the model's embeddings, or another token that ends texts."""
    rows = model.get_input_embeddings().weight.shape[0]
    ends = (model.config.eos_token_id, tokenizer.eos_token_id)
    elsewhere = model.name_or_path != tokenizer.name_or_path and all(isinstance(end, int) for end in ends)
    if len(tokenizer) > rows or (elsewhere and ends[0] < rows and ends[0] != ends[1]):
        raise ValueError(
            f"The tokenizer must be that of the judge, got one of {len(tokenizer)} tokens that ends texts with "
            f"{ends[1]}, and a model of {rows} tokens that ends them with {ends[0]}. Load both from one repository."
        )


def _require_causal(model: PreTrainedModel, ids: Tensor) -> None:
    """Raise `ValueError` if a later token changes earlier predictions: the model would see what it must predict."""
    two = ids[None, :8].long().to(model.device).repeat(2, 1)
    two[1, -1] = (two[1, -1] + 1) % model.get_input_embeddings().weight.shape[0]
    logits = model(input_ids=two, attention_mask=torch.ones_like(two)).logits[:, :-1].float()
    if (logits[0] - logits[1]).abs().max() > 1e-4 * logits.abs().max():
        raise ValueError(
            f"The judge must be a causal language model, got a {type(model).__name__} whose predictions change with "
            "later tokens. Pass one that reads from left to right, such as gpt2-large."
        )


def _require_tokens(sequences: Sequence[Tensor], at_least: int) -> None:
    shortest = min((len(sequence) for sequence in sequences), default=0)
    if shortest < at_least:
        raise ValueError(
            f"Each sequence must hold at least {at_least} token(s), got one of {shortest}. Leave such sequences out."
        )
