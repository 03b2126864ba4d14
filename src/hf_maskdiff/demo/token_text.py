"""The text of each token, and texts whose tokens are coloured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby

from .heat_map import as_css, colour_of, text_colour_on
from .history import GIVEN, MASKED

# A masked token, as wide as a letter.
MASK_TEXT = "▁"
_UNFINISHED = "\ufffd"  # what stands for a part of a character


def pieces(decode: Callable[[list[int]], str], ids: Sequence[int], mask_token_id: int) -> list[str]:
    """What each token adds to the text; put together they are the text, with `MASK_TEXT` for each mask.

    A character that is made of several tokens belongs to the last of them. What lies between two masks is decoded by
    itself, as `decode_sequences` of the pipelines does.

    Args:
        decode: from ids to text.
        ids: of the sequence.
        mask_token_id: stands where a token is to be filled in.
    """
    found: list[str] = []
    for is_mask, run in groupby(ids, lambda token: token == mask_token_id):
        tokens = list(run)
        found += [MASK_TEXT] * len(tokens) if is_mask else _of_run(decode, tokens)
    return found


def _of_run(decode: Callable[[list[int]], str], ids: list[int]) -> list[str]:
    found: list[str] = []
    begin = end = 0  # ids[begin:end] is the last piece that is known, and what the next one is measured from
    for last in range(1, len(ids) + 1):
        known, text = decode(ids[begin:end]) if end else "", decode(ids[begin:last])
        if len(text) > len(known) and (last == len(ids) or not text.endswith(_UNFINISHED)):
            found.append(text[len(known) :])
            begin, end = end, last
        else:
            found.append("")
    return found


def filled_in(texts: Sequence[str], history: Sequence[int], step: int) -> str:
    """HTML of a text that is being filled in: masks pale, what this step revealed marked.

    Args:
        texts: of the tokens, from `pieces`.
        history: of the tokens, see `hf_maskdiff.demo.history`.
        step: the last one.
    """

    def span(text: str, when: int) -> str:
        if when == MASKED:
            return f'<span class="md-mask">{escape(text)}</span>'
        return f"<mark>{escape(text)}</mark>" if when == step and when > GIVEN else escape(text)

    return f'<div class="md-text">{"".join(map(span, texts, history))}</div>'


def coloured(texts: Sequence[str], history: Sequence[int], num_steps: int) -> str:
    """HTML of a text in which each token has the colour of the step that revealed it, and says its number."""

    def span(text: str, when: int) -> str:
        if when == MASKED:
            return f'<span class="md-mask">{escape(text)}</span>'
        colour = colour_of(when, num_steps)
        says = "given" if when == GIVEN else f"revealed in step {when} of {num_steps}"
        style = f"background:{as_css(colour)};color:{text_colour_on(colour)}"
        return f'<span class="md-token" style="{style}" title="{says}">{escape(text)}</span>'

    return f'<div class="md-text">{"".join(span(*pair) for pair in zip(texts, history, strict=True) if pair[0])}</div>'
