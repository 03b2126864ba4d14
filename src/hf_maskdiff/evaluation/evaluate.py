"""What `hf-maskdiff evaluate` does after checking its arguments: make or load samples, judge them, write a report.

The arguments and their checks are defined in `hf_maskdiff_cli.evaluate`, which imports nothing heavy.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from hf_maskdiff.devices import require_device, telling_of_memory
from hf_maskdiff.hub_access import require_hub
from hf_maskdiff.parallel import cost_of, start_processes
from hf_maskdiff.published.malformed import settings_of
from hf_maskdiff.sets.making import make_set
from hf_maskdiff_cli.evaluate import add_arguments, check_arguments, run, set_folders
from hf_maskdiff_cli.generate import add_arguments as add_generate_arguments
from hf_maskdiff_cli.names import TEXTS
from hf_maskdiff_cli.samples import kind_of_pipeline, require_one_kind

from .judges import ImageJudge, TextJudge, judge_of
from .report import Report, SetResult, rows_of
from .samples import Samples, load_samples

__all__ = ["add_arguments", "check_arguments", "judge_all", "make_sets", "run"]


def judge_all(args: argparse.Namespace) -> Report | None:
    """Judge the samples that the arguments name, print the table, write the report, and return it.

    If there are several processes, all of them make samples, but only the first one judges; the rest return None.

    Args:
        args: the checked arguments of `hf_maskdiff_cli.evaluate.add_arguments`, and `prompts`, the lines of the file
            `prompt_file`.

    Raises:
        ValueError: samples, judges or references cannot be read, or do not fit together.
        OSError: a file cannot be read or written.
        ImportError: a package that a measure needs is not installed.
        MemoryError: network and batch do not fit into the memory.
    """
    if args.device is not None:
        require_device("--device", args.device)
    with telling_of_memory("Pass a smaller --eval_batch_size, or --device cpu."):
        return _judge_all(args)


def _judge_all(args: argparse.Namespace) -> Report | None:
    if args.pipeline:
        # Load the judge first, so that an error shows before samples are made.
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


def _kind_of(pipeline: str) -> str:
    """The kind of a pipeline's samples: texts if it has a tokenizer, or if it is a model without `model_index.json`."""
    require_hub(pipeline)
    try:
        index = settings_of(f"model_index.json in {pipeline!r}", lambda: DiffusionPipeline.load_config(pipeline))
    except OSError:
        return TEXTS
    return kind_of_pipeline(str(index.get("_class_name")), pipeline)


def make_sets(args: argparse.Namespace) -> list[Path]:
    """Make one set per seed with a pipeline, in `output_dir`, and return their folders; existing sets are kept."""
    parser = argparse.ArgumentParser()
    add_generate_arguments(parser)
    making = vars(parser.parse_args(["--pipeline", args.pipeline, "--num_samples", "1", "--output_dir", ""]))
    making = {name: getattr(args, name, default) for name, default in making.items()} | {"prompts": args.prompts}
    threads = torch.get_num_threads()
    made = [
        make_set(argparse.Namespace(**making | {"seed": seed, "output_dir": str(folder)}))
        for seed, folder in set_folders(args).items()
    ]
    torch.set_num_threads(threads)  # `make_set` lowers this number on a CPU
    return made


def judged(judge: ImageJudge | TextJudge, sets: Sequence[Samples]) -> Report:
    """The report of a judge on sets of its kind."""
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
