"""An n-gram model of characters: a judge of texts that needs no download and no training beyond counting."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

Counts = dict[str, int]


class CharacterNGram:
    r"""Judges texts offline: interpolated n-gram probabilities of characters, smoothed by Witten and Bell's rule.

    $$ P_n(c \mid h) = \frac{N(hc) + T(h)\, P_{n-1}(c \mid h')}{N(h) + T(h)} $$

    with N the counts in the training documents, T(h) the number of different characters seen after h, and h' the
    context without its first character; a context never seen is shortened. Below the unigram all characters are equally
    probable: those of the training documents, and one more that stands for any other. The first characters of a text
    have shorter contexts.

    Example:
        >>> model = CharacterNGram(["abab", "abba"], order=2)
        >>> log_probs = model.log_probs("ab")
        >>> len(log_probs), log_probs[1] > -0.5  # b is likely after a
        (2, True)

    Args:
        documents: the training texts; n-grams do not cross from one to the next.
        order: n, the characters of an n-gram.

    Raises:
        ValueError: no characters to count, or `order` below 1.

    Source: Witten and Bell, "The zero-frequency problem", IEEE Transactions on Information Theory 37, 1991, method C.
    """

    def __init__(self, documents: Sequence[str], order: int = 6) -> None:
        if order < 1:
            raise ValueError(f"`order` must be at least 1, got {order}. Pass 6 for characters.")
        if not any(documents):
            raise ValueError("`documents` must hold at least one character, got none. Pass the training texts.")
        self.order = order
        self._counts = [_count(documents, length) for length in range(1, order + 1)]
        self._followers = [_followers(counts) for counts in self._counts]
        self.num_characters = len(self._counts[0])

    def log_probs(self, text: str) -> list[float]:
        """Log-probability of every character given those before it, in nats."""
        return [math.log(self._probability(text[max(end - self.order, 0) : end])) for end in range(1, len(text) + 1)]

    def _probability(self, gram: str) -> float:
        """Of the last character of an n-gram after the others."""
        probability = 1 / (self.num_characters + 1)
        for length in range(1, len(gram) + 1):
            suffix = gram[-length:]
            seen = self._followers[length - 1].get(suffix[:-1])
            if seen is None:  # nor was any longer context
                break
            total, distinct = seen
            probability = (self._counts[length - 1].get(suffix, 0) + distinct * probability) / (total + distinct)
        return probability


def _count(documents: Sequence[str], length: int) -> Counts:
    return Counter(text[i : i + length] for text in documents for i in range(len(text) - length + 1))


def _followers(counts: Counts) -> dict[str, tuple[int, int]]:
    """Of every context: how often something follows it, and how many different characters do."""
    followers: dict[str, tuple[int, int]] = {}
    for gram, count in counts.items():
        total, distinct = followers.get(gram[:-1], (0, 0))
        followers[gram[:-1]] = (total + count, distinct + 1)
    return followers
