"""Wheel and source distribution hold all that both packages need: they work where there is no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]

PROGRAM = """
import hf_maskdiff, hf_maskdiff_cli, sys, torch
for package in (hf_maskdiff, hf_maskdiff_cli):
    assert package.__file__.startswith(sys.argv[1]), package.__file__
from hf_maskdiff import HaltonMaskGITTransformer2DModel, MaskGITPipeline
pipe = MaskGITPipeline.from_pretrained(sys.argv[2]).to("cpu")
pipe.set_progress_bar_config(disable=True)
image = pipe(class_labels=3, num_inference_steps=2, output_type="pt").images
assert image.shape == (1, 1, 28, 28)
print(hf_maskdiff.__version__)
"""


@pytest.mark.exhaustive
def test_the_wheel_samples_without_the_checkout(tmp_path: Path) -> None:
    source, wheels, site = tmp_path / "source", tmp_path / "wheels", tmp_path / "site"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    subprocess.run([sys.executable, "-m", "build", "--outdir", wheels, source], check=True)
    (wheel,) = wheels.glob("hf_maskdiff-*.whl")  # built of what is in the source distribution
    (archive,) = wheels.glob("hf_maskdiff-*.tar.gz")
    names = ZipFile(wheel).namelist()
    with tarfile.open(archive) as opened:
        sources = opened.getnames()
    for package in ("hf_maskdiff", "hf_maskdiff_cli"):
        for path in ("__init__.py", "py.typed"):
            assert f"{package}/{path}" in names
            assert f"{archive.name.removesuffix('.tar.gz')}/src/{package}/{path}" in sources
    assert not [name for name in names if name.startswith(("tests", "examples", "benchmarks"))]

    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        installed = environment | {"PYTHONPATH": str(site)}
        return subprocess.run(command, cwd=tmp_path, env=installed, capture_output=True, text=True)

    done = run(sys.executable, "-c", PROGRAM, str(site), str(ROOT / "pipelines" / "maskgit-mnist"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.1.0"
    (tmp_path / "model.safetensors").touch()
    done = run(str(site / "bin" / "hf-maskdiff"), "convert", "model.safetensors", "new")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("hf-maskdiff convert: `source` must be the folder of 'model.safetensors'")
