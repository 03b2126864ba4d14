r"""MAGE, Halton-MaskGIT, MDLM, SDTT and LLaDA in one command, and our numbers beside the published ones.

    python benchmarks/reproduce.py --hours 8 --plan   # says what would be run, and ends
    python benchmarks/reproduce.py --hours 8 --output_dir out/reproduce --mage mage-vitb.pth \
        --imagenet_val imagenet/val --adm_statistics VIRTUAL_imagenet256_labeled.npz

Prints the plan first: how long each entry takes, about, what does not fit or has no data, and what is downloaded, how
much of it and under which licence. Then it runs entry by entry. Estimates are operations divided by `--teraflops`, and
corrected by what is done as soon as something is. What no longer fits then is left out, and said; an entry that has
begun is not stopped.

Stopped, the same command goes on where it was, with `--hours` from then on: `progress.json` knows what is done. An
entry that fails is reported, costs the others nothing, and is tried again by the next call. After every entry
`report.md` is written anew; `log.txt` has the progress. `--launch` starts samples and tasks on many GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from arguments import new_parser
from reproduce_entries import ENTRIES, Entry, Step
from reproduce_plan import Planned, downloads, plan, told, told_of
from reproduce_report import report

Command = Callable[[Sequence[str], bool], None]  # words of `hf-maskdiff`, and whether many processes share them
# Arguments that decide the numbers: a folder of results has one value of each.
SETTINGS = ("mage", "halton", "llamagen", "mdlm", "sdtt", "llada", "imagenet_val", "adm_statistics", "openwebtext")
SETTINGS += ("network", "judge", "images", "texts", "limit", "dtype")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--hours", type=float, required=True, help="of this call, for all entries together")
    add("--output_dir", type=Path, help="with --plan: where earlier calls have left something, if they have")
    add("--plan", action="store_true", help="print the plan and end")
    add("--entries", nargs="+", choices=[entry.name for entry in ENTRIES], metavar="NAME", help="only these")
    add("--teraflops", type=float, default=100.0, help="speed that the machine sustains, before it is known")
    add("--launch", default="hf-maskdiff", help="accelerate launch --multi_gpu --num_processes 8 -m hf_maskdiff, say")
    sources = parser.add_argument_group(
        "sources: other words of `convert` may stand before one; or a folder that `convert` wrote"
    )
    add = sources.add_argument
    add("--mage", help="mage-vitb.pth, by the link of LTH14/mage's README")
    add("--halton", default="llvictorll/Halton-Maskgit/ImageNet_256_base.pth")
    add("--llamagen", default="FoundationVision/LlamaGen/vq_ds16_c2i.pt")
    add("--mdlm", default="kuleshov-group/mdlm-owt")
    add("--sdtt", default="jdeschena/sdtt@baselines_kld_step_70000")
    add("--llada", default="GSAI-ML/LLaDA-8B-Base")
    judges = parser.add_argument_group("judges and references")
    add = judges.add_argument
    add("--imagenet_val", help="folder of ImageNet's 50,000 validation images")
    add("--adm_statistics", help="VIRTUAL_imagenet256_labeled.npz of openai/guided-diffusion")
    add("--openwebtext", help="Skylion007/openwebtext or a folder of .txt files, for MAUVE; default: no MAUVE")
    add("--network", default="inception")
    add("--judge", default="openai-community/gpt2-large")
    sizes = parser.add_argument_group("sizes; published numbers compare with the defaults alone")
    add = sizes.add_argument
    add("--images", type=int, default=50_000)
    add("--texts", type=int, default=1024)
    add("--limit", type=int, help="questions of a task")
    add("--batch_size", type=int, default=128)
    add("--dtype", default="bfloat16", choices=("float32", "float16", "bfloat16"))
    args = parser.parse_args(argv)
    if args.output_dir is None and not args.plan:
        parser.error("--output_dir must be given for all but --plan: the results are kept there")
    if not args.hours > 0:
        raise ValueError(f"`hours` must be above 0, got {args.hours}. Pass how long the machine is yours.")
    return args


# --- what is known from earlier calls ---------------------------------------------------------------------------------


def load_progress(args: argparse.Namespace) -> dict[str, Any]:
    """What an earlier call has left, and an error if it had other settings."""
    settings = {name: getattr(args, name) for name in SETTINGS}
    path = None if args.output_dir is None else args.output_dir / "progress.json"
    if path is None or not path.exists():
        return {"settings": settings, "entries": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    different = sorted(name for name in SETTINGS if found["settings"].get(name) != settings[name])
    if different:
        raise ValueError(
            f"the settings must be those of {str(path)!r}, got others for {', '.join(different)}. Pass the same ones, "
            "or another --output_dir."
        )
    return found


def save(text: str, path: Path) -> None:
    """Write to a temporary file and rename it, so that the file is complete at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


