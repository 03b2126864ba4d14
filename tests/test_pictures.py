"""benchmarks/pictures.py: the pictures of docs/ are drawn from committed results, which are the numbers of docs/."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

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


def numbers(value: object) -> list[float]:
    """Every mean in a file of results; passes and choice temperatures are not results."""
    rows = [{key: found for key, found in row.items() if key != "pass equivalents"} for row in value]  # type: ignore[attr-defined]
    return [found[0] for row in rows for found in row.values() if isinstance(found, list)]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_picture_s_numbers_are_those_of_the_pages(path: Path) -> None:
    pages = [*ROOT.glob("docs/**/*.md"), ROOT / "README.md", *ROOT.glob("schedulers/*/README.md")]
    written = {float(number) for page in pages for number in re.findall(r"\d+\.\d+", page.read_text())}
    results = json.loads(path.read_text())
    assert results["source"].startswith(("python benchmarks/", "as "))
    found = numbers(results["rows"])
    assert len(found) > 8
    assert [number for number in found if number not in written] == []
