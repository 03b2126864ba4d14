"""The benchmarks of cached decoding: ours makes the published loops' passes and tokens, and all tables are complete."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_partial_caching_benchmark import TEXT, corpus, program

__all__ = ["corpus", "program"]  # fixtures

TINY = ["--vocab_sizes", "300", "--prompt_lengths", "9", "--new_tokens", "16", "--block_length", "8"]
TINY += ["--steps_a_block", "4", "--hidden_size", "64", "--num_layers", "2", "--repeats", "1"]


def test_ours_makes_the_same_passes_and_tokens(
    program: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoding, contests = program("text_decoding"), program("text_contests").CONTESTS
    arguments = [*TINY, "--batch_sizes", "1", "3", "--output_dir", str(tmp_path)]
    rows = decoding.main([*arguments, "--shapes", "llada"])
    batches = [name for name in contests if contests[name].batches]
    assert [(row["contest"], row["batch_size"]) for row in rows] == [
        *((name, 1) for name in contests),
        *((name, 3) for name in batches),
    ]
    for row in rows:
        assert row["same tokens"] == (None if contests[row["contest"]].draws else 1), row["contest"]
        for counts in (row["passes"], row["positions"]):
            assert 0 < counts["ours"] <= counts["theirs"], row["contest"]
        assert row["ratio"] > 0
        assert 0 < row["memory"]["ours"] < row["memory"]["theirs"]
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)
    more = decoding.main([*arguments, "--shapes", "qwen3", "--contests", "dLLM, dual", "--resume", "--parts"])
    assert more[: len(rows)] == rows
    for row in more[len(rows) :]:
        for parts in row["parts"].values():
            assert 0 < parts["products"] + parts["attention"] < parts["passes"] < parts["all"]
        assert 0 < row["least ratio"]["products and attention"] < row["least ratio"]["passes"]
    assert json.loads((tmp_path / "text_decoding.json").read_text()) == more
    assert [(row["shape"], row["same tokens"]) for row in more[len(rows) :]] == [("qwen3", 1), ("qwen3", 1)]


@pytest.mark.exhaustive
def test_quality_under_caches(
    program: Callable[[str], Any], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    caches = program("text_caches")
    arguments = ["--data_dir", str(corpus), "--pipeline", str(TEXT), "--block_length", "16", "--steps", "4"]
    arguments += ["--num_sequences", "2", "--num_seeds", "1"]
    results = caches.main([*arguments, "--output_dir", str(tmp_path / "one"), "--batch_size", "2"])
    kinds = [f"{kind}; {cache}" for kind in caches.ADAPTIVE for cache in caches.ADAPTIVE_CACHES]
    names = [caches.REFERENCE, *caches.CACHES, *kinds]
    assert [(cell["sampler"], cell["seed"]) for cell in results["cells"]] == [(n, 0) for n in names]
    cells = {cell["sampler"]: cell for cell in results["cells"]}
    assert [cells[name]["passes"] for name in ("no cache", "prefix", "dual", "delayed")] == [16] * 4
    assert cells["partial"]["passes"] == cells["dual + partial"]["passes"] == 32
    # Rows of 64 in four blocks of 16, of which each step but the first computes the block, or all that is not before.
    assert cells["no cache"]["positions"] == 16
    assert cells["dual"]["positions"] == 4 * (1 + 3 / 4)
    assert cells["prefix"]["positions"] == 4 + 3 * (1 + 3 / 4 + 1 / 2 + 1 / 4)
    assert cells["dual, afresh every 4"]["positions"] == cells["dual"]["positions"]  # no step has a multiple of 4
    assert cells["dual, afresh every 4"]["nats"] == cells["dual"]["nats"] != cells["no cache"]["nats"]
    for kind in caches.ADAPTIVE:
        assert cells[f"{kind}; dual"]["positions"] < cells[f"{kind}; no cache"]["positions"]
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(names)
    assert (tmp_path / "one" / "text_decoding.png").stat().st_size > 5_000
    # Rows do not depend on what is in their batch.
    some = ["--caches", "dual", "--adaptive", "factor 1", "KLASS", "--adaptive_caches", "dual"]
    again = caches.main([*arguments, *some, "--output_dir", str(tmp_path / "two"), "--batch_size", "1"])
    assert len(again["cells"]) == 4
    for other in again["cells"]:
        cell = cells[other["sampler"]]
        assert {name: cell[name] for name in (*caches.MEASURES, "positions")} == {
            name: other[name] for name in (*caches.MEASURES, "positions")
        }, cell["sampler"]
