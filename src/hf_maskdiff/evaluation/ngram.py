"""A character n-gram model: a judge of texts that needs no download and no training except counting."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

Counts = dict[str, int]


class CharacterNGram:
    r"""Judges texts offline: interpolated n-gram probabilities of characters, smoothed by Witten and Bell's rule.

    $$ P_n(c \mid h) = \frac{N(hc) + T(h)\, P_{n-1}(c \mid h')}{N(h) + T(h)} $$

    with N the counts in the training documents, T(h) the number of different characters seen after h, and h' the
    context h without its first character. A context that was never seen is shortened. The recursion ends in a uniform
    distribution over the characters of the training documents and one extra that represents all other characters. The
    first characters of a text have shorter contexts.

    Example:
        >>> model = CharacterNGram(["abab", "abba"], order=2)
        >>> log_probs = model.log_probs("ab")
        >>> len(log_probs), log_probs[1] > -0.5  # b is likely after a
        (2, True)

    Args:
        documents: the training texts; n-grams do not span two texts.
        order: n, the number of characters in an n-gram.

    Raises:
        ValueError: there are no characters to count, or `order` is below 1.

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
        """Log-probability of each character given the preceding ones, in nats."""
        return [math.log(self._probability(text[max(end - self.order, 0) : end])) for end in range(1, len(text) + 1)]

    def _probability(self, gram: str) -> float:
        """Probability of an n-gram's last character given those before it."""
        probability = 1 / (self.num_characters + 1)
        for length in range(1, len(gram) + 1):
            suffix = gram[-length:]
            seen = self._followers[length - 1].get(suffix[:-1])
            if seen is None:  # then no longer context was seen either
                break
            total, distinct = seen
            probability = (self._counts[length - 1].get(suffix, 0) + distinct * probability) / (total + distinct)
        return probability


def _count(documents: Sequence[str], length: int) -> Counts:
    return Counter(text[i : i + length] for text in documents for i in range(len(text) - length + 1))


def _followers(counts: Counts) -> dict[str, tuple[int, int]]:
    """For each context, how many characters follow it in total, and how many different ones."""
    followers: dict[str, tuple[int, int]] = {}
    for gram, count in counts.items():
        total, distinct = followers.get(gram[:-1], (0, 0))
        followers[gram[:-1]] = (total + count, distinct + 1)
    return followers
