"""`hf-maskdiff score`: lines in, the same lines with likelihoods out, completed where they were stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_maskdiff import MDLMPipeline
from hf_maskdiff.likelihood import AllMasks
from hf_maskdiff.likelihood.named import NAMES, estimator_of
from hf_maskdiff_cli import main
from hf_maskdiff_cli.names import ESTIMATORS

PLAYS = "pipelines/mdlm-shakespeare"
LINES: list[dict[str, Any]] = [
    {"prompt": "ROMEO:\nWhat", "continuation": " light", "id": 7},
    {"continuation": "KING"},
    {"prompt": None, "continuation": " zebra", "note": "ü"},
] + [{"prompt": "JULIET:", "continuation": f" O {word}"} for word in ("Romeo", "night", "Nurse") * 11]


def command(folder: Path, *more: str, lines: list[dict[str, Any]] = LINES) -> list[str]:
    (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["score", "--pipeline", PLAYS, "--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl")]
    return [*words, "--num_samples", "16", *more]


def scored(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def test_lines_get_likelihoods(tmp_path: Path) -> None:
    assert main(command(tmp_path, "--estimator", "all_masks", lines=LINES[:3])) == 0
    pipe = MDLMPipeline.from_pretrained(PLAYS)
    pipe.set_progress_bar_config(disable=True)
    for line, found in zip(LINES[:3], scored(tmp_path), strict=True):
        expected = pipe.log_likelihood(line.get("prompt"), line["continuation"], estimator=AllMasks())
        assert {name: found[name] for name in line} == line
        assert found["log_likelihood"] == pytest.approx(expected.log_likelihoods.item(), abs=1e-4)
        assert found["standard_error"] == 0
        assert (found["num_tokens"], found["num_model_passes"]) == (
            expected.num_tokens.item(),
            expected.num_model_passes[0],
        )


def test_a_file_that_was_stopped_is_completed_to_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path)) == 0
    whole = (tmp_path / "out.jsonl").read_text()
    assert [line["standard_error"] for line in scored(tmp_path)] == [None] * len(LINES)  # one group
    for cut in (0, 5, len(whole) - 3, whole.index("\n") + 1):
        (tmp_path / "out.jsonl").write_text(whole[:cut])
        assert main(command(tmp_path)) == 0
        for first, second in zip(map(json.loads, whole.splitlines()), scored(tmp_path), strict=True):
            assert second["log_likelihood"] == pytest.approx(first.pop("log_likelihood"), abs=1e-4)
            assert first.items() <= second.items()
    capsys.readouterr()
    assert main(command(tmp_path, "--seed", "1")) == 1
    assert "same settings and lines, got other seed" in capsys.readouterr().err
    assert main(command(tmp_path, lines=LINES[:4])) == 1
    assert "got other lines" in capsys.readouterr().err
    (tmp_path / "out.jsonl.settings.json").unlink()
    assert main(command(tmp_path)) == 1


def test_the_command_line_knows_every_estimator() -> None:
    assert sorted(NAMES) == sorted(ESTIMATORS)
    assert {type(estimator_of(name)).__name__ for name in NAMES} == {
        *("Sobol", "Stratified", "Antithetic", "LLaDACounts", "Nelbo", "Independent"),
        *("AllMasks", "RandomOrders", "Chain", "PseudoLikelihood"),
    }
    assert estimator_of("stratified", 8).group_size == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "`input` must hold at least one line, got none"),
        ('{"prompt": "a"}\n', 'with a "continuation" on each line, got \'{"prompt": "a"}\' in line 1'),
        ('{"continuation": "a"}\nnonsense\n', "got 'nonsense' in line 2"),
        ('{"continuation": "a", "num_tokens": 3}\n', "got 'num_tokens' in line 1. Rename it"),
        ("\xff", "`input` must be text in UTF-8"),
    ],
)
def test_files_that_are_refused(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command(tmp_path)
    (tmp_path / "in.jsonl").write_bytes(text.encode("latin-1"))
    assert main(words) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_arguments_that_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*more: str) -> str:
        assert main(command(tmp_path, *more)) == 1
        return capsys.readouterr().err

    assert "`pipeline` must make texts" in said("--pipeline", "pipelines/maskgit-mnist")
    assert "`num_samples` must be a multiple of 16" in said("--num_samples", "20")
    assert "`output` must be a file of its own" in said("--output", str(tmp_path / "in.jsonl"))
    assert "`batch_size` must be at least 1, got 0" in said("--batch_size", "0")
    assert "`group_size` must be left out" in said("--estimator", "pseudo", "--group_size", "4")
    assert not (tmp_path / "out.jsonl").exists()


def test_the_harness_is_an_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("hf_maskdiff_cli.lm_eval.find_spec", lambda name: None)
    assert main(["lm_eval", "--tasks", "gsm8k"]) == 1
    assert 'Run `pip install "hf-maskdiff[lm-eval]"`' in capsys.readouterr().err
