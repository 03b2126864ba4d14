"""Bugs put into the package one at a time, and the fast test that notices each: what says that the tests would.

    python tests/mutants.py                           # all of `mutant_lists`: a table, exit status 1 if one lives
    python tests/mutants.py --only gumbel-sign --show

The checkout is not touched: a mutant is a copy of `src` in a temporary folder. Torch, diffusers and transformers are
imported once; each mutant is a fork of that process, which imports the package from its copy and runs the tests named
for it up to the first that fails. What does not import, is killed by the clock, or fails before a test runs, is no
mutant that a test has killed, and so counts as one that lives. Tests that speak with the stand-in of the Hub cannot be
named: it answers from a thread that a fork's client does not know; nor those of programs that are started with the
checkout's own sources. Needs a system with `fork`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")  # before they are read

import pytest
from hypothesis import Phase, settings
from mutant_lists import MUTANTS, Mutant

ROOT = Path(__file__).parents[1]
# What the package and most tests import, beside the package itself.
HEAVY = (
    "accelerate.PartialState",
    "datasets.Features",
    "diffusers.AmusedPipeline",
    "diffusers.DiffusionPipeline",
    "diffusers.VQModel",
    "diffusers.hooks.HookRegistry",
    "pyarrow.parquet.read_table",
    "scipy.linalg.sqrtm",
    "scipy.stats.kstest",
    "transformers.AutoModelForMaskedLM",
    "transformers.GPT2LMHeadModel",
    "transformers.LlamaForCausalLM",
    "transformers.ModernBertForMaskedLM",
    "transformers.PreTrainedTokenizerFast",
    "transformers.Qwen2ForCausalLM",
    "transformers.pipeline",
)
SECONDS = 240  # for the tests of one mutant: far more than they take
QUIET = (
    "-q",
    "--disable-warnings",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "-p",
    "no:randomly",
    "-m",
    "not exhaustive",
)


@dataclass
class Watch:
    """A plugin of pytest that notes what became of each test, and lets hypothesis stop at the first example."""

    passed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        sys.modules["conftest"]._prepare()  # it registers the tests' profile, and only once a module is collected
        known = settings.get_profile("hf_maskdiff")
        settings.register_profile("mutants", known, phases=(Phase.explicit, Phase.generate))
        settings.load_profile("mutants")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            getattr(self, report.outcome).append(report.nodeid)


@dataclass
class Outcome:
    """What a run of tests in a fork came to: pytest's exit status (None where it came to none), and the tests."""

    status: int | None
    seconds: float
    tests: dict[str, list[str]]
    printed: str

    @property
    def killer(self) -> str | None:
        """The test that failed, where it is a test that did."""
        failed = self.tests.get("failed", [])
        return failed[0] if self.status == pytest.ExitCode.TESTS_FAILED and failed else None


def import_heavy() -> None:
    """What a fork need not import again."""
    for name in HEAVY:
        module, _, attribute = name.rpartition(".")
        getattr(import_module(module), attribute)
    assert not any(name.partition(".")[0].startswith("hf_maskdiff") for name in sys.modules)


def run_tests(folder: Path, tests: Sequence[str], options: Sequence[str], packages: Sequence[str]) -> None:
    """In a fork: run tests with the packages of `folder / "src"`, and leave what they came to beside it."""
    signal.alarm(SECONDS)
    printed = os.open(folder / "printed", os.O_WRONLY | os.O_CREAT)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    os.chdir(ROOT)
    sys.path.insert(0, str(folder / "src"))
    os.environ["PYTHONPATH"] = str(folder / "src")  # for what the tests start
    for package in packages:
        found = Path(str(import_module(package).__file__))
        assert found.is_relative_to(folder), f"{package} is imported from {found}"
    watch = Watch()
    status = pytest.main([*QUIET, *options, f"--basetemp={folder / 'tmp'}", *tests], plugins=[watch])
    (folder / "outcome").write_text(json.dumps({"status": int(status), "tests": vars(watch)}))


