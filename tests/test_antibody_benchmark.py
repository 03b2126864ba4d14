"""`benchmarks/antibodies.py`, which compares samplers on released weights: its measures, and the program in small."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import antiberty_wheel as upstream
import pytest
import torch
from test_study import program
from torch import Tensor

from hf_maskdiff.conversion.convert import convert
from hf_maskdiff_cli.results import read_results

__all__ = ["program"]  # a fixture

IGHV3_23 = "EVQLLESGGGLVQPGGSLRLSCAASGFTFSSYAMSWVRQAPGKGLEWVSAISGSGGSTYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYCAK"
IGKV1_39 = "DIQMTQSPSSLSASVGDRVTITCRASQSISSYLNWYQQKPGKAPKLLIYAASSLQSGVPSRFSGSGSGTDFTLTISSLQPEDFATYYCQQSYSTP"


@pytest.fixture
def measures(program: Callable[[str], Any]) -> Any:
    return program("antibody_measures")


def drawn(number: int, seed: int, sharpness: float) -> Tensor:
    """Rows of 6 residues of 3 kinds, whose neighbours are the more alike the larger the sharpness."""
    generator = torch.Generator().manual_seed(seed)
    fresh = torch.randint(3, (number, 6), generator=generator)
    keeps = torch.rand(number, 6, generator=generator) < sharpness
    for place in range(1, 6):
        fresh[:, place] = torch.where(keeps[:, place], fresh[:, place - 1], fresh[:, place])
    return fresh


@pytest.mark.parametrize("size", [1, 2])
def test_the_distance_is_that_of_the_laws_of_places(measures: Any, size: int) -> None:
    """From shares of residues, each sum of squares without the designs that meet themselves, or their own noise."""
    own, other = drawn(7, 0, 0.5), drawn(5, 1, 0.0)
    kept = torch.combinations(torch.arange(6), size)
    one, two = (
        torch.nn.functional.one_hot((rows[:, kept] * 3 ** torch.arange(size)).sum(-1), 9).double()
        for rows in (own, other)
    )  # (n, sets of places, values)

    def product(a: Tensor, b: Tensor) -> float:
        n = min(len(a), len(b))
        whole = (a.sum(0) * b.sum(0)).sum() - (a[:n] * b[:n]).sum()
        return float(whole / (len(a) * len(b) - n))

    expected = (product(one, one) + product(two, two) - 2 * product(one, two)) / product(two, two)
    assert measures.distance(own, other, size)[0] == pytest.approx(expected, abs=1e-12)


def test_errors_are_those_of_repeated_draws(measures: Any) -> None:
    """And the distance of two sets of one law is 0 on average, that of two laws is not."""
    apart = torch.tensor([measures.apart(drawn(60, seed, 0.5)) for seed in range(60)])
    assert apart[:, 0].std() == pytest.approx(float(apart[:, 1].mean()), rel=0.35)
    same = torch.tensor([measures.distance(drawn(60, seed, 0.5), drawn(60, 99 + seed, 0.5)) for seed in range(60)])
    far = torch.tensor([measures.distance(drawn(60, seed, 0.9), drawn(60, 99 + seed, 0.5)) for seed in range(60)])
    assert abs(same[:, 0].mean()) < 3 * same[:, 0].std() / 60**0.5
    assert far[:, 0].mean() > 10 * far[:, 0].std() / 60**0.5
    assert far[:, 0].std() == pytest.approx(float(far[:, 1].mean()), rel=0.35)


def test_a_germline_is_found_where_loops_have_other_lengths(measures: Any) -> None:
    assert measures.nearest_germline(IGHV3_23) == ("IGHV3-23", 1.0)
    assert measures.nearest_germline(IGKV1_39) == ("IGKV1-39", 1.0)
    longer = IGHV3_23[:28] + "SS" + IGHV3_23[28:53] + "G" + IGHV3_23[53:]
    assert measures.nearest_germline(longer) == ("IGHV3-23", 1.0)
    gene, share = measures.nearest_germline(IGHV3_23.replace("VRQAPG", "AAAAAA"))
    assert gene == "IGHV3-23"
    assert share == pytest.approx(1 - 5 / 80)  # one of the six was an A
    assert not measures.is_mixed(IGHV3_23)
    assert not measures.is_mixed(IGKV1_39)
    assert measures.is_mixed(IGHV3_23[:52] + IGKV1_39[52:])
    assert measures.is_mixed(IGKV1_39[:52] + IGHV3_23[52:])
    regions = [[len(region) for _, region in regions] for regions in measures.GERMLINES.values()]
    assert all(sizes[1] == 17 and sizes[0] in (25, 26) and sizes[2] in (36, 38) for sizes in regions)


def test_the_program_goes_on_where_it_stopped(
    program: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a wheel with random weights: a loop, of which the rest of the chain is given, and chains."""
    convert(upstream.write_wheel(tmp_path / "antiberty.whl", upstream.contents()), tmp_path / "antiberty")
    antibodies = program("antibodies")
    plot = antibodies.plot
    monkeypatch.setattr(antibodies, "plot", lambda *of_summary: None)  # once is enough
    shared = f"--pipeline {tmp_path / 'antiberty'} --num_chains 4 --num_masks 2 --batch_size 3 --output_dir"
    command = [*shared.split(), str(tmp_path / "loop"), "--design", "loop", "--length", "5", "--steps", "2"]
    samplers = ["uniform", "uniform 1", "maskgit 6", "moment 6", "moment 6, 2 groups"]
    cells = antibodies.main([*command, "--num_seeds", "2", "--samplers", *samplers[:3]])
    assert {(cell["sampler"], cell["steps"], cell["seed"]) for cell in cells} == {
        *((name, 2, seed) for name in samplers[:3] for seed in (0, 1)),
        *(("uniform", 5, seed) for seed in (0, 1)),
    }
    with pytest.raises(ValueError, match="must not exist yet"):
        antibodies.main(command)
    before = (tmp_path / "loop" / "results.json").read_text()
    again = antibodies.main([*command, "--resume", "--num_seeds", "2", "--samplers", *samplers])
    assert again[: len(cells)] == cells == json.loads(before)["cells"]
    assert all(len(cell["designs"]) == len(cell["nats"]) == 4 for cell in again)
    assert all(
        len(design) == 5 and 0 < nats < 20 for cell in again for design in cell["designs"] for nats in cell["nats"]
    )
    passes = {cell["sampler"]: cell["passes"] for cell in again if cell["steps"] == 2}
    assert passes["moment 6"] == [2, 0]
    assert passes["moment 6, 2 groups"] == [2, 2]
    capsys.readouterr()
    monkeypatch.setattr(antibodies, "plot", plot)
    antibodies.main(["--table", str(tmp_path / "loop" / "results.json"), "--output_dir", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "| moment 6, 2 groups | 2 | 8 | " in printed
    assert "| maskgit 6 | moment 6 | 2 | " in printed
    names = [f"antibodies_loop{ending}" for ending in (".json", ".png", "_compared.json", "_seeds.json")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    found = read_results(tmp_path / "out" / "antibodies_loop.json")
    assert (found.settings["num_chains"], found.settings["length"]) == (4, 5)
    (groups,) = [record for record in found.records if record.num_substeps == 2]
    assert (groups.sampler, groups.steps, groups.num_samples, groups.seeds) == ("moment 6", 2, 4, [0, 1])
    nats = [value for cell in again if cell["sampler"] == "moment 6, 2 groups" for value in cell["nats"]]
    assert groups.measures["nats"].value == pytest.approx(sum(nats) / 8, abs=1e-4)
    seeds = read_results(tmp_path / "out" / "antibodies_loop_seeds.json").records
    assert len(seeds) == 2 * len(found.records)
    assert [record.seeds for record in seeds if record.num_substeps == 2] == [[0], [1]]
    compared = {record.sampler: record for record in read_results(tmp_path / "out" / names[2]).records}
    difference = [a - b for a, b in zip(*(_nats(again, name) for name in ("maskgit 6", "moment 6")), strict=True)]
    assert compared["maskgit 6 less moment 6"].measures["difference"].value == pytest.approx(
        sum(difference) / 8, abs=1e-4
    )


def _nats(cells: list[dict[str, Any]], sampler: str) -> list[float]:
    return [
        value
        for seed in (0, 1)
        for cell in cells
        if (cell["sampler"], cell["steps"], cell["seed"]) == (sampler, 2, seed)
        for value in cell["nats"]
    ]


def test_where_a_loop_stands_and_how_far_rounds_are_apart_there(program: Callable[[str], Any], tmp_path: Path) -> None:
    convert(upstream.write_wheel(tmp_path / "antiberty.whl", upstream.contents()), tmp_path / "antiberty")
    antibodies, equivalence = program("antibodies"), program("equivalence")
    command = ["--pipeline", str(tmp_path / "antiberty"), "--design", "loop", "--output_dir", str(tmp_path)]
    bench = antibodies.Bench(antibodies.parse_args(command))
    chain = antibodies.BEFORE + "SRWGGDGFYAMDY" + antibodies.AFTER
    ids, places = bench.residues([chain])
    assert "".join(bench.pipe.tokenizer.convert_ids_to_tokens(ids[0, places].tolist())) == "SRWGGDGFYAMDY"
    args = equivalence.parse_args(["--num_trajectories", "2", "--num_draws", "4"])
    bench.pipe("[MASK:4]", num_inference_steps=1)
    terms = equivalence.trajectory_terms("antibody", bench.pipe, 2, 6.0, args)
    assert [len(row) for row in terms] == [2, 2]
    assert all(0 < row[0].total_variation < 1 for row in terms)
    assert all(row[1].total_variation == 0 for row in terms)  # the last step reveals all that is left


def test_chains_are_told_from_light_ones_and_from_the_reference(program: Callable[[str], Any]) -> None:
    report = program("antibody_report")
    heavy, light = IGHV3_23[:95], IGKV1_39

    def cell(sampler: str, steps: int, designs: list[str], nats: list[float]) -> dict[str, Any]:
        return {"sampler": sampler, "steps": steps, "seed": 0, "designs": designs, "nats": nats, "seconds": 0.1}

    cells = [
        cell("moment 6", 8, [heavy, heavy[:52] + light[52:], heavy], [1.0, 2.0, 3.0]),
        cell("maskgit 6", 8, [heavy, heavy, light], [2.0, 4.0, 3.0]),
        cell("uniform", 95, [heavy, light, light], [1.0, 1.0, 2.0]),
    ]
    summary = report.summary_of(cells, "chain", 95)
    row = summary["moment 6", 8]
    assert row["nats"] == pytest.approx((2.0, 1 / 3**0.5))
    assert row["mixed"][0] == pytest.approx(1 / 3)
    assert summary["maskgit 6", 8]["heavy"][0] == pytest.approx(2 / 3)
    assert "pairs" not in summary["uniform", 95]
    assert row["places"][0] > 0
    ((first, second, steps, nats, _),) = report.contrasts(cells)
    assert (first, second, steps) == ("maskgit 6", "moment 6", 8)
    assert nats == pytest.approx((1.0, 1 / 3**0.5))  # of 1, 2 and 0
    cells += [
        cell("moment 6, 2 groups", 8, [heavy] * 3, [1.0, 2.0, 2.0]),
        cell("moment 6", 9, [heavy] * 3, [0.0, 1.0, 1.0]),
    ]
    groups = [found[:4] for found in report.contrasts(cells) if found[0] == "moment 6, 2 groups"]
    assert [(second, steps) for _, second, steps, _ in groups] == [("moment 6", 8), ("moment 6, 9 steps", 8)]
    assert groups[1][3] == pytest.approx((1.0, 0.0))
