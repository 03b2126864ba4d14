"""Source distribution and wheel hold the repository and the two packages, nothing else; the wheel needs no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

import hf_maskdiff

ROOT = Path(__file__).parents[1]
# What a checkout may hold that is not the project's, some of it in folders that are packed whole.
STRAY = (
    "out/results.json",
    "runs/model.safetensors",
    "wheels/torch.whl",
    "notes.pdf",
    "src/hf_maskdiff/__pycache__/hub.cpython-311.pyc",
    "tests/__pycache__/test_hub.cpython-311.pyc",
    "tests/.hypothesis/examples/one",
    "examples/.pytest_cache/README.md",
)


def committed() -> list[str]:
    """Every file of the repository, by git. In an unpacked source distribution there is nobody to ask."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("the files of the repository are known from git, and this is no checkout")
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted(name for name in names if name and (ROOT / name).is_file())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Source distribution, and the wheel that is built of what is in it, from a checkout that is not tidy."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in committed():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    for name in STRAY:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("stray")
    subprocess.run([sys.executable, "-m", "build", "--outdir", built, source], check=True)
    (archive,), (wheel,) = built.glob("hf_maskdiff-*.tar.gz"), built.glob("hf_maskdiff-*.whl")
    assert f"hf_maskdiff-{hf_maskdiff.__version__}" in wheel.name
    return archive, wheel


def test_every_folder_of_the_repository_goes_into_the_source_distribution() -> None:
    """The quick sibling of the next test: a new folder has to be named in MANIFEST.in."""
    folders = {name.split("/", 1)[0] for name in committed() if "/" in name}
    lines = (ROOT / "MANIFEST.in").read_text().splitlines()
    assert folders == {line.removeprefix("graft ") for line in lines if line.startswith("graft ")}


@pytest.mark.exhaustive
def test_the_source_distribution_is_the_repository(built: tuple[Path, Path]) -> None:
    """So tests, examples and benchmarks run of it; a new folder has to be named in MANIFEST.in."""
    archive, _ = built
    with tarfile.open(archive) as opened:
        names = {member.name.split("/", 1)[1] for member in opened.getmembers() if member.isfile()}
    written = {name for name in names if name == "PKG-INFO" or name.startswith("src/hf_maskdiff.egg-info/")}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "tests/conftest.py", "pipelines/maskgit-mnist/README.md"} <= names
    assert names - written == set(committed())


@pytest.mark.exhaustive
def test_the_wheel_is_the_two_packages_and_their_licence(built: tuple[Path, Path]) -> None:
    _, wheel = built
    names = {name for name in ZipFile(wheel).namelist() if not name.endswith("/")}
    about = f"hf_maskdiff-{hf_maskdiff.__version__}.dist-info"
    described = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    packages = {name.removeprefix("src/") for name in committed() if name.startswith("src/")}
    assert {"hf_maskdiff/py.typed", "hf_maskdiff_cli/py.typed", "hf_maskdiff/pipelines/__init__.py"} <= packages
    assert names == packages | {f"{about}/{name}" for name in described}


@pytest.mark.exhaustive
def test_the_wheel_samples_without_the_checkout(built: tuple[Path, Path], tmp_path: Path) -> None:
    _, wheel = built
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        installed = environment | {"PYTHONPATH": str(site)}
        return subprocess.run(command, cwd=tmp_path, env=installed, capture_output=True, text=True)

    shutil.copy(ROOT / ".ci" / "try_wheel.py", tmp_path)
    done = run(sys.executable, "try_wheel.py", str(ROOT / "pipelines"), str(site))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == hf_maskdiff.__version__
    (tmp_path / "model.safetensors").touch()
    done = run(str(site / "bin" / "hf-maskdiff"), "convert", "model.safetensors", "new")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("hf-maskdiff convert: `source` must be the folder of 'model.safetensors'")
