"""Files that are no models: one `ValueError` each, before a library stumbles over them or fills the memory."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging import version
from small_models import MASK, VOCAB, change_json, save_a2d, save_bert, save_tokenizer
from transformers import Qwen2Tokenizer

from hf_maskdiff import MaskedDiffusionTextPipeline, MDLMPipeline, MDLMTransformer
from hf_maskdiff.models import MDLMForMaskedLM
from hf_maskdiff.published import load_published_text, open_tokenizer
from hf_maskdiff.published.malformed import refusing
from hf_maskdiff.published.tokenizer_files import check_ids

pytestmark = pytest.mark.skipif(
    version.parse(transformers.__version__) < version.parse("5.1"),
    reason="the oldest tokenizers and transformers end the process on some of these files",
)


NESTED = "[" * 100_000


def load(folder: Path, **kwargs: Any) -> object:
    return load_published_text(folder, attention="full", **kwargs)


# --- tokenizers -------------------------------------------------------------------------------------------------------


def words(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        def change(file: dict) -> dict:
            file["model"]["vocab"] |= changes
            return file

        change_json(folder / "tokenizer.json", change)

    return spoil


def added(index: int) -> Callable[[Path], None]:
    token = {"content": "zz", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    token |= {"special": True, "id": index}
    return lambda folder: change_json(folder / "tokenizer.json", lambda file: file | {"added_tokens": [token]})


def settings(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "tokenizer_config.json", lambda file: file | changes)


def text(file: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(content)


TOKENIZERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "negative id": (
        words(w5=-3),
        r"the tokenizer in '.*' must be well-formed, got Exception: .* Fetch its files again",
    ),
    "huge id": (words(w5=2**40), "must be well-formed"),
    "large id": (words(w5=2**31), r"must be rows of the model, 0 .. 39, got 2147483648 for 'w5' among 40 tokens"),
    "id just beyond": (words(w5=VOCAB), r"must be rows of the model, 0 .. 39, got 40 for 'w5'"),
    "one more token": (words(more=VOCAB), r"rows of the model, 0 .. 39, got 40 for 'more' among 41 tokens"),
    "duplicate ids": (words(w5=6), r"ids must be different ones, got 6 for 'w[56]' and for 'w[56]'"),
    "a word for an id": (words(w5="x"), "must be well-formed"),
    "a fraction for an id": (words(w5=1.5), "must be well-formed"),
    "negative added id": (added(-2), "must be well-formed"),
    "huge added id": (added(2**40), "must be well-formed"),
    "nested tokenizer.json": (text("tokenizer.json", NESTED), "must be well-formed, got RecursionError"),
    "nested tokenizer_config.json": (text("tokenizer_config.json", NESTED), "must be well-formed, got RecursionError"),
    "a list of settings": (text("tokenizer_config.json", "[]"), "must be well-formed, got AttributeError"),
    "a number for a mask": (settings(mask_token=5), "must be well-formed, got TypeError"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_tokenizers(case: str, tmp_path: Path) -> None:
    spoil, message = TOKENIZERS[case]
    folder = save_bert(tmp_path / "model")
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        MaskedDiffusionTextPipeline.from_pretrained(folder)


LETTERS = {letter: i for i, letter in enumerate("abcdefgh")}


@pytest.mark.parametrize(
    ("vocabulary", "merges"),
    [
        (json.dumps(LETTERS), "x y\n"),  # letters that a merge needs are missing
        (json.dumps(LETTERS), "a b\n"),  # and so is what it makes: a panic of the library
        (json.dumps(LETTERS), "x\n"),
        (json.dumps(LETTERS | {"a": -1}), ""),
        (json.dumps(["a"]), ""),
        (NESTED, ""),
        ("{", ""),
    ],
)
def test_letters_and_merges(vocabulary: str, merges: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(vocabulary)
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    with pytest.raises(ValueError, match=r"must be well-formed, got (Exception: Error while init|PanicException)"):
        open_tokenizer(tmp_path, Qwen2Tokenizer)


def test_a_panic_of_a_library_is_no_more_than_an_error() -> None:
    class PanicException(BaseException):  # as libraries in Rust raise it
        pass

    message = r"^It must be well-formed, got PanicException: out of range\. Leave it\.$"
    with pytest.raises(ValueError, match=message), refusing("It", "Leave it."):
        raise PanicException("out\nof range")
    for passed in (KeyboardInterrupt(), SystemExit(), OSError("x"), ValueError("y"), ImportError("z")):
        with pytest.raises(type(passed)) as caught, refusing("It", "Leave it."):
            raise passed
        assert caught.value is passed


def test_a_whole_tokenizer_passes(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(save_tokenizer(tmp_path))
    check_ids(tokenizer, VOCAB)
    with pytest.raises(ValueError, match=r"rows of the model, 0 .. 38, got 39 for 'w39' among 40 tokens"):
        check_ids(tokenizer, VOCAB - 1)
    with pytest.raises(OSError, match="nowhere"):
        open_tokenizer(tmp_path / "nowhere")


# --- configurations ---------------------------------------------------------------------------------------------------

SIZES = [0, -1, 2**20, 2**40, 2**70, "16", 16.5, [2**40], {}]
NAMES = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]


@pytest.fixture
def little_memory() -> object:
    """A few gigabytes beyond what is there: a model that is too large fails at once, and not the machine."""
    before, memory = resource.getrlimit(resource.RLIMIT_AS), Path("/proc/self/statm")
    if memory.exists():
        used = int(memory.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 4 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes_of_models_of_transformers(size: object, little_memory: object, tmp_path: Path) -> None:
    folders = {save_bert(tmp_path / "bert"): NAMES, save_a2d(tmp_path / "a2d"): [*NAMES, "head_dim"]}
    for folder, names in folders.items():
        whole = (folder / "config.json").read_text()
        for name in names:
            change_json(folder / "config.json", lambda before, name=name: before | {name: size})
            with pytest.raises(ValueError, match=r"config\.json.*(Take|Fetch)|must fit its config\.json"):
                load(folder)
            (folder / "config.json").write_text(whole)
        load(folder)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes_of_mdlm(size: object, little_memory: object, tmp_path: Path) -> None:
    sizes = {"vocab_size": 12, "hidden_dim": 16, "cond_dim": 8, "n_blocks": 2, "n_heads": 2, "model_length": 16}
    torch.manual_seed(0)
    MDLMForMaskedLM.from_transformer(MDLMTransformer(**sizes)).save_pretrained(tmp_path)
    whole = (tmp_path / "config.json").read_text()
    for name in ("vocab_size", "hidden_dim", "cond_dim", "n_blocks", "n_heads"):
        change_json(tmp_path / "config.json", lambda before, name=name: before | {name: size})
        for opened in (MDLMTransformer, MDLMForMaskedLM):
            with pytest.raises(ValueError, match=r"config\.json"):
                opened.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"config\.json"):
            MDLMPipeline.from_pretrained(tmp_path, tokenizer=str(save_tokenizer(tmp_path / "tokenizer", 11)))
        (tmp_path / "config.json").write_text(whole)
    MDLMTransformer.from_pretrained(tmp_path)


def test_many_parameters_of_small_sizes(little_memory: object, tmp_path: Path) -> None:
    """Every size is one that a weight has, and all of them together are the largest of these."""
    largest = dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers"), VOCAB)
    folder = save_bert(tmp_path, **largest)
    with pytest.raises(
        ValueError, match=r"config\.json must describe the weights beside it, got one for \d+ parameters"
    ):
        load(folder)


@pytest.mark.parametrize("content", [NESTED, '{"a":' * 100_000, "[]", "3", "{", "\x00", "nul"])
@pytest.mark.parametrize("file", ["config.json", "model_index.json"])
def test_settings_that_are_none(content: str, file: str, tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "model")
    (folder / file).write_text(content)
    for opened in (MaskedDiffusionTextPipeline, MDLMPipeline):
        with pytest.raises(ValueError, match=rf"{file} in '.*' must (be|hold)"):
            opened.from_pretrained(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "no such"},
        {"hidden_act": 5},
        {"num_attention_heads": 3},
        {"layer_norm_eps": "x"},
        {"max_position_embeddings": "x"},
        {"torch_dtype": "no such", "dtype": "no such"},
        {"model_type": ["bert"]},
        {"model_type": None},
    ],
    ids=str,
)
def test_settings_that_make_no_sense(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json|multiple of the number|must hold a LLaDA"):
        load(save_bert(tmp_path, **changes))


@pytest.mark.parametrize("kept", [0, 7, 100, 0.5])
def test_weights_that_are_cut_short(kept: float, tmp_path: Path) -> None:
    folder = save_bert(tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(ValueError, match=r"model\.safetensors' must hold whole safetensors, it does not: .* Fetch it"):
        load(folder)


# --- masks and ends of texts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [-1, "4", 4.5, True, [4]], ids=str)
def test_a_mask_must_be_a_row(mask: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`mask_token_id` must be a row of the model, 0 .. 39, got|well-formed"):
        load(save_a2d(tmp_path, mask_token_id=mask))


def test_a_mask_beyond_the_model_is_the_tokenizer_s(tmp_path: Path) -> None:
    assert load(save_a2d(tmp_path, mask_token_id=VOCAB)).mask_token_id == MASK


@pytest.mark.parametrize("end", [-1, VOCAB, 2**40, "3", [3, VOCAB]], ids=str)
def test_an_end_of_text_must_be_a_row(end: object, tmp_path: Path) -> None:
    folder = save_a2d(tmp_path)
    change_json(folder / "generation_config.json", lambda before: before | {"eos_token_id": end})
    with pytest.raises(ValueError, match=r"`eos_token_id` must be a row of the model, 0 .. 39, got|well-formed"):
        load(folder)
