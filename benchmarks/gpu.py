r"""Tests and times the package on a GPU in one command, in under five minutes, without downloads.

It checks samplers' laws and host waits, and measures times, memory and compilation.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --tiny --sections laws syncs     # a quick trial of the program, on any device
    python benchmarks/gpu.py --report out/gpu/gpu.json        # writes docs/gpu.md (and docs/gpu.json) from runs

For a machine without a network, download the packages that it lacks into `wheels/`, which git ignores:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --dest wheels \
        diffusers==0.42.1 requests importlib_metadata \
        datasets==5.2.0 "dill<0.4.2" "multiprocess<0.70.20"
    pip install --no-index --no-deps --target site wheels/*.whl     # on that machine
    PYTHONPATH=site python benchmarks/gpu.py

(`--target` because the packages of such a machine may be read-only.) It needs torch, transformers, diffusers,
safetensors, huggingface-hub, requests, Pillow and numpy; the package itself is taken from `src/`. Its kernels, which
the sections `laws` and `step_time` try beside torch alone, need triton, which comes with torch for CUDA. The section
`generation` also needs accelerate, datasets (with dill and multiprocess) and pyarrow, and reports in one line if they
are missing.

Every section (`gpu_sections/__init__.py` lists them) runs in a process of its own, which is killed after the section's
time limit. So an error, a broken GPU context or a timeout costs only the remaining rows of that section. The process of
the next section starts at the same time and waits: imports take ten seconds, and touch no GPU. After each
section `gpu.json` and `gpu.md` in `--output_dir` hold all results so far.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpu_report import page
from gpu_sections import SECTIONS, Section

ROOT = Path(__file__).resolve().parents[1]
TOTAL_SECONDS = 300.0  # for all sections together
LEAST_SECONDS = 20.0  # a section does not start with less time than this
CASES_FAILED = 3  # a section's exit code if all cases ran and some raised; Python's own errors give 1
PACKAGES = ("torch", "transformers", "diffusers", "accelerate", "numpy", "triton", "datasets")
FOLDER_OF_A_PATH = re.compile(r"(?:[A-Za-z]:)?/(?:[\w.+-]+/)+")

# Runs a section: (section, file for its rows, seconds, options) -> its status
Runner = Callable[[Section, Path, float, argparse.Namespace], str]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "out" / "gpu")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--tiny", action="store_true", help="meaningless sizes, for a quick trial without a GPU")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="for all sections together")
    parser.add_argument(
        "--report",
        type=Path,
        nargs="+",
        metavar="JSON",
        help="only write the page in docs/ from these runs on one machine, a later one's sections instead of earlier",
    )
    parser.add_argument("--child", nargs=2, metavar=("MODULE", "ROWS"), help=argparse.SUPPRESS)
    parser.add_argument("--wait", action="store_true", help=argparse.SUPPRESS)  # for a line, once all is imported
    return parser.parse_args(argv)


# --- a section, in the process that runs it ---------------------------------------------------------------------------


def import_and_wait(module: str) -> None:
    """Import what a section needs, and wait until the process that has started this one says that it is its turn."""
    with contextlib.suppress(Exception):  # it is imported again, and its error reported, when the section runs
        importlib.import_module(module)
    if not sys.stdin.readline():
        sys.exit("not needed")


def run_section(module: str, rows_file: Path, tiny: bool) -> bool:
    """Run the cases of a section, writing every row at once; returns whether none of them raised."""
    clean, began = True, time.monotonic()
    with rows_file.open("a") as file:

        def write(**row: Any) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        import torch

        write(machine=machine())
        if not torch.cuda.is_available() and not tiny:
            raise RuntimeError("torch sees no CUDA device. Pass --tiny to try the program without one.")
        measures = importlib.import_module("gpu_sections.measures")
        bench = measures.Bench(torch.device("cuda" if torch.cuda.is_available() else "cpu"), tiny)
        for case, work in importlib.import_module(module).cases(bench):
            print(f"{module}, after {time.monotonic() - began:.1f} s: {case}", file=sys.stderr, flush=True)
            try:
                for row in work():
                    write(case=case, row=row)
            except Exception as error:
                traceback.print_exc()
                write(case=case, row={"error": in_a_line(error)})
                clean = False
            del work  # frees its model before the next one is made
    return clean


def machine() -> dict[str, str]:
    """The GPU, and the versions of Python and of packages."""
    import torch

    found = {"card": f"none, {platform.processor() or platform.machine()}"}
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        found["card"] = f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB"
        found["CUDA"] = str(torch.version.cuda)
    found["Python"] = platform.python_version()
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def in_a_line(error: BaseException) -> str:
    """Type, message and place of an error, without paths of this machine."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return without_folders(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{place}")


def without_folders(text: str) -> str:
    return FOLDER_OF_A_PATH.sub("", text)


# --- a section, in a process of its own -------------------------------------------------------------------------------


# Processes of sections that wait for their turn.
_waiting: dict[str, subprocess.Popen] = {}


