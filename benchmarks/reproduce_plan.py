"""What of `reproduce.py` is run within so many hours, what is not and why, and what is downloaded for it."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from published_numbers import PUBLISHED
from reproduce_entries import SOURCES, Entry

from hf_maskdiff_cli.results.tables import markdown

# What has no default, by the entries' needs: the argument that names it.
BROUGHT = {"mage": "mage", "imagenet": "imagenet_val", "adm": "adm_statistics"}


@dataclass(frozen=True)
class Planned:
    """An entry of a plan.

    Args:
        hours: how long it takes, about.
        obstacle: why it is not run; empty if it is.
        is_done: whether an earlier run has finished it.
    """

    entry: Entry
    hours: float
    obstacle: str = ""
    is_done: bool = False

    @property
    def runs(self) -> bool:
        return not self.obstacle and not self.is_done


def plan(
    entries: Sequence[Entry], args: argparse.Namespace, finished: Mapping[str, float], failed: Collection[str] = ()
) -> list[Planned]:
    """Take the entries in their order, as long as they fit: one that does not leaves its place to shorter ones.

    Args:
        finished: hours of each entry that is done. Their speed replaces the one that was assumed.
        failed: entries that this call has tried.
    """
    left, found, pace = args.hours, [], pace_of(entries, args, finished)
    for entry in entries:
        hours = pace * entry.hours(args)
        missing = [f"--{BROUGHT[need]}" for need in entry.needs if need in BROUGHT and not getattr(args, BROUGHT[need])]
        if entry.name in finished:
            found.append(Planned(entry, finished[entry.name], is_done=True))
        elif entry.name in failed:
            found.append(Planned(entry, hours, "it failed"))
        elif missing:
            found.append(Planned(entry, hours, f"needs {' and '.join(missing)}"))
        elif hours > left:
            found.append(Planned(entry, hours, f"does not fit: {left:.2f} hours are left"))
        else:
            left -= hours
            found.append(Planned(entry, hours))
    return found


def pace_of(entries: Sequence[Entry], args: argparse.Namespace, finished: Mapping[str, float]) -> float:
    """Hours that an hour of the assumption takes: the median of what is done, 1 before anything is."""
    ratios = [finished[entry.name] / entry.hours(args) for entry in entries if entry.name in finished]
    return median(ratios) if ratios else 1.0


def downloads(planned: Sequence[Planned], args: argparse.Namespace) -> list[str]:
    """Keys of `SOURCES` that the plan's runs need and that do not lie on this machine."""
    needs = dict.fromkeys(need for one in planned if one.runs for need in one.entry.needs)
    return [need for need in needs if SOURCES[need].gigabytes and not _is_here(need, args)]


def _is_here(need: str, args: argparse.Namespace) -> bool:
    if need == "openwebtext" and not args.openwebtext:
        return True  # not asked for
    if need == "inception":
        return args.network != "inception"
    given = getattr(args, need, None)
    return isinstance(given, str) and any(Path(word).exists() for word in given.split())


def told(planned: Sequence[Planned], args: argparse.Namespace) -> str:
    """The plan in Markdown: every entry, and what is downloaded and under which licence."""
    rows = [[one.entry.name, f"{one.hours:.2f}", _published(one.entry.name), _status(one)] for one in planned]
    needed = sum(one.hours for one in planned if one.runs)
    parts = [
        markdown(["entry", "hours, about", "published", "plan"], rows),
        f"{needed:.2f} of {args.hours:g} hours, at {args.teraflops:g} teraflops until an entry has been timed.",
    ]
    return "\n\n".join([*parts, told_of(downloads(planned, args))])


def told_of(wanted: Sequence[str]) -> str:
    """How much is downloaded, and under which licences.

    Args:
        wanted: keys of `SOURCES`.
    """
    if not wanted:
        return "Nothing is downloaded."
    total = sum(SOURCES[need].gigabytes for need in wanted)
    lines = [[SOURCES[need].name, f"{SOURCES[need].gigabytes:g}", SOURCES[need].licence] for need in wanted]
    table = markdown(["what", "GB, about", "licence"], lines)
    return f"Downloaded, unless it is in the cache already: about {total:.1f} GB in all.\n\n{table}"


def _published(name: str) -> str:
    found = PUBLISHED.get(name, ())
    return ", ".join(f"{one.measure} {one.value:g}{'' if one.was_seen else ' (not verified)'}" for one in found)


def _status(one: Planned) -> str:
    return "done" if one.is_done else f"left out: {one.obstacle}" if one.obstacle else "runs"
