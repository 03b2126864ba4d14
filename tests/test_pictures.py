"""benchmarks/pictures.py: the pictures of docs/ are drawn from committed results, which are the numbers of docs/."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from hf_maskdiff_cli.results import Results, Value, read_results
from hf_maskdiff_cli.results.numbers import measured

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("pictures")


def test_every_picture_is_drawn(pictures: ModuleType, tmp_path: Path) -> None:
    """Letters of 12 points on at most 11 inches: legible where a page shows the picture 800 pixels wide."""
    pictures.main(["--output_dir", str(tmp_path)])
    assert {path.stem for path in tmp_path.iterdir()} == set(pictures.PICTURES)
    for path in tmp_path.iterdir():
        with Image.open(path) as drawn, Image.open(pictures.IMAGES / path.name) as committed:
            assert 1000 <= drawn.width <= 1650
            assert abs(drawn.width / drawn.height - committed.width / committed.height) < 0.02


def numbers(results: Results) -> list[float]:
    """Every mean in a file of results, as a table shows it."""
    values = [(one, results.measures[name]) for record in results.records for name, one in record.measures.items()]
    return [float(measured(Value(one.value), measure)) for one, measure in values]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_picture_s_numbers_are_those_of_the_pages(path: Path) -> None:
    pages = [*ROOT.glob("docs/**/*.md"), ROOT / "README.md", *ROOT.glob("schedulers/*/README.md")]
    written = {float(number) for page in pages for number in re.findall(r"\d+\.\d+", page.read_text())}
    results = read_results(path)
    assert results.command.startswith("python benchmarks/")
    found = numbers(results)
    assert len(found) >= 8
    assert [number for number in found if abs(number) not in written] == []
