"""The pipeline that the arguments of `hf-maskdiff generate` ask for."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState

from hf_maskdiff.caching import PartialCacheConfig
from hf_maskdiff.pipelines import MaskedDiffusionTextPipeline, MaskGITPipeline, MDLMPipeline
from hf_maskdiff.pipelines.transformers_tasks import Repository, _load_scheduler
from hf_maskdiff_cli.generate import read_settings


def load_pipeline(args: argparse.Namespace, state: PartialState) -> Any:
    """The pipeline as the arguments want it: scheduler, partial caching, compilation, dtype, and where it runs.

    Raises:
        ValueError: a device map that diffusers does not know, a scheduler or a setting that there is not.
        OSError: a pipeline that cannot be loaded.
    """
    loading = {"dtype": getattr(torch, args.dtype)} | ({"device_map": args.device_map} if args.device_map else {})
    repository = Repository(args.pipeline, {}, loading)
    try:
        pipe = repository.open(MaskGITPipeline, MDLMPipeline, MaskedDiffusionTextPipeline)
    except NotImplementedError as error:  # diffusers' word for a map that it does not know
        raise ValueError(f"`device_map` must be one that diffusers knows, got {args.device_map!r}: {error}.") from error
    if args.scheduler is not None:
        pipe.register_modules(scheduler=_load_scheduler(args.scheduler, pipe.scheduler.config))
    if args.scheduler_config:
        settings = scheduler_settings(args.scheduler_config, type(pipe.scheduler))
        pipe.register_modules(scheduler=pipe.scheduler.from_config(pipe.scheduler.config, **settings))
    if args.num_substeps > 1:  # a text pipeline has a cache of its own, whatever its model
        cached = pipe if hasattr(pipe, "enable_cache") else pipe.transformer
        cached.enable_cache(PartialCacheConfig(num_substeps=args.num_substeps))
    if args.compile:
        _compile(pipe.transformer)
    _place(pipe, args, torch.device("cpu") if state.device.type == "cpu" else state.device)
    return pipe


def _compile(transformer: Any) -> None:
    if getattr(transformer, "_repeated_blocks", None):
        transformer.compile_repeated_blocks(fullgraph=True, dynamic=True)
    else:
        transformer.compile(dynamic=True)


def _place(pipe: Any, args: argparse.Namespace, device: torch.device) -> None:
    """Put the pipeline on a device, whole or a part at a time; a device map has placed it already."""
    if args.model_cpu_offload:
        pipe.enable_model_cpu_offload(device=device)
    elif args.group_offload:
        modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
        whole = [name for name, part in modules.items() if not getattr(part, "_supports_group_offloading", True)]
        pipe.enable_group_offload(device, offload_type="leaf_level", exclude_modules=whole)
    elif not args.device_map:
        pipe.to(device)


def scheduler_settings(pairs: Sequence[str], scheduler: type) -> dict[str, Any]:
    """Read the settings of a scheduler from `key=value` pairs; a value is JSON, or else a word.

    Example:
        >>> scheduler_settings(["choice_temperature=4", "masking_schedule=linear"], MomentScheduler)
        {'choice_temperature': 4, 'masking_schedule': 'linear'}

    Raises:
        ValueError: something else than a pair, or a setting that the scheduler does not have.
    """
    return read_settings(pairs, scheduler.__name__, set(inspect.signature(scheduler).parameters))
