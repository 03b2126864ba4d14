"""The wheel holds all that the package needs: it imports and samples where there is no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]

PROGRAM = """
import hf_maskdiff, sys, torch
assert hf_maskdiff.__file__.startswith(sys.argv[1]), hf_maskdiff.__file__
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
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", wheels, source], check=True)
    (wheel,) = wheels.glob("hf_maskdiff-*.whl")
    names = ZipFile(wheel).namelist()
    assert "hf_maskdiff/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "examples", "benchmarks"))]

    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(site), str(ROOT / "pipelines" / "maskgit-mnist")],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.1.0"