def prepare(section: Section, rows_file: Path, args: argparse.Namespace) -> None:
    """Start the process of a section, which imports what it needs and waits."""
    command = [sys.executable, str(Path(__file__).resolve()), "--wait", "--child", section.module, str(rows_file)]
    path = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (args.output_dir / "gpu.log").open("a") as file:
        # A process group, not a session, so that ending this program's session ends it too.
        _waiting[section.module] = subprocess.Popen(
            command + ["--tiny"] * args.tiny,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env=environment,
            preexec_fn=os.setpgrp,
        )


def in_own_process(section: Section, rows_file: Path, seconds: float, args: argparse.Namespace) -> str:
    """Run a section in its own process and return its status; afterwards all its processes have ended."""
    if section.module not in _waiting:
        prepare(section, rows_file, args)
    log, process = args.output_dir / "gpu.log", _waiting.pop(section.module)
    try:
        with contextlib.suppress(BrokenPipeError):  # it has ended, and its code says why
            process.communicate(b"go\n", timeout=seconds)
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    finally:
        kill_group(process)
    if code in (0, CASES_FAILED):
        return "done" if code == 0 else "done, with errors"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = without_folders(lines[-1])[:300] if lines else ""
    return f"broke off with code {code}: {last}"


def kill_group(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# --- all of them ------------------------------------------------------------------------------------------------------


def run_all(sections: Mapping[str, Section], args: argparse.Namespace, run: Runner = in_own_process) -> dict[str, Any]:
    """Run the sections one after the other; after each, the files hold all results so far."""
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "gpu.log").unlink(missing_ok=True)
    began = time.monotonic()
    today = datetime.now(timezone.utc).date().isoformat()
    results: dict[str, Any] = {"date": today, "tiny": args.tiny, "machine": {}, "sections": {}}
    following = [*list(sections.items())[1:], None]
    for (name, section), after in zip(sections.items(), following, strict=True):
        rows_file, started = args.output_dir / f"{name}.jsonl", time.monotonic()
        rows_file.unlink(missing_ok=True)
        seconds = min(section.seconds, args.seconds - (started - began))
        print(f"{name}: at most {max(seconds, 0):.0f} s", flush=True)
        status = "not run: no time was left"
        if seconds >= min(LEAST_SECONDS, section.seconds):
            if after is not None and run is in_own_process:
                prepare(after[1], args.output_dir / f"{after[0]}.jsonl", args)
            status = run(section, rows_file, seconds, args)
        rows = []
        for line in read_lines(rows_file):
            results["machine"] |= line.get("machine", {})
            rows += [{"case": line["case"], **line["row"]}] if "case" in line else []
        results["sections"][name] = {
            "title": section.title,
            "reading": section.reading,
            "status": status,
            "seconds": round(time.monotonic() - started, 1),
            "rows": rows,
        }
        save(results, args.output_dir)
        rows_file.unlink(missing_ok=True)
        errors = sum("error" in row for row in rows)
        print(f"{name}: {status}, {len(rows)} rows, {errors} errors", flush=True)
    return results


def read_lines(rows_file: Path) -> list[dict[str, Any]]:
    """The rows that a process has written; an incomplete last line of a killed process is dropped."""
    lines = []
    for line in rows_file.read_text().splitlines() if rows_file.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def save(results: dict[str, Any], folder: Path) -> None:
    """Write to temporary files and rename them, so that the files are complete at any moment."""
    for name, content in (("gpu.json", json.dumps(results, indent=1) + "\n"), ("gpu.md", page(results))):
        partial = folder / f"{name}.partial"
        partial.write_text(content)
        os.replace(partial, folder / name)


def together(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One result of several runs on one machine: each section as the last run has it that came to it."""
    last = runs[-1]
    sections: dict[str, Any] = {}
    for run in runs:
        if run["machine"] != last["machine"]:
            raise SystemExit(f"A page is of one machine, got {run['machine']} and {last['machine']}.")
        older = {} if run["date"] == last["date"] else {"date": run["date"]}
        begun = {name: older | section for name, section in run["sections"].items() if section["rows"]}
        sections |= {name: section for name, section in run["sections"].items() if name not in sections} | begun
    order = [name for name in SECTIONS if name in sections]
    return {**last, "sections": {name: sections[name] for name in [*order, *(sections.keys() - set(order))]}}


def write_page(results_files: Sequence[Path], docs: Path) -> None:
    """Write the page in docs/, and next to it the numbers that it is made from."""
    results = together([json.loads(file.read_text()) for file in results_files])
    (docs / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    (docs / "gpu.md").write_text(page(results))


def main(argv: Sequence[str] | None = None) -> dict[str, Any] | None:
    args = parse_args(argv)
    if args.child:
        module, rows_file = args.child
        if args.wait:
            import_and_wait(module)
        sys.exit(0 if run_section(module, Path(rows_file), args.tiny) else CASES_FAILED)
    if args.report is not None:
        write_page(args.report, ROOT / "docs")
        return None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the section's process is ended too
    try:
        results = run_all({name: SECTIONS[name] for name in args.sections}, args)
    finally:
        for process in _waiting.values():
            kill_group(process)
    print(f"{args.output_dir}: gpu.json, gpu.md and, with what was printed, gpu.log")
    return results


if __name__ == "__main__":
    main()
