"""The benchmarks of looking ahead and of adaptive groups: equal passes, and constant groups that are the pipeline's."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from test_partial_caching_benchmark import corpus, digits

__all__ = ["corpus", "digits"]  # fixtures

ROOT = Path(__file__).parents[1]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(ROOT)
    return importlib.import_module


def test_samplers_that_look_ahead_are_compared_at_equal_passes(program: Any, corpus: Path, tmp_path: Path) -> None:
    arguments = ["--text_dir", str(corpus), "--output_dir", str(tmp_path), "--num_seeds", "1", "--num_samples", "2"]
    names = ["moment", "moment-ahead-2", "halton-ahead-4-left"]
    cells = program("lookahead").main([*arguments, "--samplers", *names, "--passes", "5"])["text"]["cells"]
    took = {cell["sampler"]: (cell["steps"], cell["passes"]) for cell in cells if cell["steps"]}
    assert took == {"moment 4": (5, 5.0), "moment-ahead-2 4": (3, 5.0), "halton-ahead-4-left 4": (2, 5.0)}


def test_constant_groups_are_those_of_partial_caching(program: Any, corpus: Path, tmp_path: Path) -> None:
    text, adaptive = program("text"), program("adaptive_groups")
    options = ["--data_dir", str(corpus), "--num_sequences", "3", "--output_dir", str(tmp_path)]
    args = text.parse_args(options)
    args.most = 8
    bench = adaptive.TextBench(args)
    ours, cost = bench.write("constant 3", 3, 0)
    theirs, expected = text.Bench.write(bench, "moment 4, 3 groups", 3, 0)
    assert all(torch.equal(own, other) for own, other in zip(ours, theirs, strict=True))
    own, other = ({name: value for name, value in one.items() if name != "seconds"} for one in (cost, expected))
    assert own == other
    for rule, least, most in (("change 1000", 3, 3), ("stop 1", 3, 3), ("entropy 0.01", 3 * 7, 3 * 7)):
        assert least <= bench.write(rule, 3, 0)[1]["partial passes"] <= most, rule


def test_constant_groups_of_digits_are_those_of_partial_caching(program: Any, digits: Path, tmp_path: Path) -> None:
    images, adaptive = program("images"), program("adaptive_groups")
    args = images.parse_args(["--data_dir", str(digits), "--num_images", "8", "--output_dir", str(tmp_path)])
    args.most = 8
    bench = adaptive.ImageBench(args, images.SAMPLERS)
    ours, cost = bench.draw("constant 2", 3, 0)
    theirs, expected = images.Bench.draw(bench, "moment, 2 groups", 3, 0)
    assert torch.equal(ours, theirs)
    assert cost["partial passes"] == expected["partial passes"] == 3


def test_the_benchmark_of_adaptive_groups(
    program: Any, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    adaptive = program("adaptive_groups")
    monkeypatch.setattr(
        adaptive, "BOUNDS", {"text": {"constant": [1, 4], "entropy": [5], "change": [0.5], "stop": [0.05]}}
    )
    arguments = ["--text_dir", str(corpus), "--output_dir", str(tmp_path), "--num_seeds", "2", "--num_samples", "2"]
    (cells,) = adaptive.main([*arguments, "--text_steps", "2"]).values()
    assert len(cells) == 2 * 5
    assert len(capsys.readouterr().out.strip().splitlines()) == 2 + 5
    picture = (tmp_path / "adaptive_groups.png").read_bytes()
    adaptive.plot({"text": [cell | {"nats": 2 * cell["nats"]} for cell in cells]}, tmp_path / "other.png")
    assert (tmp_path / "other.png").read_bytes() != picture  # it shows what was measured


def test_the_gain_is_the_distance_from_the_line(program: Any) -> None:
    cells = [
        {"sampler": name, "steps": 8, "seed": seed, "partial passes": passes, "nats": nats + seed}
        for seed in range(2)
        for name, passes, nats in (("constant 1", 0, 3.0), ("constant 2", 8, 2.0), ("stop 0.1", 4, 2.25))
    ]
    ((name, (gain, error)),) = program("adaptive_groups").below_the_line(cells, "nats").items()
    assert (name, gain, error) == ("stop 0.1", 0.25, 0.0)
