"""Entropy, distinct n-grams and generative perplexity against values worked out by hand and text by text."""

from __future__ import annotations

import math

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from hf_maskdiff.evaluation.text_metrics import distinct_n, generative_perplexity, read_texts, sentence_entropy


def test_sentence_entropy() -> None:
    sequences = [torch.tensor([7]), torch.tensor([3, 3, 5, 5]), torch.tensor([1, 1, 1, 2])]
    expected = [0.0, math.log(2), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))]
    assert sentence_entropy(sequences).tolist() == pytest.approx(expected)


def test_distinct_n() -> None:
    sequences = [torch.tensor([1, 2, 1, 2]), torch.tensor([2, 1, 1])]
    assert distinct_n(sequences, 1) == 2 / 7
    assert distinct_n(sequences, 2) == 3 / 5  # 12 21 12, 21 11
    assert distinct_n(sequences, 3) == 3 / 3  # 121 212, 211


def test_sequences_that_are_too_short() -> None:
    with pytest.raises(ValueError, match=r"at least 3 token"):
        distinct_n([torch.tensor([1, 2, 3]), torch.tensor([1, 2])], 3)
    with pytest.raises(ValueError, match=r"at least 1 token"):
        sentence_entropy([])


@pytest.fixture(scope="module")
def judge() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    vocabulary = {word: i for i, word in enumerate(["the", "cat", "sat", "on", "a", "mat", "and", "purred"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="the"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.Fuse()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=32, n_embd=16, n_layer=2, n_head=2)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model, PreTrainedTokenizerFast(tokenizer_object=tokenizer)  # no padding token, as gpt2's


TEXTS = ["the cat sat on a mat", "a cat", "and the mat purred and purred on", "the the the"]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_generative_perplexity(judge: tuple[GPT2LMHeadModel, PreTrainedTokenizerFast], batch_size: int) -> None:
    """Against the model's own loss of each text alone: the first token is not scored, padding is not seen."""
    model, tokenizer = judge
    totals, counts = [], []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text).input_ids])
        totals.append(model(ids, labels=ids).loss.item() * (ids.shape[1] - 1))
        counts.append(ids.shape[1] - 1)
    result = generative_perplexity(TEXTS, model, tokenizer, batch_size=batch_size)
    assert result.num_tokens == sum(counts) == 5 + 1 + 6 + 2
    assert result.nats_per_token == pytest.approx(sum(totals) / sum(counts), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(sum(totals) / sum(counts)), rel=1e-5)
    each = [math.exp(total / count) for total, count in zip(totals, counts, strict=True)]
    assert result.mean_per_text == pytest.approx(sum(each) / 4, rel=1e-5)
    assert 0 < result.standard_error < 1


@pytest.mark.parametrize("batch_size", [1, 3])
def test_features_are_the_last_hidden_state_at_the_last_token(
    judge: tuple[GPT2LMHeadModel, PreTrainedTokenizerFast], batch_size: int
) -> None:
    model, tokenizer = judge
    reading = read_texts(TEXTS, model, tokenizer, batch_size=batch_size)
    for text, tokens, features in zip(TEXTS, reading.tokens, reading.features, strict=True):
        ids = torch.tensor([tokenizer(text).input_ids])
        assert tokens.tolist() == ids[0].tolist()
        with torch.no_grad():
            expected = model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    assert not model.lm_head._forward_pre_hooks


def test_perplexity_of_a_part(judge: tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]) -> None:
    whole, part = ("the cat sat on a mat", "the cat sat")
    short = generative_perplexity([whole], *judge, max_length=3)
    assert short.nats_per_token == pytest.approx(generative_perplexity([part], *judge).nats_per_token)
    assert math.isnan(short.standard_error)


def test_a_text_of_one_token_has_nothing_to_score(judge: tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]) -> None:
    with pytest.raises(ValueError, match=r"at least 2 token"):
        generative_perplexity(["the cat", "mat"], *judge)


def test_a_text_longer_than_the_judge(judge: tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]) -> None:
    with pytest.raises(ValueError, match="at most 32 tokens, the positions of the judge, got one of 33"):
        generative_perplexity(["the cat", "cat " * 33], *judge)
    scored = generative_perplexity(["the cat", "cat " * 33], *judge, max_length=32)
    assert scored.num_tokens == 1 + 31
