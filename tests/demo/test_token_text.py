"""Texts in which each token has a step: every token's part of the text, and nothing of it taken for HTML."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from hf_maskdiff.demo.heat_map import as_css, colour_of
from hf_maskdiff.demo.history import GIVEN, MASKED
from hf_maskdiff.demo.token_text import MASK_TEXT, coloured, filled_in, pieces
from hf_maskdiff.pipelines.text_output import decode_with_masks

PLAYS = Path(__file__).parents[2] / "pipelines" / "mdlm-shakespeare"
MASK = 999


def of_bytes(ids: list[int]) -> str:
    """A tokenizer whose tokens are bytes."""
    return bytes(ids).decode("utf-8", errors="replace")


def words(ids: list[int]) -> str:
    """A tokenizer of words, which puts a space between two of them."""
    return " ".join("abcdefgh"[token] for token in ids)


def test_a_character_of_several_tokens_belongs_to_the_last_one() -> None:
    ids = list("a→b".encode())
    assert pieces(of_bytes, ids, MASK) == ["a", "", "", "→", "b"]


def test_what_is_unfinished_before_a_mask_is_shown_as_such() -> None:
    first, second, third = "→".encode()
    assert pieces(of_bytes, [97, first, second, MASK, third], MASK) == ["a", "", "\ufffd", MASK_TEXT, "\ufffd"]


def test_spaces_between_words_are_kept() -> None:
    assert pieces(words, [0, 1, 2], MASK) == ["a", " b", " c"]
    assert pieces(words, [0, MASK, MASK, 2, 3], MASK) == ["a", MASK_TEXT, MASK_TEXT, "c", " d"]
    assert pieces(words, [], MASK) == []


@pytest.mark.parametrize("seed", range(4))
def test_put_together_they_are_the_text(seed: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(PLAYS)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(tokenizer), (200,), generator=generator)
    ids[torch.rand(200, generator=generator) < 0.2] = MASK * 10

    def decode(some: list[int]) -> str:
        return tokenizer.decode(some, skip_special_tokens=True)

    found = pieces(decode, ids.tolist(), MASK * 10)
    assert len(found) == len(ids)
    assert "".join(found) == decode_with_masks(tokenizer, [ids], MASK * 10, MASK_TEXT)[0]


def test_the_last_step_is_marked_and_masks_are_pale() -> None:
    html = filled_in(["To", " be", MASK_TEXT, "<i>"], [GIVEN, 1, MASKED, 2], step=2)
    assert html == f'<div class="md-text">To be<span class="md-mask">{MASK_TEXT}</span><mark>&lt;i&gt;</mark></div>'


def test_nothing_is_marked_before_the_first_step() -> None:
    assert "<mark>" not in filled_in(["To", MASK_TEXT], [GIVEN, MASKED], step=0)


def test_each_token_says_its_step() -> None:
    html = coloured(["To", "", "<b>", MASK_TEXT], [GIVEN, 1, 3, MASKED], num_steps=4)
    spans = re.findall(r'style="background:(#\w+);color:#\w+" title="([^"]+)">([^<]*)<', html)
    assert spans == [
        (as_css(colour_of(GIVEN, 4)), "given", "To"),
        (as_css(colour_of(3, 4)), "revealed in step 3 of 4", "&lt;b&gt;"),
    ]
    assert unescape(re.sub(r"<[^>]+>", "", html)) == f"To<b>{MASK_TEXT}"
