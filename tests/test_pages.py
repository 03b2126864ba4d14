"""The pages under docs: their blocks of code run to the letter, one page after the other from its first block on."""

from __future__ import annotations

import pydoc
import re
from pathlib import Path

import pytest
from hub_server import LoopbackHub
from snippets import ROOT, Stage, blocks
from test_readme import small_wheel

import hf_maskdiff

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
OF_THEIR_OWN = {"reproduce.md": "tests/test_reproduce.py", "gpu.md": "tests/test_gpu_benchmark.py"}
RUN = [page for page in PAGES if page.name not in OF_THEIR_OWN and any(b.reason is None for b in blocks(page))]
LANGUAGES = {"python", "bash", "text", "yaml"}
SHORT = {
    "design_antibody.py": ["--num_designs", "2"],
    "generate_dataset.py": ["--num_samples", "8"],
    "train_vq.py": ["--max_train_steps", "20"],
    "train_maskgit.py": ["--max_train_steps", "5"],
    "train_mdlm.py": ["--max_train_steps", "3"],
}
MINUTES = ("antibodies", "fid-50k", "published-models", "start", "training")


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.exhaustive] * (page.stem in MINUTES)) for page in RUN],
    ids=lambda page: page.stem,
)
def test_blocks(page: Path, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "clone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    (folder / "my-texts").mkdir()
    (folder / "my-texts" / "one.txt").write_text("The king is dead. Long live the king!\n" * 400)
    stage = Stage(folder, wheel=small_wheel(tmp_path), extra=SHORT)
    for block in blocks(page):
        if block.reason is None and block.language != "text":
            try:
                stage.run(block)
            except Exception as error:
                raise AssertionError(f"{page.relative_to(ROOT)}, line {block.line}: {error}") from error


def test_every_block_has_a_language_that_is_run() -> None:
    found = {(page.name, b.language) for page in PAGES for b in blocks(page) if b.language not in LANGUAGES}
    assert found == set()
    fences = {page.name: page.read_text().count("\n```") for page in PAGES}
    assert {page.name: 2 * len(blocks(page)) for page in PAGES} == fences  # none is overlooked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text())
    assert len(listed) == len(set(listed))
    assert set(listed) == {str(page.relative_to(DOCS)) for page in PAGES} | {"index.md"}  # that one is the README


def test_every_public_name_has_its_place_in_the_reference() -> None:
    pages = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    told = set(re.findall(r"^::: hf_maskdiff\.(\w+)$", pages, re.MULTILINE))
    of_diffusers = {"DiffusionPipeline", "ModelMixin", "SchedulerMixin"}
    assert set(hf_maskdiff.__all__) - told == of_diffusers
    assert all(f"`{name}`" in pages for name in of_diffusers)
    for place in re.findall(r"^::: (\S+)$", pages, re.MULTILINE):
        assert pydoc.locate(place) is not None, place
