"""benchmarks/samplers_at_equal_passes.py: it runs and resumes, every sampler exists, and a temperature is no gain."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_maskdiff import MomentScheduler, ReMDMScheduler
from hf_maskdiff.evaluation.markov_chain import MarkovChain
from hf_maskdiff_cli.results import read_results

ROOT = Path(__file__).parents[1]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_runs_and_resumes(program: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = program("samplers_at_equal_passes")
    run = ["--beds", "chain", "--number", "20", "--num_seeds", "2", "--steps", "0", "4", "--output_dir", str(tmp_path)]
    names = ["real", "halton", "uniform 16", "p2-planner", "remdm-cap"]
    first = bench.main([*run, "--samplers", *names])
    cells = first["chain"]["cells"]
    assert len(cells) == 2 * len(names)
    assert all(cell["calls"] == 4 for cell in cells if cell["sampler"] != "real")
    printed = capsys.readouterr().out
    assert bench.main([*run, "--samplers", *names, "--resume"]) == first
    assert capsys.readouterr().out == printed
    with pytest.raises(ValueError, match="must not exist yet"):
        bench.main(run)
    rows = read_results(tmp_path / "summary" / "samplers_at_equal_passes.json").records
    assert {row.sampler for row in rows} == set(names)
    assert all(f"{row.measures['pairs'].value:.4f}, {row.measures['nats'].value:.3f}" in printed for row in rows)
    assert bench.main(["--report", str(tmp_path), "--output_dir", str(tmp_path / "again")]) == first
    assert capsys.readouterr().out == printed


def test_every_sampler_of_every_bed(program: Callable[[str], Any]) -> None:
    """The names make what they say, and are listed once."""
    families, bench, beds = program("families"), program("samplers_at_equal_passes"), program("beds")
    for plan in bench.PLANS.values():
        assert len(set(plan.pairs)) == len(plan.pairs)
        for name in {name for name, _ in plan.pairs} - {beds.REAL, beds.FULL, beds.PLANNER, beds.TOKENIZER}:
            own, _ = beds.guidance_of(beds.parts(name)[0])
            assert families.scheduler_of(own, mask_token_id=4).config.mask_token_id == 4
    moment = families.scheduler_of("moment-apart-3 16", mask_token_id=4)
    assert isinstance(moment, MomentScheduler)
    assert (moment.config.min_distance, moment.config.choice_temperature) == (3, 16.0)
    remdm = families.scheduler_of("remdm-loop, top-p 0.9", mask_token_id=4)
    assert isinstance(remdm, ReMDMScheduler)
    assert (remdm.config.remasking, remdm.config.top_p) == ("loop", 0.9)
    assert families.scheduler_of("uniform", mask_token_id=4).config.choice_temperature is None


def test_the_chain_s_planner_knows_every_token_s_law_given_all_others(program: Callable[[str], Any]) -> None:
    chain = MarkovChain.random(length=5, num_states=3)
    tokens = chain.draw(4, seed=1)
    found = program("beds").given_all_others(chain, tokens)
    for i in range(chain.length):
        one_masked = tokens.index_fill(1, torch.tensor([i]), chain.mask_token_id)
        torch.testing.assert_close(found[:, i], chain(one_masked)[:, i])


def test_beyond_the_curve(program: Callable[[str], Any]) -> None:
    """A point on the line between two temperatures is 0; one less diverse than all of them is not compared."""
    report = program("equal_passes_report")
    shown = report.SHOWN["text"]

    def row(nats: float, entropy: float) -> dict[str, tuple[float, float]]:
        return {"nats": (nats, 0.3), "entropy": (entropy, 0.01)}

    summary = {("uniform", 8): row(2.0, 4.0), ("uniform 4", 8): row(1.0, 3.0), ("uniform", 16): row(0.0, 3.5)}
    curve = report.curve_of(summary, shown, 8)
    assert curve == [((3.0, 0.01), (1.0, 0.3)), ((4.0, 0.01), (2.0, 0.3))]
    value, error = report.beyond_curve(row(1.25, 3.25), shown, curve)
    assert value == pytest.approx(0)
    assert error == pytest.approx((0.3**2 + 0.01**2) ** 0.5 * (1 + 0.75**2 + 0.25**2) ** 0.5)
    assert report.beyond_curve(row(1.1, 3.5), shown, curve)[0] == pytest.approx(-0.4)
    assert report.beyond_curve(row(2.5, 4.2), shown, curve)[0] == pytest.approx(0.5)
    assert report.beyond_curve(row(1.1, 2.9), shown, curve) is None
    assert report.beyond_curve(row(1.1, 3.5), shown, []) is None


def test_errors_over_chains_where_their_variance_is_known(program: Callable[[str], Any]) -> None:
    report = program("equal_passes_report")
    cells = [
        {"sampler": "uniform", "steps": 8, "seed": seed, "nats": nats, "apart": 0.5, "variance": 0.16}
        for seed, nats in enumerate((1.0, 2.0, 3.0))
    ]
    row = report.summary_of("antibodies", {"settings": {"number": 3}, "cells": cells})["uniform", 8]
    assert row["nats"] == pytest.approx((2.0, (0.16 / 9) ** 0.5))


def test_names_with_guidance(program: Callable[[str], Any]) -> None:
    samplers = program("samplers")
    assert samplers.guidance_of("moment 6") == ("moment 6", 1.0)
    assert samplers.guidance_of("moment 0.5, guidance 1.5") == ("moment 0.5", 1.5)
    assert samplers.guidance_of("halton, guidance 1 to 9") == ("halton", (1.0, 9.0))


def test_each_order_at_its_best_temperature(
    program: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The least mean of those with all seeds; differences are paired; groups have a table of their own."""
    bench, files = program("best_temperatures"), program("cell_files")
    measured = {"moment 1": (5.0, 7.0), "moment 3": (9.0, 1.5), "halton": (4.0, 7.0), "halton 6": (1.0,)}
    measured |= {"moment 1, guidance 2": (0.0, 0.0), "moment 1, 2 groups": (3.0, 3.0)}
    cells = [
        {"sampler": name, "steps": 8, "seed": seed, "frechet": value}
        for name, values in measured.items()
        for seed, value in enumerate(values)
    ]
    files.write_cells({"settings": {"number": 2}, "cells": cells}, tmp_path / "cells.json")
    found = bench.main([str(tmp_path / "cells.json")])
    assert found == {
        (1, 8): {"moment": ("3", {0: 9.0, 1: 1.5}), "halton": ("plain", {0: 4.0, 1: 7.0})},
        (2, 8): {"moment": ("1", {0: 3.0, 1: 3.0})},
    }
    printed = capsys.readouterr().out
    assert "| moment | 5.2 +- 3.8 (3) |" in printed
    assert "| halton | 5.5 +- 1.5 (plain); 0.2 +- 5.2 |" in printed
