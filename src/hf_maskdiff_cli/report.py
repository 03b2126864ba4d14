"""`hf-maskdiff report`: a report of files of results, or the tables of a page that are made of them."""

from __future__ import annotations

import argparse
import difflib
from importlib.util import find_spec
from pathlib import Path

from .results import read_results
from .results.pages import rendered
from .results.report import names_of, page

RESULTS_OF_PAGES = Path("benchmarks/results")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare every argument of the command."""
    add = parser.add_argument
    add(
        "results",
        nargs="*",
        type=Path,
        help="files of `evaluate`, `tune`, lm_eval or a benchmark, shown one by one and side by side",
    )
    add("--output_dir", type=Path, help="for report.md and report.png; default: print the report alone")
    pages = parser.add_argument_group("instead of a report: pages whose tables are made of files of results")
    add = pages.add_argument
    add("--page", type=Path, nargs="+", metavar="PAGE.md", help="make their blocks of results anew")
    add("--results_dir", type=Path, default=RESULTS_OF_PAGES, help=f"their files; default {RESULTS_OF_PAGES}")
    add("--check", action="store_true", help="change nothing, but fail if a page is not what its files say")


def run(args: argparse.Namespace) -> str | None:
    """Check the arguments, then print or write the report, or make or check the pages.

    Returns:
        The report; None for pages.

    Raises:
        ValueError: arguments or files that cannot work, or a page that is not what its files say.
        OSError: a file cannot be read or written.
    """
    if bool(args.results) == bool(args.page):
        raise ValueError(
            f"pass either files of results or --page, got {len(args.results)} files and {len(args.page or [])} pages. "
            "`hf-maskdiff report out/report/report.json` shows one."
        )
    if args.page:
        _require_alone(args)
        for path in args.page:
            _make(path, args.results_dir, args.check)
        return None
    if args.check:
        raise ValueError("--check is for --page, got files of results. Leave it out.")
    return _report(args)


def _require_alone(args: argparse.Namespace) -> None:
    if args.output_dir is not None:
        raise ValueError(f"--output_dir is for files, got {str(args.output_dir)!r} with --page. Leave it out.")


def _make(path: Path, folder: Path, check: bool) -> None:
    before = path.read_text(encoding="utf-8")
    after = rendered(before, folder)
    if after == before:
        return
    if check:
        changes = difflib.unified_diff(before.splitlines(), after.splitlines(), "page", "files", lineterm="", n=0)
        line = next((one for one in changes if one.startswith("-") and not one.startswith("---")), "-")
        raise ValueError(
            f"{str(path)!r} must be what the files in {str(folder)!r} say, got a line that they do not: {line[1:]!r}. "
            f"Run `hf-maskdiff report --page {path}`."
        )
    path.write_text(after, encoding="utf-8")


def _report(args: argparse.Namespace) -> str:
    found = dict(zip(names_of(args.results), [read_results(path) for path in args.results], strict=True))
    if args.output_dir is None:
        text = page(found)
    else:
        if find_spec("matplotlib") is None:
            raise ValueError(
                'a report has a picture, which needs matplotlib. Run `pip install "hf-maskdiff[evaluation]"`, or leave '
                "out --output_dir."
            )
        from .results.pictures import draw

        args.output_dir.mkdir(parents=True, exist_ok=True)
        draw(found, args.output_dir / "report.png")
        text = page(found, "report.png")
        (args.output_dir / "report.md").write_text(text, encoding="utf-8")
    print(text, end="")
    return text
