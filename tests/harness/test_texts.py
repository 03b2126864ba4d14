"""Texts of the harness as token ids, and the room of a batch: needs no harness."""

from __future__ import annotations

import pytest
import tiny_llada
import torch

from hf_maskdiff import MaskedDiffusionTextPipeline, MDLMPipeline
from hf_maskdiff.harness.room import Room
from hf_maskdiff.harness.texts import HarnessTexts, settings_of_task

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plays() -> MDLMPipeline:
    return MDLMPipeline.from_pretrained("pipelines/mdlm-shakespeare")


@pytest.fixture(scope="module")
def llada(tmp_path_factory: pytest.TempPathFactory) -> MaskedDiffusionTextPipeline:
    return MaskedDiffusionTextPipeline.from_pretrained(tiny_llada.write(tmp_path_factory.mktemp("llada")))


def test_spaces_at_the_end_of_a_context_go_to_the_continuation(plays: MDLMPipeline) -> None:
    texts = HarnessTexts(plays, None)
    for context, continuation in (("What", " light"), ("What ", "light"), ("What  \n", "light")):
        row = texts.pair(context, continuation)
        assert plays.tokenizer.decode(row.ids) == context + continuation
        assert plays.tokenizer.decode(row.ids[row.mask]) == context[4:] + continuation
    alone = texts.pair("", "light")
    assert alone.own == slice(0, len(alone.ids))


def test_what_looks_like_a_place_to_fill_in_is_text(llada: MaskedDiffusionTextPipeline) -> None:
    texts = HarnessTexts(llada, None)
    for text in ("a [MASK:3] b", "[MASK", "a \\[MASK] b", "<|mdm_mask|>"):
        row = texts.pair("x" + text, " y" + text)
        assert llada.tokenizer.decode(row.ids) == f"x{text} y{text}"
        assert llada.mask_token_id not in row.ids.tolist()
        assert llada.tokenizer.decode(texts.context(text, 3).ids) == text


def test_contexts_lose_their_beginning_where_they_are_too_long(llada: MaskedDiffusionTextPipeline) -> None:
    texts = HarnessTexts(llada, 10)
    row = texts.pair("0123456789", "abc")
    assert (llada.tokenizer.decode(row.ids), llada.tokenizer.decode(row.ids[row.own])) == ("3456789abc", "abc")
    row = texts.context("0123456789", 4)
    assert (llada.tokenizer.decode(row.ids), row.own.start) == ("456789", 6)
    with pytest.raises(ValueError, match=r"must fit the model's length 10, .* continuation of 11"):
        texts.pair("x", "01234567890")
    with pytest.raises(ValueError, match=r"must fit the model's length 10, got 11 new tokens"):
        texts.context("x", 11)
    begun = HarnessTexts(llada, 10)
    begun._start = torch.tensor([1])  # a beginning of text stays where it is
    assert begun.pair("0123456789", "abc").ids.tolist()[0] == 1
    assert llada.tokenizer.decode(begun.pair("0123456789", "abc").ids[1:]) == "456789abc"
    with pytest.raises(ValueError, match=r"`add_bos_token` needs a tokenizer with a `bos_token`"):
        HarnessTexts(llada, 10, add_bos_token=True)


def test_pieces_hold_every_token_once_and_the_one_before(llada: MaskedDiffusionTextPipeline) -> None:
    text = "the quick brown fox jumps"
    for length in (None, 5, 9, 100):
        rows = HarnessTexts(llada, length).pieces(text)
        assert "".join(llada.tokenizer.decode(row.ids[row.own]) for row in rows) == text
        assert all(length is None or len(row.ids) <= length for row in rows)
        known = [llada.tokenizer.decode(row.ids[: row.own.start]) for row in rows]
        ends = [sum(row.own.stop - row.own.start for row in rows[:k]) for k in range(len(rows))]
        assert known == [text[max(end - 1, 0) : end] for end in ends]


def test_what_was_written_ends_at_a_stop_sequence_or_an_end_of_text(llada: MaskedDiffusionTextPipeline) -> None:
    texts = HarnessTexts(llada, None)
    row = texts.context("Q: ", 20)

    def written(text: str, *until: str) -> str:
        return texts.written(llada.tokenizer("Q: " + text, return_tensors="pt").input_ids[0], row, until)

    assert written("one two\n\nQ: three", "\n\n", "Q:") == "one two"
    assert written("one two") == "one two"
    assert written("one<|user|>two") == written("one<|user|>two", "") == "onetwo"
    assert written("one<|user|>two", "<|user|>") == "one"
    assert written("one<|endoftext|>two") == written("one<|eot_id|>two") == "one"  # both end LLaDA's texts


def test_settings_of_a_task() -> None:
    given = {"until": "\n", "max_gen_toks": 7, "do_sample": False, "temperature": 0.7, "block_length": 4}
    assert settings_of_task(given, 256) == (["\n"], 7, 0.0, {"block_length": 4})
    assert settings_of_task({"do_sample": True, "temperature": 0.7}, 256) == ([], 256, 0.7, {})
    assert settings_of_task({"do_sample": True}, 256) == ([], 256, 1.0, {})
    assert settings_of_task({"do_sample": False}, 256) == settings_of_task({}, 256) == ([], 256, 0.0, {})
    assert settings_of_task({"do_sample": True, "temperature": 0.0}, 256) == ([], 256, 0.0, {})
    assert settings_of_task({"until": None, "temperature": 0.5}, 5) == ([], 5, 0.5, {})
    assert settings_of_task({"until": ["a", "b"]}, 5) == (["a", "b"], 5, 0.0, {})
    assert "until" in given  # which belongs to the harness


def test_room_is_halved_where_memory_runs_out() -> None:
    tried = []

    def call(rows: int) -> int:
        tried.append(rows)
        if rows > 5:
            raise torch.OutOfMemoryError("no room")
        return rows

    room = Room("auto", 32, CPU)
    assert (room.run(call), tried, room.rows) == (4, [32, 16, 8, 4], 4)
    assert (room.run(call), tried[4:]) == (4, [4])
    assert (Room("auto:3", None, CPU).rows, Room(None, None, CPU).rows, Room("7", 64, CPU).rows) == (16, 1, 7)
    with pytest.raises(torch.OutOfMemoryError):
        Room(32, None, CPU).run(call)  # somebody has asked for it

    def fails(rows: int) -> int:
        raise RuntimeError("another")

    with pytest.raises(RuntimeError, match="another"):
        Room("auto", None, CPU).run(fails)
    for wrong in (0, -1, "many", "1.5"):
        with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
            Room(wrong, None, CPU)
