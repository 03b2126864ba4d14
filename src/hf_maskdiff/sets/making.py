"""What `hf-maskdiff generate` does once its arguments are checked."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from hf_maskdiff.devices import telling_of_memory
from hf_maskdiff_cli.generate import CPU_BLOCK_SIZE

from .claims import MADE_BY
from .fingerprints import fingerprint, require_one_model
from .generate import generate
from .loading import load_pipeline
from .processes import on_main_process, start_processes
from .publishing import finish, make_repository
from .sources import source_of

_SMALLER = (
    "Pass a smaller --block_size or --batch_size, --dtype bfloat16, or --group_offload; what is finished is kept."
)
# Of the arguments, those of the program, which say nothing that `prompts` and `scheduler` do not say,
_OF_THE_PROGRAM = ("command", "run", "prompt_file", "scheduler_config")
# and those that decide where and how fast samples are made: the samples are the same with others.
_WITHOUT_EFFECT = (
    "output_dir",
    "batch_size",
    "device_map",
    "model_cpu_offload",
    "group_offload",
    "push_to_hub",
    "private",
    "verify",
)


def make_set(args: argparse.Namespace) -> Path:
    """Make the set that the arguments describe, or what is missing of it, and return its folder.

    Args:
        args: those of `hf_maskdiff_cli.generate.add_arguments`, checked, and `prompts`, the lines of `prompt_file`.

    Raises:
        ValueError: arguments that do not fit the pipeline, or a folder with something else.
        OSError: what cannot be read, written, or uploaded. What is finished is kept.
        MemoryError: model and batch do not fit into the memory.
    """
    with telling_of_memory(_SMALLER):
        return _make_set(args, start_processes())


def _make_set(args: argparse.Namespace, state: PartialState) -> Path:
    args = settled(args, state.device.type)
    if args.device == "cpu":  # how many threads share a product decides its last bits
        torch.set_num_threads(args.num_threads)
    pipe = load_pipeline(args, state)
    source, configuration = source_of(pipe, args), configuration_of(args, pipe)
    require_one_model(configuration)
    if args.push_to_hub is not None:  # at the start: who may not write to it learns that now
        on_main_process(lambda: make_repository(args.push_to_hub, args.private), state)
    folder = generate(
        source,
        args.output_dir,
        configuration,
        base_seed=args.seed,
        batch_size=args.batch_size,
        state=state,
        verify=args.verify,
    )
    on_main_process(lambda: finish(folder, configuration, args.push_to_hub), state)
    return folder


def settled(args: argparse.Namespace, device: str) -> argparse.Namespace:
    """The arguments with their defaults for a kind of device, and with shards of whole blocks."""
    block_size = args.block_size or (CPU_BLOCK_SIZE if device == "cpu" else args.batch_size)
    shard_size = -(-args.shard_size // block_size) * block_size
    return argparse.Namespace(**vars(args) | {"device": device, "block_size": block_size, "shard_size": shard_size})


def configuration_of(args: argparse.Namespace, pipe: Any) -> dict[str, Any]:
    """Everything that decides the samples and the files; a set that was stopped is completed with an equal one only.

    What the pipeline is, weights and versions included, is read from the pipeline: a name may come to mean another.
    """
    left_out = (*_OF_THE_PROGRAM, *_WITHOUT_EFFECT)
    settings = {name: value for name, value in vars(args).items() if name not in left_out}
    scheduler = {"_class_name": type(pipe.scheduler).__name__}
    scheduler |= {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    return settings | {"scheduler": scheduler, MADE_BY: fingerprint(pipe)}
