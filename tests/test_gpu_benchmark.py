"""The program that proves a GPU, tried out on a CPU: every section gives its rows, and a failure costs only itself."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
from scipy.stats import chi2

from hf_maskdiff import kernels

ROOT = Path(__file__).parents[1]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


@pytest.fixture
def sections(gpu: ModuleType) -> ModuleType:
    return importlib.import_module("gpu_sections")


def options(folder: Path, seconds: float = 300.0) -> argparse.Namespace:
    return argparse.Namespace(output_dir=folder, tiny=True, seconds=seconds)


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "gpu.json").read_text())


# --- the sections -----------------------------------------------------------------------------------------------------


def test_every_section_gives_its_rows(gpu: ModuleType, sections: ModuleType, tmp_path: Path) -> None:
    """The whole program with tiny sizes, in this process rather than in one for each section."""
    seen = []

    def here(section: Any, rows_file: Path, seconds: float, args: argparse.Namespace) -> str:
        if seen:  # what the sections before have left
            assert list(read(tmp_path)["sections"]) == seen
            assert all(f"`{name}`: done" in (tmp_path / "gpu.md").read_text() for name in seen)
        seen.append(section.module.rpartition(".")[2])
        return "done" if gpu.run_section(section.module, rows_file, args.tiny) else "done, with errors"

    results = gpu.run_all(sections.SECTIONS, options(tmp_path), here)
    assert results == read(tmp_path)
    assert (tmp_path / "gpu.md").read_text() == gpu.page(results)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md"]
    assert results["machine"]["torch"] == torch.__version__
    rows = {name: section["rows"] for name, section in results["sections"].items()}
    assert [row for section in rows.values() for row in section if "error" in row] == []
    assert {section["status"] for section in results["sections"].values()} == {"done"}

    laws = [row for row in rows["laws"] if "law of" in row]
    assert len(laws) == 2 * 13 + 3
    assert all(row["passed"] for row in laws)
    assert all(row["share of equal tokens"] == 1 for row in rows["laws"] if "law of" not in row)
    assert {row["waits"] for row in rows["syncs"]} == {"not looked for on a CPU"}
    assert {row["model calls"] for row in rows["syncs"] if row["partial caching"] == "off"} >= {4, 8}
    assert len({row["pipeline"] for row in rows["syncs"]}) == 3
    assert all(row["reads"] > 0 for row in rows["step_time"] if "reads" in row)
    assert len([row for row in rows["partial_passes"] if "groups / 2n plain" in row]) == 3
    cached = {row["cache"]: row for row in rows["cached_decoding"]}
    assert list(cached) == ["none", "prefix", "dual", "delayed"]
    assert {row["model calls"] for row in cached.values()} == {6}
    # Two blocks of 4 behind a prompt of 8, three steps each, which reveal 2, 1 and 1: the first computes all 16.
    positions = [row["positions of a row"] for row in cached.values()]
    assert positions == [
        6 * 16,
        2 * 16 + 2 * 8 + 2 * 4,
        2 * 16 + 4 * 4,
        4 * 16 + (2 + 4) + 2,
    ]  # delayed: masks of later blocks too
    assert all(0 < row["outside the model"] < 1 for row in rows["throughput"])
    assert [row["a second, decoded"] is not None for row in rows["throughput"]] == [False, False, True, True] + 2 * [
        False
    ]
    assert all(row.get("largest difference / largest logit", 0) < 0.05 for row in rows["compilation"])
    equal = {row["what"]: row["share of equal tokens"] for row in rows["compilation"] if "share of equal tokens" in row}
    assert list(equal.values()) == [1, 1, 1]
    assert "a call of MDLM's pipeline, batch 1, 2 steps" in equal
    assert [row["share of equal tokens"] > 0.9 for row in rows["generation"]] == [True, True]


def test_a_section_by_the_command(gpu: ModuleType, tmp_path: Path) -> None:
    """In a process of its own, as a user runs it."""
    results = gpu.main(["--tiny", "--sections", "step_time", "--output_dir", str(tmp_path)])
    assert results == read(tmp_path)
    assert results["sections"]["step_time"]["status"] == "done"
    assert len(results["sections"]["step_time"]["rows"]) == 22
    assert "gpu_sections.step_time, after " in (tmp_path / "gpu.log").read_text()


def test_generation_without_its_packages_is_one_line(
    sections: ModuleType, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = importlib.import_module("gpu_sections.generation")
    measures = importlib.import_module("gpu_sections.measures")
    monkeypatch.setattr(generation, "NEEDED", ("no_such_package", "torch"))
    ((_, work),) = generation.cases(measures.Bench(torch.device("cpu"), tiny=True))
    assert list(work()) == [{"not installed": "no_such_package"}]


# --- what a failure costs ---------------------------------------------------------------------------------------------

BROKEN = {
    "raises": "yield 'a', lambda: iter([{'x': 1}])\n    raise ValueError('in /some/folder/file.py')",
    "a_case_raises": "yield 'a', lambda: iter([1 / 0])\n    yield 'b', lambda: iter([{'x': 2}])",
    "overruns": "yield 'a', lambda: iter([{'x': 3}])\n    import time\n    yield 'b', lambda: time.sleep(600)",
    "dies": "yield 'a', lambda: iter([{'x': 4}])\n    import os\n    os._exit(9)",
    "good": "yield 'a', lambda: iter([{'x': 5}])",
}


def test_a_section_that_fails_loses_only_itself(
    gpu: ModuleType, sections: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, out = {}, tmp_path / "out"
    for name, body in BROKEN.items():
        (tmp_path / f"section_{name}.py").write_text(f"def cases(bench):\n    {body}\n")
        registry[name] = sections.Section(f"section_{name}", 60, name, "")
    registry["late"] = sections.Section("section_good", 60, "late", "")
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), before))))

    def run(section: Any, rows_file: Path, seconds: float, args: argparse.Namespace) -> str:
        assert section.title != "late"
        started = time.monotonic()
        limit = 2 + 1.5 * took[0] if section.title == "overruns" else seconds  # enough for what it imports
        status = gpu.in_own_process(section, rows_file, limit, args)
        took.append(time.monotonic() - started)
        args.seconds = 0 if section.title == "good" else args.seconds
        return status

    args, took = options(out), list[float]()
    results = gpu.run_all(registry, args, run)
    assert results == read(out)
    found = {name: section["status"] for name, section in results["sections"].items()}
    assert re.fullmatch(r"broke off with code 9: section_dies, after [\d.]+ s: a", found.pop("dies"))
    assert found.pop("overruns") == f"stopped after {2 + 1.5 * took[0]:.0f} s"
    assert found == {
        "raises": "broke off with code 1: ValueError: in file.py",
        "a_case_raises": "done, with errors",
        "good": "done",
        "late": "not run: no time was left",
    }
    rows = {name: section["rows"] for name, section in results["sections"].items()}
    assert rows["raises"] == [{"case": "a", "x": 1}]
    error, after = rows["a_case_raises"]
    assert error == {"case": "a", "error": "ZeroDivisionError: division by zero (section_a_case_raises.py:2)"}
    assert after == {"case": "b", "x": 2}
    assert rows["overruns"] == [{"case": "a", "x": 3}]
    assert rows["dies"] == [{"case": "a", "x": 4}]
    assert rows["good"] == [{"case": "a", "x": 5}]
    text = (out / "gpu.md").read_text()
    assert "- a: ZeroDivisionError: division by zero (section_a_case_raises.py:2)" in text
    assert "| x |\n| --- |\n| 5 |" in text


def test_a_line_that_was_cut_is_left_out(gpu: ModuleType, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    assert gpu.read_lines(rows) == []
    rows.write_text('{"case": "a", "row": {}}\n{"case": "b", "ro')
    assert gpu.read_lines(rows) == [{"case": "a", "row": {}}]


# --- its parts --------------------------------------------------------------------------------------------------------


def test_p_values_are_scipy_s(gpu: ModuleType) -> None:
    p_value = importlib.import_module("gpu_sections.measures").chi_square_p_value
    for statistic, freedom in ((3.2, 4), (60.0, 53), (90.0, 53), (250.0, 80), (1e4, 40)):
        assert p_value(statistic, freedom) == pytest.approx(chi2.sf(statistic, freedom), rel=1e-6)


def test_both_ways_where_a_gpu_has_both(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    measures = importlib.import_module("gpu_sections.measures")
    switch = kernels.SWITCH
    monkeypatch.setenv(switch, "before")
    monkeypatch.setattr(kernels, "_work_on", lambda index: True)
    card = measures.Bench(torch.device("cuda:0"))
    assert measures.ways(card) == ["torch", "kernels"]
    assert measures.ways(measures.Bench(torch.device("cpu"))) == ["torch"]
    seen = [list(measures.in_a_way(way, lambda: iter([{"on": os.environ[switch]}]))) for way in measures.ways(card)]
    assert seen == [[{"by": "torch", "on": "0"}], [{"by": "kernels", "on": "1"}]]
    assert os.environ[switch] == "before"


def test_the_places_that_wait_are_named(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that waits in the model, as torch says it: first by an error, then by warnings that name all places."""
    syncs = importlib.import_module("gpu_sections.syncs")
    models = importlib.import_module("gpu_sections.models")
    measures = importlib.import_module("gpu_sections.measures")
    bench = measures.Bench(torch.device("cpu"), tiny=True)
    subject = models.mdlm(bench)

    def sync(watch: Any, *_: Any) -> None:
        watch.calls += 1
        if watch.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    monkeypatch.setattr(syncs.Watch, "_before_model", sync)
    (row,) = syncs.one_run(subject, syncs.MomentScheduler, "off", bench, {})
    assert row["waits"] == "in 1 places"
    assert row["model calls"] == 1
    assert re.match(r"denoisers/text_denoiser\.py:\d+, from ", row["places"])
    assert f"from {Path(__file__).name}:" in row["places"]
    assert not isinstance(subject.pipe.progress_bar, syncs.Watch)