@dataclass
class Run:
    """A fork that runs tests on a copy of the sources, with or without a bug, in a folder of its own within `place`."""

    place: Path
    tests: Sequence[str]
    mutant: Mutant | None = None
    options: Sequence[str] = ()

    def start(self) -> multiprocessing.process.BaseProcess:
        self.started = time.monotonic()
        self.folder = Path(tempfile.mkdtemp(dir=self.place))
        shutil.copytree(ROOT / "src", self.folder / "src", ignore=shutil.ignore_patterns("*.egg-info"))
        if self.mutant is not None:
            changed = self.mutant.changed(self.folder / "src")
            (self.folder / "src" / self.mutant.file).write_text(changed, encoding="utf-8")
        packages = sorted(path.parent.name for path in (self.folder / "src").glob("*/__init__.py"))
        arguments = (self.folder, self.tests, self.options, packages)
        self.process = multiprocessing.get_context("fork").Process(target=run_tests, args=arguments)
        self.process.start()
        return self.process

    def finish(self) -> Outcome:
        self.process.join()
        written, printed = self.folder / "outcome", (self.folder / "printed").read_text(errors="replace")
        found: dict[str, Any] = json.loads(written.read_text()) if written.is_file() else {"status": None, "tests": {}}
        if self.process.exitcode == -signal.SIGALRM:
            printed += f"\nno end within {SECONDS} seconds"
        shutil.rmtree(self.folder, ignore_errors=True)
        return Outcome(found["status"], time.monotonic() - self.started, found["tests"], printed)


def outcomes(mutants: Iterable[Mutant], jobs: int, place: Path) -> Iterator[tuple[Mutant, Outcome]]:
    """Every mutant as it is done, `jobs` at a time."""
    waiting, running = list(mutants), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop(0)
            run = Run(place, mutant.tests, mutant, ("-x",))
            running[run.start().sentinel] = mutant, run
        for sentinel in wait(list(running)):
            mutant, run = running.pop(sentinel)
            yield mutant, run.finish()


def unusable(mutants: Sequence[Mutant], place: Path) -> str | None:
    """Why nothing can be said: mutants that cannot be made, tests that fail without one, or are skipped."""
    stale = []
    for mutant in mutants:
        try:
            mutant.changed(ROOT / "src")
        except ValueError as error:
            stale.append(str(error))
    if stale:
        return "\n".join(stale)
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    run = Run(place, tests)
    run.start()
    outcome = run.finish()
    if outcome.status != pytest.ExitCode.OK:
        return f"{outcome.printed}\nWithout a mutant the tests must pass."
    heard = {*outcome.tests["passed"], *(name.partition("[")[0] for name in outcome.tests["passed"])}
    silent = [test for test in tests if test not in heard]
    if silent:
        return f"These tests passed nowhere, as they were skipped: {', '.join(silent)}. Name others."
    print(f"without a mutant all {len(outcome.tests['passed'])} tests pass, in {outcome.seconds:.0f} s\n", flush=True)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutants; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time; default: 2")
    parser.add_argument("--show", action="store_true", help="what pytest printed, also of those that are killed")
    options = parser.parse_args(arguments)
    unknown = {*(options.only or ())} - {mutant.name for mutant in MUTANTS}
    if unknown:
        parser.error(f"`--only` must name mutants of mutant_lists, got {', '.join(sorted(unknown))}.")
    mutants = [mutant for mutant in MUTANTS if options.only is None or mutant.name in options.only]

    with tempfile.TemporaryDirectory(prefix="mutants_") as place:
        return report(mutants, options.jobs, options.show, Path(place))


def report(mutants: Sequence[Mutant], jobs: int, show: bool, place: Path) -> int:
    """Print what becomes of each mutant; 1 where one lives or nothing can be said."""
    started = time.monotonic()
    import_heavy()
    reason = unusable(mutants, place)
    if reason is not None:
        print(reason)
        return 1
    names, files = (max(len(getattr(mutant, which)) for mutant in mutants) for which in ("name", "file"))
    lives = []
    for mutant, outcome in outcomes(mutants, jobs, place):
        killer = outcome.killer
        line = f"{mutant.name:{names}}  {mutant.file:{files}}  {outcome.seconds:5.1f} s  "
        print(line + (f"killed by {killer}" if killer else f"LIVES: {mutant.bug}"), flush=True)
        if killer is None:
            lives.append(mutant.name)
        if show or killer is None:
            print(outcome.printed)
    print(f"\n{len(mutants) - len(lives)} of {len(mutants)} killed, in {time.monotonic() - started:.0f} s")
    if lives:
        print(f"these live: {', '.join(lives)}")
    return 1 if lives else 0


if __name__ == "__main__":
    sys.exit(main())
