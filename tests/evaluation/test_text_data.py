"""Texts from local files and from data sets, and what is held out."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from hf_maskdiff.evaluation.text_data import load_documents


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


def splits(**source: object) -> tuple[list[str], list[str]]:
    return load_documents("train", **source), load_documents("test", **source)


def test_the_last_tenth_of_one_file_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("0123456789" * 3 + "\n", encoding="utf-8")
    assert splits(data_dir=tmp_path) == (["0123456789" * 2 + "0123456"], ["789\n"])


def test_the_last_tenth_of_many_files_is_held_out(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i:02}.txt").write_text(f"document {i} – é", encoding="utf-8")
    (tmp_path / "README.md").write_text("no document")
    train, test = splits(data_dir=tmp_path)
    assert train == [f"document {i} – é" for i in range(18)]
    assert test == [f"document {i} – é" for i in (18, 19)]


@pytest.mark.parametrize("held_out", ["test", "validation", None])
@pytest.mark.parametrize("column", ["text", "story"])
def test_a_data_set_by_name(held_out: str | None, column: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    names = ["train"] if held_out is None else ["train", held_out]
    for split in names:
        rows = {column: [f"{split} {i}" for i in range(10)], "number": list(range(10))}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "set" / f"{split}.parquet")
    train, test = splits(dataset=str(tmp_path / "set"))
    if held_out is None:
        assert (train, test) == ([f"train {i}" for i in range(9)], ["train 9"])
    else:
        assert (train, test) == ([f"train {i}" for i in range(10)], [f"{held_out} {i}" for i in range(10)])


def test_errors_say_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exactly one of `dataset` and `data_dir`"):
        load_documents("train")
    with pytest.raises(ValueError, match="exactly one of `dataset` and `data_dir`"):
        load_documents("train", "name", tmp_path)
    with pytest.raises(ValueError, match="`split` must be 'train' or 'test', got 'dev'"):
        load_documents("dev", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"`data_dir` must be a folder with \.txt files"):
        load_documents("train", data_dir=tmp_path)
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict({"a": ["x"], "b": ["y"]}).to_parquet(tmp_path / "set" / "train.parquet")
    with pytest.raises(ValueError, match='must have a column "text" or one column of strings'):
        load_documents("train", dataset=str(tmp_path / "set"))


def test_the_real_shakespeare(data_folder: Path) -> None:
    (train,), (test,) = splits(data_dir=data_folder / "tinyshakespeare")
    assert (len(train), len(test)) == (1_003_854, 111_540)
    assert train.startswith("First Citizen:\nBefore we proceed")
