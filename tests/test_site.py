"""The documentation as a site: docstrings in diffusers' style are rewritten, and nothing stays unrendered.

Needs `pip install -e ".[docs]"`.
"""

from __future__ import annotations

import html
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
NAMES = {"MomentScheduler": "hf_maskdiff.MomentScheduler"}

for package in ("griffe", "mkdocs"):
    pytest.importorskip(package, reason=f'{package} is not installed: pip install -e ".[docs]"')


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / "docs" / "_site" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("see [`~diffusers.VQModel`]", "see `VQModel`"),
        ("see `MomentScheduler`", "see [`MomentScheduler`][hf_maskdiff.MomentScheduler]"),
        ("see [`MomentScheduler`]", "see [`MomentScheduler`][hf_maskdiff.MomentScheduler]"),
        ("see `MomentScheduler.step`", "see `MomentScheduler.step`"),
        ("called with {{'a': 1}}", "called with {'a': 1}"),
        ("Args:\n    size (`int`, *optional*): s", "Args:\n    size (int, optional): s"),
        (
            "Args:\n    a, b (`int`): s\n        more",
            "Args:\n    a (int): s\n        more\n    b (int): s\n        more",
        ),
        ("Args:\n    a: s: t", "Args:\n    a: s: t"),
        ("Text, b: c", "Text, b: c"),
        ("Returns:\n    `float`: r", "Returns:\n    float: r"),
        ("Returns:\n    Two: one each", "Returns:\n    Two&#58; one each"),
        ("Example:\n\n    x = 1\n\nArgs:\n    a: b", "**Example**\n\n```python\nx = 1\n```\n\nArgs:\n    a: b"),
    ],
)
def test_docstrings(before: str, after: str) -> None:
    assert module("docstrings").rewritten(before, NAMES) == after


def test_the_readme_as_a_page() -> None:
    page = module("hooks").for_the_site("![x](docs/images/a.png) [docs/start.md](docs/start.md) [s](schedulers)")
    assert page == "![x](images/a.png) [Getting started](start.md) [s](../schedulers)"


@pytest.mark.exhaustive
def test_nothing_stays_unrendered(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pages = {page: page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")}
    assert len(pages) > 25
    for page, text in pages.items():
        assert "{{" not in re.sub(r"<script\b.*?</script>", "", text, flags=re.DOTALL), page
        outside = re.sub(r"<(pre|code|script|style)\b.*?</\1>|<[^>]+>", " ", text, flags=re.DOTALL)
        assert re.findall(r"\$\$|\[`|\]\[|\\\[|arithmatex|^ *Args:", html.unescape(outside), re.M) == [], page
        assert [formula for formula in re.findall(r"<math.*?</math>", text, re.DOTALL) if "\\" in formula] == [], page
    schedulers = pages[tmp_path / "reference" / "schedulers" / "index.html"]
    assert schedulers.count("<math") >= 8
    assert 'href="#hf_maskdiff.MaskedDiffusionScheduler"' in schedulers
