"""`hf-maskdiff report`: one form for all results, read strictly; tables that a page's files say; files side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hf_maskdiff_cli import main
from hf_maskdiff_cli.results import Measure, Record, Results, Sampler, Value, combined, read_results, write_results
from hf_maskdiff_cli.results.pages import rendered
from hf_maskdiff_cli.results.tables import Layout, table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FILES = [path for path in RESULTS.rglob("*.json") if path.name != "text_decoding.json"]  # times of two programs


def results(**changes: Any) -> Results:
    """Real data and two samplers; "moment 4" has two seeds, and groups."""
    nats = {"nats": Value(2.5), "share": Value(0.25)}
    return Results(
        command="python benchmarks/text.py",
        measures={"nats": Measure(digits=3, better="less"), "share": Measure("part", digits=1, percent=True)},
        samplers={"real": Sampler("real text"), "moment 4": Sampler(scheduler={"top_p": None}), "halton": Sampler()},
        records=[
            Record("real", 0, {"nats": Value(1.754, 0.031)}),
            Record("moment 4", 8, nats, passes=8.0, seeds=(0,)),
            Record("moment 4", 8, {"nats": Value(2.75), "share": Value(0.75)}, passes=9.0, seeds=(1,)),
            Record("moment 4", 8, {"nats": Value(2.0, 0.25)}, 2),
            Record("halton", 8, {"nats": Value(2.25, 0.5)}),
            Record("halton", 16, {"nats": Value(2.0)}),
        ],
        **changes,
    )


# --- the form ---------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    given = results(versions={"torch": "2.13.0"}, settings={"order": 6, "path": tmp_path}, machine="two CPU cores")
    write_results(given, tmp_path / "a" / "one.json")
    found = read_results(tmp_path / "a" / "one.json")
    assert found == replace(given, settings={"order": 6, "path": str(tmp_path)}, records=found.records)
    assert [replace(one, seeds=tuple(one.seeds)) for one in found.records] == list(given.records)
    assert (tmp_path / "a" / "one.json").read_text().count("\n") == 24  # a record a line
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "one.json"]


def test_what_is_not_finite_is_written_as_nothing(tmp_path: Path) -> None:
    bad = Record("halton", 8, {"nats": Value(float("inf"), float("nan"))})
    write_results(replace(results(), records=[bad]), tmp_path / "one.json")
    assert read_results(tmp_path / "one.json").records[0].measures == {"nats": Value(None)}


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (("schema",), "other 2", "`schema` must be \"hf-maskdiff results 1\", got 'other 2'"),
        (("records", 1, "steps"), -1, "`records[1].steps` must be an integer of at least 0, got -1"),
        (("records", 1, "steps"), True, "`records[1].steps` must be an integer of at least 0, got True"),
        (("records", 1, "sampler"), "maskgit", "`records[1].sampler` must be a key of `samplers`"),
        (("records", 1, "measures", "fid"), {"value": 1}, "`records[1].measures` must be of the keys of `measures`"),
        (
            ("records", 1, "measures", "nats", "value"),
            "2.5",
            "`records[1].measures.nats.value` must be a finite number",
        ),
        (("records", 3, "measures", "nats", "error"), -0.1, "`records[3].measures.nats.error` must be a number of at"),
        (("records", 1, "seeds", 0), 0.5, "`records[1].seeds[0]` must be an integer of at least 0, got 0.5"),
        (("records", 1, "step"), 8, "`records[1]` must be an object with the keys sampler, steps"),
        (("measures", "nats", "better"), "lower", '`measures.nats.better` must be one of "less"'),
        (("records",), {}, "`records` must be a list, got {}"),
    ],
)
def test_a_wrong_file_is_one_error(at: tuple[Any, ...], value: Any, words: str, tmp_path: Path) -> None:
    """It names the place, the rule, the value and the file, and what to do."""
    path = tmp_path / "one.json"
    write_results(results(), path)
    content = inside = json.loads(path.read_text())
    for key in at[:-1]:
        inside = inside[key]
    inside[at[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError) as raised:
        read_results(path)
    assert words in str(raised.value)
    assert "one.json" in str(raised.value)
    assert str(raised.value).endswith((".", "wrote."))


def test_what_is_missing_or_no_json_is_told(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text('{"schema": "hf-maskdiff results 1", "measures": {}, "samplers": {}, "records": []}')
    with pytest.raises(
        ValueError, match=r"`the file` must be an object that has command, .*got 'none of the name command"
    ):
        read_results(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="results must be a JSON file, got"):
        read_results(path)
    with pytest.raises(ValueError, match=r"results must be a file, got the folder .*\. Pass the \.json files"):
        read_results(tmp_path)


def test_committed_files_have_the_form() -> None:
    assert len(FILES) > 25
    for path in FILES:
        assert len(read_results(path).records) >= 4
        assert read_results(path).command.startswith("python benchmarks/")


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_seeds_are_one_row() -> None:
    (row,) = (one for one in combined(results().records) if one.sampler == "moment 4" and one.num_substeps == 1)
    assert row.measures == {"nats": Value(2.625, 0.125), "share": Value(0.5, 0.25)}
    assert (row.passes, row.seeds) == (8.5, (0, 1))


def test_a_seed_twice_is_no_second_seed() -> None:
    twice = [Record("halton", 8, {"nats": Value(2.0)}, seeds=(0,))] * 2
    with pytest.raises(ValueError, match=r"must each have one seed of their own, got the seeds \[\[0\], \[0\]\]"):
        combined(twice)
    with pytest.raises(ValueError, match="one seed of their own"):  # whose mean it is nobody knows
        combined([replace(twice[0], seeds=()), twice[0]])


def test_a_measure_that_a_seed_lacks_has_no_mean() -> None:
    first, other = (Record("halton", 8, {"nats": Value(2.0)}, seeds=(seed,)) for seed in (0, 1))
    assert combined([first, replace(other, measures={})])[0].measures == {"nats": Value(None)}


# --- tables and pages -------------------------------------------------------------------------------------------------


def test_a_table() -> None:
    assert table([results()], Layout(["nats", "share", "passes"])).splitlines() == [
        "| sampler | steps | R | nats | part, % | passes |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| real text |  |  | 1.754 +- 0.031 |  |  |",
        "| moment 4 | 8 | 1 | 2.625 +- 0.125 | 50.0 +- 25.0 | 8.5 |",
        "| moment 4 | 8 | 2 | 2.000 +- 0.250 |  |  |",
        "| halton | 8 | 1 | 2.250 +- 0.500 |  |  |",
        "| halton | 16 | 1 | 2.000 |  |  |",
    ]


def test_steps_and_groups_across() -> None:
    layout = Layout(["nats", "share"], across=["steps", "num_substeps"], samplers=["halton", "moment*"], title="order")
    assert table([results()], layout).splitlines() == [
        "| order | 8 steps: nats | part, % | 8 steps, R = 2: nats | 16 steps: nats |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| halton | 2.250 +- 0.500 |  |  | 2.000 |",
        "| moment 4 | 2.625 +- 0.125 | 50.0 +- 25.0 | 2.000 +- 0.250 |  |",
    ]
    few = table([results()], Layout(["nats"], steps=[16], num_substeps=[1]))
    assert [line.split(" | ")[0] for line in few.splitlines()[2:]] == ["| real text", "| halton"]


def test_one_place_of_a_table_has_one_value() -> None:
    with pytest.raises(ValueError, match="must hold one record, got two of 'real' with 0 steps"):
        table([results(), results()], Layout(["nats"]))
    with pytest.raises(ValueError, match=r"`columns` must be of .*, got \['nat'\]"):
        table([results()], Layout(["nat"]))
    with pytest.raises(ValueError, match=r"`samplers` must be of .*, got 'maskgit'"):
        table([results()], Layout(["nats"], samplers=["maskgit"]))


PAGE = """# A page
<!-- results: one.json; columns: nats; samplers: halton; steps: 16 -->
<!-- end of results -->
Prose: 2.000.
"""


def test_a_page_s_blocks_are_made_and_its_prose_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(results(), tmp_path / "one.json")
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    command = ["report", "--page", str(page), "--results_dir", str(tmp_path)]
    assert main([*command, "--check"]) == 1
    assert "must be what the files in" in capsys.readouterr().err
    assert page.read_text() == PAGE  # --check changes nothing
    assert main(command) == 0
    made = page.read_text()
    rows = "| sampler | nats |\n| --- | ---: |\n| halton | 2.000 |"
    assert made == PAGE.replace(" -->\n<!-- end", f" -->\n\n{rows}\n\n<!-- end")
    assert main([*command, "--check"]) == 0
    page.write_text(made.replace("| halton | 2.000 |", "| halton | 1.999 |"))
    assert main([*command, "--check"]) == 1
    assert "'| halton | 1.999 |'" in capsys.readouterr().err
    for wrong, words in (
        ("columns: nats; colums: x", "may say across"),
        ("nats", "must name its files"),
        ("x", "must"),
    ):
        with pytest.raises(ValueError, match=words):
            rendered(PAGE.replace("columns: nats", wrong), tmp_path)
    with pytest.raises(ValueError, match=r"got 1 beginnings and 0 whole ones"):
        rendered(PAGE.replace("end of results", "end"), tmp_path)


def test_pages_are_what_their_files_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for page, least in (("results", 13), ("letters", 6), ("antibodies", 8)):
        assert main(["report", "--page", f"docs/{page}.md", "--check"]) == 0
        assert (ROOT / "docs" / f"{page}.md").read_text().count("<!-- results: ") >= least


# --- reports ----------------------------------------------------------------------------------------------------------


def test_files_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    other = replace(
        results(model="other"), records=[replace(results().records[4], measures={"nats": Value(2.0, 0.25)})]
    )
    for folder, found in (("a", results(about="sixty texts")), ("b", other)):
        write_results(found, tmp_path / folder / "results.json")
    paths = [str(tmp_path / folder / "results.json") for folder in "ab"]
    assert main(["report", *paths, "--output_dir", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert text == capsys.readouterr().out
    assert "## a/results\n\n- command: `python benchmarks/text.py`\n- notes: sixty texts" in text
    assert "- model: other" in text
    assert "| sampler | steps | R | a/results | b/results | b/results - a/results |" in text
    assert "| halton | 8 | 1 | 2.250 +- 0.500 | 2.000 +- 0.250 | -0.250 +- 0.559 |" in text
    assert "| halton | 16 | 1 | " not in text.partition("## Side by side")[2]  # one file has it
    assert (tmp_path / "out" / "report.png").stat().st_size > 5000
    earlier = Path(paths[0]).with_suffix(".earlier")
    earlier.write_bytes(Path(paths[0]).read_bytes())
    assert main(["report", paths[0], str(earlier)]) == 0
    assert "| results.json | results.earlier | results.earlier - results.json |" in capsys.readouterr().out
    for wrong, words in (
        ([], "pass either files of results or --page"),
        ([paths[0], paths[0]], "a file of results counts once"),
        ([paths[0], str(tmp_path / "b" / ".." / "a" / "results.json")], "a file of results counts once"),
        ([paths[0], "--check"], "--check is for --page"),
        (["--page", "x.md", "--output_dir", "out"], "--output_dir is for files"),
    ):
        assert main(["report", *wrong]) == 1
        assert words in capsys.readouterr().err


def test_a_file_of_the_harness_is_read_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = {
        "alias": "gsm8k",
        "exact_match,strict-match": 0.5,
        "exact_match_stderr,strict-match": 0.125,
        "acc,none": 0.25,
    }
    content = {
        "results": {"gsm8k": task | {"acc_stderr,none": "N/A"}},
        "configs": {},
        "config": {"model": "hf_maskdiff", "model_args": "pretrained=owner/name,num_inference_steps=64", "limit": 8},
        "higher_is_better": {"gsm8k": {"exact_match": True, "acc": True}},
    }
    (tmp_path / "results_1.json").write_text(json.dumps(content))
    assert main(["report", str(tmp_path / "results_1.json")]) == 0
    printed = capsys.readouterr().out
    assert "| hf_maskdiff | 64 | 0.500 +- 0.125 | 0.25 |" in printed.replace("0.50 +- 0.12 ", "0.500 +- 0.125 ")
    assert "gsm8k, exact_match (strict-match)" in printed
    assert "- model: owner/name" in printed


def test_no_torch_is_imported_for_a_table() -> None:
    program = "import sys\nfrom hf_maskdiff_cli import main\nmain(sys.argv[1:])\nassert 'torch' not in sys.modules"
    path = ROOT / "benchmarks" / "results" / "apart.json"
    command = [sys.executable, "-c", program, "report", str(path)]
    assert "moment-apart-2" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