# --- running ----------------------------------------------------------------------------------------------------------


def as_program(args: argparse.Namespace) -> Command:
    """Each command in a process of its own, which leaves no GPU memory behind; progress and errors go to a log."""

    def run(words: Sequence[str], is_launched: bool) -> None:
        program = shlex.split(args.launch) if is_launched else ["hf-maskdiff"]
        log = args.output_dir / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            finished = subprocess.run([*program, *words], stderr=file, check=False)
        if finished.returncode:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(last[0] if last else f"exit status {finished.returncode}")

    return run


def run_step(step: Step, command: Command) -> None:
    """A product that is there is kept; one that is not whole has another name."""
    if step.product is None:
        return command(step.words, step.is_launched)
    if step.product.exists():
        return None
    partial = step.product.with_name(f"partial-{step.product.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    command([str(partial) if word == str(step.product) else word for word in step.words], step.is_launched)
    os.replace(partial, step.product)
    return None


def run_entry(entry: Entry, args: argparse.Namespace, command: Command, known: dict[str, Any]) -> None:
    """Run what is missing of an entry, and write down how long it took in all, and how it ended."""
    before, started = known.get("hours", 0.0), time.perf_counter()
    known.pop("error", None)
    try:
        for step in entry.steps(args):
            run_step(step, command)
        if not any(args.output_dir.glob(entry.results)):
            raise RuntimeError(f"no file {entry.results} was written")
        known["done"] = True
    except Exception as error:  # costs this entry only; the next call tries it again
        known["error"] = " ".join(str(error).split()) or type(error).__name__
    finally:
        known["hours"] = before + (time.perf_counter() - started) / 3600


def run_all(entries: Sequence[Entry], args: argparse.Namespace, command: Command) -> list[Planned]:
    """Run what fits, planned anew after every entry, and return the last plan."""
    progress, started, tried = load_progress(args), time.perf_counter(), set[str]()
    states: dict[str, Any] = progress["entries"]

    def planned() -> list[Planned]:
        finished = {name: state["hours"] for name, state in states.items() if state.get("done")}
        left = args.hours - (time.perf_counter() - started) / 3600
        options = argparse.Namespace(**vars(args) | {"hours": max(left, 0.0)})
        return plan(entries, options, finished, {name for name in tried if "error" in states[name]})

    current = planned()
    print(told(current, args), flush=True)
    known = set(downloads(current, args))
    while not args.plan:
        following = next((one for one in current if one.runs), None)
        if following is None:
            break
        name = following.entry.name
        tried.add(name)
        print(f"\n{name}: about {following.hours:.2f} hours", flush=True)
        new = [need for need in downloads([following], args) if need not in known]
        if new:  # it fits only now, as the machine is faster than was assumed
            print(told_of(new), flush=True)
            known.update(new)
        try:
            run_entry(following.entry, args, command, states.setdefault(name, {}))
        finally:  # also where it was stopped by hand
            save(json.dumps(progress, indent=1), args.output_dir / "progress.json")
        if "error" in states[name]:
            print(f"{name} failed: {states[name]['error']}", flush=True)
        current = planned()
        save(report(current, args.output_dir, states, note_of(args)), args.output_dir / "report.md")
    return current


def note_of(args: argparse.Namespace) -> str:
    """What a reader must know of smaller sizes."""
    is_full = (args.images, args.texts, args.limit) == (50_000, 1024, None)
    sizes = f"{args.images} images, {args.texts} texts, {args.limit or 'all'} questions a task"
    return "" if is_full else f"**With {sizes}: published numbers are of 50,000 images, 1024 texts, all questions.**"


def main(argv: Sequence[str] | None = None, command: Command | None = None) -> list[Planned]:
    args = parse_args(argv)
    entries = [entry for entry in ENTRIES if not args.entries or entry.name in args.entries]
    current = run_all(entries, args, command or as_program(args))
    if not args.plan and not any(one.is_done for one in current) and not any(one.runs for one in current):
        print("\nNothing was run: no entry fits and has its data. Pass more --hours, or what the plan says is missing.")
    if args.output_dir is not None and (args.output_dir / "report.md").exists():
        print(f"\n{args.output_dir / 'report.md'} has our numbers beside the published ones.")
    return current


if __name__ == "__main__":
    main()
