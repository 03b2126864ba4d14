"""The report of `reproduce.py`: our numbers beside the published ones, what failed and what was left out, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from published_numbers import CLAIMS, PUBLISHED
from reproduce_plan import Planned

from hf_maskdiff_cli.results import Results, combined, read_results
from hf_maskdiff_cli.results.numbers import measured
from hf_maskdiff_cli.results.report import page
from hf_maskdiff_cli.results.tables import markdown


def results_of(planned: Sequence[Planned], folder: Path) -> dict[str, Results]:
    """The files of what is done, the latest one of each, by the entries' names."""
    found = {}
    for one in planned:
        files = sorted(folder.glob(one.entry.results), key=lambda path: path.stat().st_mtime)
        if one.is_done and files:
            found[one.entry.name] = read_results(files[-1])
    return found


def report(planned: Sequence[Planned], folder: Path, state: Mapping[str, Any], note: str = "") -> str:
    """The whole report in Markdown.

    Args:
        state: what is known of each entry that was begun, by name.
        note: a line that stands first: of a run whose numbers say nothing, say.
    """
    found = results_of(planned, folder)
    parts = ["# Our numbers beside the published ones"]
    parts += [note] if note else []
    parts.append(_beside(found))
    families = dict.fromkeys(one.entry.family for one in planned)
    claims = [f"- {CLAIMS[name]}" for name in (*families, "paper") if name in CLAIMS]
    parts.append("Claims without a number that a row could be held against:\n\n" + "\n".join(claims))
    rest = [[one.entry.name, _why(one, state.get(one.entry.name, {}))] for one in planned if not one.is_done]
    if rest:
        parts += ["## What is not there", markdown(["entry", "why"], rest)]
    parts += [page(found).replace("# Results", "## Every run", 1).rstrip("\n")] if found else []
    return "\n\n".join(parts) + "\n"


def _beside(found: Mapping[str, Results]) -> str:
    rows = []
    for name, results in found.items():
        published = {one.measure: one for one in PUBLISHED.get(name, ())}
        for record in combined(results.records):
            for measure, value in record.measures.items():
                ours, other = measured(value, results.measures[measure]), published.get(measure)
                if other is None:
                    rows.append([name, measure, ours, "", "", ""])
                else:
                    gap = "" if value.value is None else f"{value.value - other.value:+.4g}"
                    seen = other.source if other.was_seen else f"{other.source} (NOT VERIFIED: look it up)"
                    rows.append([name, measure, ours, f"{other.value:g}", gap, seen])
    if not rows:
        return "No entry is done yet."
    return markdown(["entry", "measure", "ours", "published", "ours - published", "source"], rows)


def _why(one: Planned, state: Mapping[str, Any]) -> str:
    if "error" in state:
        return f"failed after {state['hours']:.2f} hours: {state['error']}; the same command tries again"
    return one.obstacle or "not begun; the same command goes on"
