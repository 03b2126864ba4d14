"""The commands behind docs/theory.md and docs/results.md, at small sizes: they run, and the numbers go the same way."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_partial_caching_benchmark import digits

__all__ = ["digits"]  # a fixture

ROOT = Path(__file__).parents[1]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.mark.exhaustive
def test_the_bound_and_the_closed_form(
    program: Callable[[str], Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    equivalence = program("equivalence")
    enumerated = equivalence.enumerated
    monkeypatch.setattr(equivalence, "enumerated", lambda alphas: enumerated(alphas[:1]))
    results = equivalence.main(
        f"--steps 4 --choice_temperatures 1 6 --num_trajectories 3 --num_draws 16 --output_dir {tmp_path}".split()
    )
    assert len(results["enumerated"]) == 12
    assert all(0 < row["true"] <= row["bound"] for row in results["enumerated"])
    assert all(abs(row["exact"] / row["closed"] - 1) < 0.02 for row in results["closed forms"] if row["N"] == 512)
    bounds = {(row["model"], row["steps"], row["alpha"]): row["bound"][0] for row in results["trajectories"]}
    for kind in ("image", "text"):
        assert bounds[kind, 4, 1.0] > 1 > bounds[kind, 4, 6.0]
    assert all(tuple(row["terms"][-1]) == (0.0, 0.0) for row in results["trajectories"])
    assert "vacuous" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"equivalence.json", "equivalence.png"}


@pytest.mark.exhaustive
def test_samplers_on_the_chain(
    program: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What docs/results.md says of them, each beyond two standard errors of this small run."""
    markov_chain = program("markov_chain")
    few = ["--steps", "4", "--num_substeps", "1", "2", "--samplers", "uniform", "halton", "moment 16", "hybrid 16"]
    many = ["--steps", "64", "--num_substeps", "1", "--samplers", "uniform", "moment, 1"]
    size = ["--num_samples", "400", "--num_seeds", "3", "--output_dir"]
    runs = [[*size, str(tmp_path / name), *cells] for name, cells in (("few", few), ("many", many))]
    results = [markov_chain.main(run) for run in runs]
    means = markov_chain.summarise([cell for found in results for cell in found["cells"]])

    def below(measure: str, first: tuple[str, int], second: tuple[str, int]) -> bool:
        (a, a_error), (b, b_error) = means[first][measure], means[second][measure]
        return a + 2 * (a_error**2 + b_error**2) ** 0.5 < b

    assert below("dependence", ("halton", 4), ("uniform", 4))
    assert below("dependence", ("hybrid 16", 4), ("moment 16", 4))
    assert below("pairs", ("hybrid 16", 4), ("moment 16", 4))
    for name in ("uniform", "moment 16", "hybrid 16"):
        assert below("dependence", (f"{name}, 2 groups", 4), (name, 4))
    assert below("nats", ("moment, 1", 64), (markov_chain.REFERENCE, 0))
    assert below("pairs", ("uniform", 64), ("moment, 1", 64))
    assert abs(means["uniform", 64]["dependence"][0]) < 1e-9
    printed = capsys.readouterr().out
    assert [markov_chain.main([*run, "--resume"]) for run in runs] == results
    assert capsys.readouterr().out == printed


def test_between_two_orders_on_a_longer_chain(
    program: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exploring with most of the positions lowers the dependence, with all of them most."""
    markov_chain = program("markov_chain")
    names = ["moment 16", "hybrid 16, halton 0.75", "halton 16"]
    arguments = f"--length 96 --steps 4 --num_substeps 1 --num_samples 200 --num_seeds 3 --output_dir {tmp_path}"
    means = markov_chain.summarise(markov_chain.main([*arguments.split(), "--samplers", *names])["cells"])
    dependence = [means[name, 4]["dependence"] for name in names]
    for (first, first_error), (second, second_error) in pairwise(dependence):
        assert second + 2 * (first_error**2 + second_error**2) ** 0.5 < first
    assert "| hybrid 16, halton 0.75 | 4 | " in capsys.readouterr().out


def test_orders_on_a_grid(
    program: Callable[[str], Any],
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = f"--data_dir {digits} --num_images 16 --num_seeds 2 --steps 2 --output_dir {tmp_path / 'out'}".split()
    results = program("hybrid").main([*arguments, "--samplers", "moment", "halton", "halton 0.5", "uniform 1>0"])
    assert {cell["sampler"] for cell in results["cells"] if cell["steps"]} == {
        "moment",
        "halton",
        "halton 0.5",
        "uniform 1>0",
    }
    assert "| halton 0.5 | 2 | " in capsys.readouterr().out


def test_steps_are_faster_than_amused_s(
    program: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Far from the ratios that are claimed, which need a quiet machine; but on this side of one."""
    names = ["MomentScheduler", "UniformScheduler"]
    arguments = f"--shapes 4x256x1024 --seconds 2 --output_dir {tmp_path} --schedulers".split()
    rows = program("scheduler_step").main([*arguments, *names])
    ratios = {row["scheduler"]: row["times faster"] for row in rows}
    assert all(ratios[name] > 2 for name in names)
    assert "4 x 256 x 1024" in capsys.readouterr().out
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png"}


@pytest.mark.exhaustive
def test_the_law_of_second_order(
    program: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What docs/theory.md says: the trapezoidal law falls faster where dependence is weak, and is ahead everywhere."""
    results = program("second_order").main(["--passes", "4", "8", "--num_joints", "1", "--output_dir", str(tmp_path)])
    error = {(row["dependence"], row["sampler"], row["passes"]): row["kl"][0] for row in results["rows"]}
    for dependence in (8.0, 1.0, 0.3):
        for passes in (4, 8):
            others = [value for (a, _, b), value in error.items() if (a, b) == (dependence, passes)]
            assert error[dependence, "trapezoidal", passes] == min(others)
    assert error[8.0, "trapezoidal", 4] > 14 * error[8.0, "trapezoidal", 8]
    assert error[8.0, "ancestral", 4] < 5 * error[8.0, "ancestral", 8]
    counted = {(row["dependence"], row["sampler"], row["plan"]): row["kl"][0] for row in results["counted"]}
    assert counted[8.0, "extrapolated", "3 2"] < 0.5 * counted[8.0, "uniform order", "3 2"]
    assert counted[8.0, "fixed order, extrapolated", "3 2"] > counted[8.0, "fixed order", "3 2"]
    assert "| weak | trapezoidal |" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"second_order.json", "second_order.png"}
