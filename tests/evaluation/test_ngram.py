"""The n-gram judge against the formula in exact fractions, and as a probability distribution."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_maskdiff.evaluation.ngram import CharacterNGram

words = st.text(alphabet="abc", min_size=1, max_size=12)


def reference(documents: list[str], order: int, context: str, character: str) -> Fraction:
    """Witten-Bell by its definition: recursion over contexts, counting anew each time."""
    alphabet = set("".join(documents))
    if order == 0:
        return Fraction(1, len(alphabet) + 1)
    context = context[len(context) - order + 1 :] if order > 1 else ""
    following = [
        text[i + len(context)]
        for text in documents
        for i in range(len(text) - len(context))
        if text[i : i + len(context)] == context
    ]
    shorter = len(context)  # the order below
    backoff = reference(documents, shorter, context[1:], character) if context else Fraction(1, len(alphabet) + 1)
    distinct = len(set(following))
    if not following:
        return backoff
    return (following.count(character) + distinct * backoff) / Fraction(len(following) + distinct)


@given(st.lists(words, min_size=1, max_size=3), st.integers(1, 4), st.text(alphabet="abcd", min_size=1, max_size=8))
def test_it_is_the_formula(documents: list[str], order: int, text: str) -> None:
    log_probs = CharacterNGram(documents, order).log_probs(text)
    expected = [reference(documents, min(order, i + 1), text[:i], text[i]) for i in range(len(text))]
    assert log_probs == pytest.approx([math.log(p) for p in expected], abs=1e-12)


@given(st.lists(words, min_size=1, max_size=3), st.integers(1, 4), st.text(alphabet="abcd", max_size=5))
def test_probabilities_sum_to_one(documents: list[str], order: int, context: str) -> None:
    """Over the characters that were seen and one that was not."""
    model = CharacterNGram(documents, order)
    characters = {*"".join(documents), "?"}
    assert sum(math.exp(model.log_probs(context + c)[-1]) for c in characters) == pytest.approx(1)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="`order` must be at least 1, got 0"):
        CharacterNGram(["a"], 0)
    with pytest.raises(ValueError, match="`documents` must hold at least one character"):
        CharacterNGram(["", ""])
