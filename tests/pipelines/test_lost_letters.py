"""Letters that a tokenizer leaves out, since it has neither a token for them nor an unknown token, are refused."""

from __future__ import annotations

import re

import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel, WordPiece
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from hf_maskdiff.pipelines.text_prompts import PromptEncoder

MASK = 0
CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def encoder(core: Tokenizer) -> PromptEncoder:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, mask_token="[MASK]")
    tokenizer.chat_template = CHAT
    return PromptEncoder(tokenizer, MASK, len(tokenizer))


def byte_level(text: str, alphabet: list[str]) -> PromptEncoder:
    """Bytes of a text and an alphabet: a model of few bytes lacks the others."""
    core = Tokenizer(BPE())
    core.pre_tokenizer, core.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.train_from_iterator([text], BpeTrainer(special_tokens=["[MASK]"], initial_alphabet=alphabet))
    return encoder(core)


FEW = "the zoo of très "


@pytest.mark.parametrize(
    ("prompt", "letters"),
    [
        ("the box", "'b', 'x'"),
        ("the [MASK:2] box", "'b', 'x'"),
        ([{"role": "user", "content": "the box"}], "'b', 'x'"),
        ("the Ω", "'Ω'"),  # neither of its bytes
        ("thé zoo", "'é'"),  # its first byte is that of è, its second is lost
    ],
)
def test_letters_that_get_lost_are_refused_by_name(prompt: object, letters: str) -> None:
    message = rf"`prompt` must be written in letters that .* got {re.escape(letters)}, which it leaves out\. Write"
    with pytest.raises(ValueError, match=message):
        byte_level(FEW, []).encode(prompt)  # type: ignore[arg-type]


def test_what_it_knows_it_takes() -> None:
    few = byte_level(FEW, [])
    for text in ("the zoo", "très zoo", "of\tthe zoo\n"):  # spaces are the tokenizer's to leave out
        assert few.tokenizer.decode(few.encode(text).ids) == re.sub("[\t\n]", "", text)
    assert few.encode("très [MASK] zoo").ids.tolist().count(MASK) == 1
    few.vocab_size += 1
    few.tokenizer.add_special_tokens({"additional_special_tokens": ["<|x|>"]})
    assert few.tokenizer.decode(few.encode("the <|x|> zoo").ids) == "the <|x|> zoo"
    full = byte_level(FEW, ByteLevel.alphabet())
    text = "naïve ☃ 日本 e\N{COMBINING ACUTE ACCENT} \N{REPLACEMENT CHARACTER} 🙂"
    assert full.tokenizer.decode(full.encode(text).ids) == text


def test_with_an_unknown_token_nothing_gets_lost() -> None:
    core = Tokenizer(WordLevel({"[MASK]": 0, "[UNK]": 1, "a": 2}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    assert encoder(core).encode("a Ω b").ids.tolist() == [2, 1, 1]


def test_what_a_normaliser_rewrites_is_not_lost() -> None:
    core = Tokenizer(WordPiece({"[MASK]": 0, "[UNK]": 1, "e": 2, "##e": 3, "f": 4, "##i": 5}, unk_token="[UNK]"))
    core.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    assert encoder(core).encode("É e\N{COMBINING ACUTE ACCENT}e \N{LATIN SMALL LIGATURE FI}").ids.tolist() == [
        2,
        2,
        3,
        4,
        5,
    ]


def test_letters_without_a_token_in_a_plain_vocabulary() -> None:
    core = Tokenizer(BPE(vocab={"[MASK]": 0, "a": 1, "b": 2}, merges=[]))
    assert encoder(core).encode("ab").ids.tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"got 'c', 'd', which"):
        encoder(core).encode("acbd")
