"""One version, one switch that says whether PyPI has the package, and workflows that publish without a password."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import hf_maskdiff
from hf_maskdiff import MomentScheduler
from hf_maskdiff_cli import installation

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# Of the package itself; an extra comes with the package that is installed: `pip install "hf-maskdiff[fid]"`.
FROM_PYPI = re.compile(r"pip install (?:-\S+ )*[\"']?hf[-_]maskdiff(?![\w\[*-])")
GENERATED = sorted([*ROOT.glob("pipelines/*/README.md"), *ROOT.glob("schedulers/*/README.md")])


@pytest.fixture(params=[False, True], ids=["not on PyPI", "on PyPI"])
def published(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(installation, "PUBLISHED", request.param)
    return request.param


def test_one_switch_changes_cards_and_pipeline_files(published: bool, make_pipeline: Any, tmp_path: Path) -> None:
    make_pipeline().save_pretrained(tmp_path)
    card = str(MomentScheduler(mask_token_id=4).generate_model_card("me/preset"))
    for text in ((tmp_path / "README.md").read_text(), (tmp_path / "pipeline.py").read_text(), card):
        assert bool(FROM_PYPI.search(text)) == published
        assert ("pip install ." in text) != published
        assert ("pip install hf_maskdiff-*.whl" in text) != published


def test_what_lies_here_says_what_the_switch_says() -> None:
    """All that names the package as something to install; if it does not: `examples/push_to_hub.py --refresh_cards`."""
    files = [*GENERATED, *ROOT.glob("pipelines/*/pipeline.py")]
    assert len(GENERATED) > 10
    for path in files:
        assert installation.how_to_install() in path.read_text(), path.relative_to(ROOT)


def test_nothing_installs_from_pypi_what_is_not_there() -> None:
    told = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*"), *ROOT.glob("src/**/*.py")]
    allowed = {"docs/release.md", "src/hf_maskdiff_cli/installation.py"}
    found = {
        str(path.relative_to(ROOT))
        for path in [*told, *GENERATED, *ROOT.glob("pipelines/*/pipeline.py")]
        if path.is_file() and path.suffix in (".md", ".py", ".txt") and FROM_PYPI.search(path.read_text())
    }
    assert len(told) > 50
    assert installation.PUBLISHED or found <= allowed


@pytest.mark.parametrize(
    ("words", "from_pypi"),
    [
        ("`pip install hf-maskdiff`, then", True),
        ("pip install -U hf-maskdiff", True),
        ('pip install "hf_maskdiff"', True),
        ("pip install hf-maskdiff==0.2.0", True),
        ('pip install "hf-maskdiff[fid]"', False),
        ("pip install hf_maskdiff-*.whl", False),
        ("pip install hf_maskdiff-0.1.0-py3-none-any.whl", False),
        ("pip install -c constraints.txt -e .", False),
    ],
)
def test_what_installs_from_pypi_is_seen(words: str, from_pypi: bool) -> None:
    assert bool(FROM_PYPI.search(words)) == from_pypi


def test_the_version_is_written_once() -> None:
    version = hf_maskdiff.__version__
    assert "version = attr: hf_maskdiff.__version__" in (ROOT / "setup.cfg").read_text()
    assert re.search(rf"^## {re.escape(version)}, ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert not re.search(r"^version:", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    for path in (ROOT / "src").rglob("*.py"):
        assert path.read_text().count(f'"{version}"') == (path == ROOT / "src" / "hf_maskdiff" / "__init__.py"), path


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]]


def test_workflows_run_what_a_person_can_run() -> None:
    """Files of the repository, and no secret: the right to publish is the workflow's own, in its last job."""
    assert {path.name for path in WORKFLOWS} >= {"ci.yml", "release.yml"}
    for path in WORKFLOWS:
        for step in steps(path):
            for script in re.findall(r"bash (\S+)", step.get("run", "")):
                assert (ROOT / script).is_file()
        assert "secrets." not in path.read_text()
        assert "password" not in re.sub("#.*", "", path.read_text())
    release = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    assert release[True]["push"]["tags"] == ["v*"]  # YAML 1.1 reads the key `on` as true
    assert release["permissions"] == {"contents": "read"}
    assert "permissions" not in release["jobs"]["build"]
    publish = release["jobs"]["publish"]
    assert publish["needs"] == "build"
    assert (publish["permissions"], publish["environment"]) == ({"id-token": "write"}, "pypi")
    assert any("pypa/gh-action-pypi-publish" in step["uses"] for step in publish["steps"])


def test_the_scripts_of_a_release_parse() -> None:
    for name in ("release", "run"):
        subprocess.run(["bash", "-n", ROOT / ".ci" / name], check=True)
    compile((ROOT / ".ci" / "try_wheel.py").read_text(), "try_wheel.py", "exec")
