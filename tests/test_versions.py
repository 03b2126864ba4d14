"""The oldest supported versions are said once each in four places: they agree, and nothing is capped."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from hf_maskdiff._versions import SUPPORTED

ROOT = Path(__file__).parents[1]


def pinned(name: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return {package.lower(): Version(version) for package, version in (line.split("==") for line in lines)}


def required() -> dict[str, Requirement]:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    requirements = [Requirement(line) for line in parser["options"]["install_requires"].split("\n") if line]
    return {requirement.name.lower(): requirement for requirement in requirements}


def floors() -> dict[str, Version]:
    return {name: Version(next(iter(r.specifier)).version) for name, r in required().items()}


def test_nothing_is_capped() -> None:
    assert len(required()) == 8
    assert all([s.operator for s in requirement.specifier] == [">="] for requirement in required().values())
    assert re.search(r"^python_requires = >=3\.10$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)


def test_the_oldest_versions_are_those_that_are_tested() -> None:
    oldest = pinned("constraints-min.txt")
    for name, floor in floors().items():
        assert oldest[name].release[: len(floor.release)] == floor.release, name
    for name, floor in SUPPORTED.items():
        assert floors()[name] == Version(floor)


def test_the_newest_tested_versions_are_newer() -> None:
    newest, oldest = pinned("constraints.txt"), pinned("constraints-min.txt")
    assert {name for name in oldest if name in newest} >= {"torch", "diffusers", "transformers", "accelerate"}
    assert all(newest[name] >= oldest[name] for name in oldest if name in newest)
