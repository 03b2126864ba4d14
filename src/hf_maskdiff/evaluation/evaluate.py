"""What `hf-maskdiff evaluate` does once its arguments are checked: samples, judge, report.

The arguments and their checks are defined in `hf_maskdiff_cli.evaluate`, which imports nothing heavy.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from hf_maskdiff.parallel import cost_of, start_processes
from hf_maskdiff.sets.making import make_set
from hf_maskdiff_cli.evaluate import add_arguments, check_arguments, run, set_folders
from hf_maskdiff_cli.generate import add_arguments as add_generate_arguments
from hf_maskdiff_cli.samples import TEXTS, kind_of_pipeline, require_one_kind

from .judges import ImageJudge, TextJudge, judge_of
from .report import Report, SetResult, rows_of
from .samples import Samples, load_samples

__all__ = ["add_arguments", "check_arguments", "judge_all", "make_sets", "run"]


def judge_all(args: argparse.Namespace) -> Report | None:
    """Judge the samples that the arguments name, print the table, write the report, and return it.

    On several processes all of them make samples, and the first one judges: the others return None.

    Args:
        args: those of `hf_maskdiff_cli.evaluate.add_arguments`, checked, and `prompts`, the lines of `prompt_file`.

    Raises:
        ValueError: samples, judges and references that cannot be read, or do not go together.
        OSError: what cannot be read or written.
        ImportError: a measure without the package that it needs.
    """
    _require_device(args.device)
    if args.pipeline:
        # The judge first: what it lacks should be known before the samples are made.
        is_first = start_processes().is_main_process
        judge = judge_of(_kind_of(args.pipeline), args, args.num_samples) if is_first else None
        folders = make_sets(args)
        if judge is None:
            return None
        sets = [load_samples(folder) for folder in folders]
    else:
        sets = [load_samples(folder) for folder in args.samples]
        kinds = {samples.kind for samples in sets}
        require_one_kind(kinds, args.samples)
        judge = judge_of(kinds.pop(), args, min(samples.count for samples in sets))
    report = judged(judge, sets)
    print(report.table())
    if args.output_dir is not None:
        report.save(args.output_dir)
    return report


def _require_device(device: str | None) -> None:
    """Raise `ValueError` for a device that torch does not know, which only torch can tell."""
    try:
        torch.device(device or "cpu")
    except RuntimeError as error:
        raise ValueError(f"--device must be one of torch's, such as cpu or cuda:0, got {device!r}.") from error


def _kind_of(pipeline: str) -> str:
    """What a pipeline makes: texts where it has a tokenizer, or is a model without a pipeline's index."""
    try:
        return kind_of_pipeline(DiffusionPipeline.load_config(pipeline))
    except OSError:
        return TEXTS


def make_sets(args: argparse.Namespace) -> list[Path]:
    """Make a pipeline's sets in `output_dir`, one for each seed, and return their folders; existing ones are kept."""
    parser = argparse.ArgumentParser()
    add_generate_arguments(parser)
    making = vars(parser.parse_args(["--pipeline", args.pipeline, "--num_samples", "1", "--output_dir", ""]))
    making = {name: getattr(args, name, default) for name, default in making.items()} | {"prompts": args.prompts}
    threads = torch.get_num_threads()
    made = [
        make_set(argparse.Namespace(**making | {"seed": seed, "output_dir": str(folder)}))
        for seed, folder in set_folders(args).items()
    ]
    torch.set_num_threads(threads)  # which `make_set` lowers on a CPU
    return made


def judged(judge: ImageJudge | TextJudge, sets: Sequence[Samples]) -> Report:
    """What a judge finds of sets of its kind."""
    results = []
    for samples in sets:
        cost = cost_of(Path(samples.name))
        results.append(SetResult(samples.name, samples.count, judge(samples), samples.configuration, *cost))
    return Report(rows_of(results), judge.legend, judge.settings | {"versions": _versions()})


def _versions() -> str:
    found = []
    for name in ("hf-maskdiff", "torch", "transformers", "torch-fidelity", "faiss-cpu"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
