"""The benchmarks of partial caching: they see its gain, count its passes, and their tables and plots are complete."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_maskdiff import MaskGITPipeline
from hf_maskdiff.evaluation.image_data import IDX_PREFIXES
from hf_maskdiff_cli.results import read_results

Program = Callable[[str], Any]

ROOT = Path(__file__).parents[1]
IMAGES, TEXT = ROOT / "pipelines" / "maskgit-mnist", ROOT / "pipelines" / "mdlm-shakespeare"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits that the shipped model draws, as MNIST's test files."""
    return draw_digits(tmp_path_factory.getbasetemp() / "digits")


@cache
def draw_digits(folder: Path) -> Path:
    pipe = MaskGITPipeline.from_pretrained(IMAGES)
    pipe.set_progress_bar_config(disable=True)
    folder.mkdir()
    labels = [i % 10 for i in range(80)]
    images = pipe(class_labels=labels, generator=torch.Generator().manual_seed(0), output_type="pt").images
    for kind, values in (("images", (255 * images[:, 0]).round().numpy()), ("labels", np.array(labels))):
        header = b"\0\0\x08" + bytes([values.ndim]) + np.array(values.shape, ">u4").tobytes()
        path = folder / f"{IDX_PREFIXES['test']}-{kind}-idx{values.ndim}-ubyte"
        path.write_bytes(header + values.astype(np.uint8).tobytes())
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Words of a small grammar, many times over."""
    rng, folder = random.Random(0), tmp_path / "corpus"
    folder.mkdir()
    words = ["the king", "my lord", "a sword", "speaks", "sleeps", "and", "no more", "ROMEO:\n"]
    (folder / "plays.txt").write_text(" ".join(rng.choices(words, k=3000)))
    return folder


def test_two_groups_gain_at_the_price_of_the_positions_once(
    program: Program, digits: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--image_dir", str(digits), "--text_dir", str(corpus), "--output_dir", str(tmp_path / "out")]
    arguments += ["--image_pipeline", str(IMAGES), "--text_pipeline", str(TEXT), "--num_substeps", "1", "2"]
    arguments += ["--image_steps", "2", "--text_steps", "4", "--num_images", "40", "--num_sequences", "4"]
    arguments += ["--image_seeds", "2", "--text_seeds", "2", "--image_samplers", "halton", "--text_samplers", "halton"]
    arguments += ["--image_more_steps", "3", "--text_more_steps", "5"]
    kinds = program("partial_caching").main(arguments)
    printed = capsys.readouterr().out
    summarise = program("cells").summarise
    for (cells, measures, moment, maskgit, *_), steps in zip(kinds, (2, 4), strict=True):
        rows, first = summarise(cells), next(iter(measures))
        assert rows[f"{moment}, 2 groups", steps][first][0] < rows[moment, steps][first][0]
        assert rows[f"{moment}, 2 groups", steps]["pairs"][0] < rows[moment, steps]["pairs"][0]
        for name in (moment, "halton"):
            assert rows[name, steps]["pass equivalents"][0] == rows[name, steps]["passes"][0] == steps
            # Every position goes through once more, in as many partial passes as there are steps.
            assert rows[f"{name}, 2 groups", steps]["passes"][0] == steps
            assert rows[f"{name}, 2 groups", steps]["partial passes"][0] == steps
            assert rows[f"{name}, 2 groups", steps]["pass equivalents"][0] == pytest.approx(steps + 1)
        assert {(maskgit, steps), (maskgit, steps + 1), (moment, steps + 1)} <= rows.keys()
        assert (f"{maskgit}, 2 groups", steps) not in rows
        assert all(set(measures) <= row.keys() for row in rows.values())
        differences = [line for line in printed.splitlines() if line.startswith(f"| {moment}, 2 groups | {steps} |")]
        assert len(differences) == 2
        assert f"/ from {maskgit}, at the same steps:" in printed
    for kind in ("images", "text"):
        results = read_results(tmp_path / "out" / kind / "results.json")
        assert {record.num_substeps for record in results.records} == {1, 2}
        assert results.samplers["halton"].scheduler["_class_name"] == "HaltonScheduler"  # type: ignore[index]
    for name in ("partial_caching", "samplers"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 10_000


def test_the_measures_of_dependence(program: Program) -> None:
    module = program("partial_caching")
    tokens = torch.tensor([[0, 0, 1, 1], [1, 0, 1, 2]])
    expected = torch.tensor([[3, 1, 0], [0, 3, 1]]) / 4
    torch.testing.assert_close(module.marginals(tokens, 3, 2), expected.double())
    assert module.total_variation(module.marginals(tokens, 3, 1), torch.tensor([[0.0, 0.5, 0.5]])) == 0.375

    # Two tokens that always agree, against two that are independent: ln 2 apart, but for the smoothing.
    same, other = torch.arange(4000) % 2, torch.arange(4000) // 2 % 2
    assert module.pair_divergence(2, (same, same), (same, other)) == pytest.approx(0.6931, abs=1e-3)
    assert module.pair_divergence(2, (same, other), (same, other)) == 0
    assert module.pair_divergence(2, (same, other), (same, same)) > 1


def test_gains_are_taken_seed_by_seed(program: Program) -> None:
    cells_module, module = program("cells"), program("partial_caching")
    values = {"a": (1.0, 5.0, 9.0), "b": (0.5, 4.4, 8.6)}
    cells = [
        {"sampler": name, "steps": 2, "seed": seed, "x": x}
        for name, column in values.items()
        for seed, x in enumerate(column)
    ]
    cells.append({"sampler": "b", "steps": 4, "seed": 0, "x": 0.0})  # without one to compare it to
    gains = cells_module.summarise(cells_module.differences(cells, {"b": "a"}))
    assert gains.keys() == {("b", 2)}
    mean, error = gains["b", 2]["x"]
    assert mean == pytest.approx(-0.5)
    assert error == pytest.approx(0.1 / 3**0.5)
    assert module.verdict((mean, error), ("x", 1, 2)) == "-0.50 +- 0.06"
    assert module.verdict((mean, 0.3), ("x", 1, 2)) == "nothing (-0.50 +- 0.30)"
    assert module.verdict((-mean, error), ("x", 1, 2)) == "a loss (0.50 +- 0.06)"
    assert module.verdict((mean, float("nan")), ("x", 1, 2)) == "-0.50"  # of one seed


def test_gains_at_equal_passes_come_from_the_uncached_curve(program: Program) -> None:
    module = program("partial_caching")

    def cell(sampler: str, steps: int, seed: int, passes: float, x: float) -> dict[str, Any]:
        return {"sampler": sampler, "steps": steps, "seed": seed, "pass equivalents": passes, "x": x}

    cells = [cell("a", 2, seed, 2, 8.0 + seed) for seed in range(2)] + [cell("a", 8, 0, 8, 2.0)]
    cells += [cell("b", 2, 0, 4.0, 3.0), cell("b", 4, 0, 8.0, 3.0), cell("b", 8, 0, 9.0, 1.0), cell("b", 2, 1, 4, 3.0)]
    gains = module.at_equal_passes(cells, {"b": "a"}, "x")
    # Halfway between 2 and 8 passes is 4, between 8 and 2 too; past the curve's end, in either seed, there is none.
    assert [(gain["steps"], gain["seed"]) for gain in gains] == [(2, 0), (4, 0)]
    assert [gain["x"] for gain in gains] == pytest.approx([-1.0, 1.0])


def test_a_partial_pass_is_nearer_to_a_fresh_one(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--image_pipeline", str(IMAGES), "--text_pipeline", str(TEXT), "--output_dir", str(tmp_path)]
    arguments += ["--num_samples", "6", "--num_seeds", "2", "--image_steps", "2", "--text_steps", "4"]
    results = program("partial_caching_divergence").main([*arguments, "--samplers", "moment"])
    for row, num_positions in zip(results, (49, 64), strict=True):
        for steps in row["seeds"]:
            assert [step["step"] for step in steps] == list(range(row["steps"]))
            assert all(0 < step["partial"] < step["stale"] for step in steps)
            # The smaller half of each step's positions.
            assert num_positions / 2 - row["steps"] <= sum(step["positions"] for step in steps) <= num_positions / 2
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(results)
    assert len(json.loads((tmp_path / "divergence.json").read_text())) == len(results)


def test_one_layer_leaves_no_divergence(program: Program) -> None:
    """There a partial pass is exact, so only rounding is left."""
    module = program("partial_caching_divergence")
    pipe = MaskGITPipeline.from_pretrained(IMAGES)
    pipe.set_progress_bar_config(disable=True)
    del pipe.transformer.transformer_blocks[1:]
    args = module.parse_args(["--num_samples", "4", "--num_seeds", "1"])
    (steps,) = module.measure("image", pipe, pipe.scheduler, 4, args)
    assert all(step["partial"] < 1e-9 < 1e-3 < step["stale"] for step in steps)


def test_the_benchmark_of_the_cost(program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {"lengths": 64, "hidden_dim": 48, "num_layers": 2, "num_heads": 4, "codebook_size": 20}
    arguments |= {"num_inference_steps": 2, "repeats": 2, "generation_repeats": 1, "output_dir": tmp_path}
    module = program("partial_caching_cost")
    results = module.main([f"--{name}={value}" for name, value in arguments.items()])
    assert [(row["model"], row["length"]) for row in results["costs"]] == [(name, 64) for name in module.MODELS]
    assert all(row[str(share)] > 0 for row in results["costs"] for share in module.SHARES)
    for row in results["leaks"]:
        assert row["alive"][2] == row["alive"][50]
        assert row["alive"][2][0] > 20
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 2 * (2 + 2)
    assert json.loads((tmp_path / "partial_caching_cost.json").read_text())["costs"][0]["full pass"] > 0
