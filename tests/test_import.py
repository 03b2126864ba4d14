"""`import hf_maskdiff`: silent, quick, and one clear error where it cannot work."""

from __future__ import annotations

import subprocess
import sys
from resource import RUSAGE_CHILDREN, getrusage

import pytest


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_import_is_silent_and_registers_the_package() -> None:
    done = python(
        "import hf_maskdiff, sys\n"
        "from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES\n"
        "assert 'SchedulerMixin' in LOADABLE_CLASSES['hf_maskdiff']\n"
        "assert all(hasattr(hf_maskdiff, name) for name in hf_maskdiff.__all__)\n"
        "assert not {'matplotlib', 'datasets', 'hf_maskdiff.evaluation'} & set(sys.modules)\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_names_are_sorted_and_unique() -> None:
    import hf_maskdiff

    assert len(set(hf_maskdiff.__all__)) == len(hf_maskdiff.__all__)
    assert hf_maskdiff.__version__


@pytest.mark.parametrize(
    ("package", "installed", "oldest"),
    [("diffusers", "0.40.2", "0.41"), ("transformers", "4.57.1", "5.0"), ("torch", "2.5.1+cpu", "2.6")],
)
def test_an_old_version_is_one_clear_error(package: str, installed: str, oldest: str) -> None:
    """In a process of its own, so that the import itself is what fails; nothing heavy is loaded before it does."""
    done = python(
        "import importlib.metadata as metadata, sys\n"
        "installed = metadata.version\n"
        f"metadata.version = lambda name: {installed!r} if name == {package!r} else installed(name)\n"
        "try:\n"
        "    import hf_maskdiff\n"
        "except ImportError as error:\n"
        "    print(error, type(error).__name__, error.__cause__, 'torch' in sys.modules)\n"
    )
    message = f"hf_maskdiff needs {package} {oldest} or newer, found {installed}. Run `pip install -U {package}`."
    assert (done.stdout, done.stderr) == (f"{message} ImportError None False\n", "")


@pytest.mark.parametrize(
    ("package", "installed"),
    [
        ("torch", "2.6"),
        ("torch", "2.13.0+cu128"),
        ("torch", "10.0"),
        ("diffusers", "0.43.0.dev0"),
        ("diffusers", "1.0"),
    ],
)
def test_newer_versions_are_welcome(package: str, installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_maskdiff import _versions

    actual = _versions.version
    monkeypatch.setattr(_versions, "version", lambda name: installed if name == package else actual(name))
    _versions.require_supported_versions()


def test_a_missing_package_is_the_same_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_maskdiff import _versions

    def version(name: str) -> str:
        raise _versions.PackageNotFoundError(name)

    monkeypatch.setattr(_versions, "version", version)
    with pytest.raises(ImportError, match=r"needs torch 2.6 or newer, found none. Run `pip install -U torch`"):
        _versions.require_supported_versions()


@pytest.mark.exhaustive
def test_import_takes_hardly_longer_than_that_of_a_diffusers_pipeline() -> None:
    """The least of alternating pairs, by the time of the processor, which other programs only lengthen."""

    def seconds(code: str) -> float:
        before = getrusage(RUSAGE_CHILDREN).ru_utime
        assert python(code).returncode == 0
        return getrusage(RUSAGE_CHILDREN).ru_utime - before

    theirs, ours = [], []
    while len(ours) < 2 or (min(ours) > 1.1 * min(theirs) and len(ours) < 8):
        theirs.append(seconds("from diffusers import AmusedPipeline"))
        ours.append(seconds("import hf_maskdiff"))
    assert min(ours) <= 1.1 * min(theirs)
