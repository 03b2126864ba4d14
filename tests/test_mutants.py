"""The list of mutants is that of the sources and tests as they are now; `mutants.py` runs them."""

from __future__ import annotations

import ast
from pathlib import Path

from mutant_lists import MUTANTS

ROOT = Path(__file__).parents[1]


def test_every_mutant_can_be_made() -> None:
    stale = []
    for mutant in MUTANTS:
        try:
            ast.parse(mutant.changed(ROOT / "src"))
        except (ValueError, SyntaxError) as error:
            stale.append(f"{mutant.name}: {error}")
    assert not stale


def test_every_test_that_shall_kill_one_is_there() -> None:
    missing = []
    for test in {test for mutant in MUTANTS for test in mutant.tests}:
        path, _, name = test.partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8")) if (ROOT / path).is_file() else ast.Module([], [])
        if name.partition("[")[0] not in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]:
            missing.append(test)
    assert not missing


def test_they_are_many_and_have_names_of_their_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 30
    assert len({(mutant.file, mutant.before, mutant.after) for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.tests and mutant.before != mutant.after for mutant in MUTANTS)