def test_what_only_a_gpu_runs_is_called_rightly(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the signatures of torch's own functions, which no CPU can run."""
    syncs, models, measures = (
        importlib.import_module(f"gpu_sections.{name}") for name in ("syncs", "models", "measures")
    )
    names = ("Event", "synchronize", "reset_peak_memory_stats", "max_memory_allocated", "mem_get_info", "empty_cache")
    for name in (*names, "set_sync_debug_mode"):
        monkeypatch.setattr(torch.cuda, name, create_autospec(getattr(torch.cuda, name)))
    torch.cuda.Event.return_value.elapsed_time.return_value = 2.5
    torch.cuda.max_memory_allocated.return_value = 2**31
    torch.cuda.mem_get_info.return_value = (7, 9)
    device = torch.device("cuda")
    assert measures.milliseconds(lambda: None, device) == 2.5
    assert measures.milliseconds_to_issue(lambda: None, device) < 1000
    assert measures.peak_gib(lambda: None, device) == 2
    assert measures.free_bytes(device) == 7
    assert importlib.import_module("gpu_sections.compilation").options_of(
        "reduce-overhead", measures.Bench(device)
    ) == {"mode": "reduce-overhead"}

    subject = models.halton(measures.Bench(torch.device("cpu"), tiny=True))
    syncs.Watch(subject.pipe, "error", device).run(subject, 3, 1)
    modes = [call.args[0] for call in torch.cuda.set_sync_debug_mode.call_args_list]
    assert (
        modes == ["error"] * 3 + ["default"] * 3
    )  # off after the last step, at the end of the loop, and again where it was left by an error


def test_the_page_is_what_the_program_makes(gpu: ModuleType, tmp_path: Path) -> None:
    """Of the numbers that are committed, or of none."""
    numbers = ROOT / "docs" / "gpu.json"
    results = json.loads(numbers.read_text()) if numbers.exists() else None
    assert (ROOT / "docs" / "gpu.md").read_text() == gpu.page(results)

    made = {"date": "2026-01-02", "tiny": False, "machine": {"card": "A card, 80 GiB", "torch": "2.11.0"}}
    rows = [{"case": "a", "ms": 1234.5, "passed": False}, {"case": "b", "ms": 0.01234, "passed": True}]
    made["sections"] = {"s": {"title": "T", "reading": "R.", "status": "done", "seconds": 3.4, "rows": rows}}
    (tmp_path / "run.json").write_text(json.dumps(made))
    docs = tmp_path / "docs"
    docs.mkdir()
    gpu.write_page([tmp_path / "run.json"], docs)
    text = (docs / "gpu.md").read_text()
    assert "2026-01-02, A card, 80 GiB. torch 2.11.0.\n" in text
    assert (
        "## T\n\nR.\n\n`s`: done, 3 s.\n\n| ms | passed |\n| --- | --- |\n| 1,234 | **no** |\n| 0.0123 | yes |" in text
    )
    assert json.loads((docs / "gpu.json").read_text()) == made
    gpu.write_page([docs / "gpu.json"], docs)  # made anew in place
    assert (docs / "gpu.md").read_text() == text


def test_a_page_of_several_runs(gpu: ModuleType) -> None:
    """Each section is that of the last run that came to it, and says so if that was on another day."""

    def run(date: str, card: str = "A", **rows: list[dict[str, Any]]) -> dict[str, Any]:
        sections = {
            name: {"title": name, "reading": "", "status": date, "seconds": 1.0, "rows": found}
            for name, found in rows.items()
        }
        return {"date": date, "tiny": False, "machine": {"card": card}, "sections": sections}

    row = [{"case": "a", "ms": 1.0}]
    found = gpu.together([run("1", syncs=row, laws=row, s=row), run("2", laws=row, syncs=[]), run("2", step_time=[])])
    assert [(name, section["status"], section.get("date")) for name, section in found["sections"].items()] == [
        ("laws", "2", None),
        ("syncs", "1", "1"),
        ("step_time", "2", None),
        ("s", "1", "1"),
    ]
    assert found["date"] == "2"
    assert "`syncs`: 1, 1 s, on 1." in gpu.page(found)
    with pytest.raises(SystemExit, match="A page is of one machine"):
        gpu.together([run("1", card="B"), run("2")])
