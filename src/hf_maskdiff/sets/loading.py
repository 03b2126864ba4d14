"""The pipeline that the arguments of `hf-maskdiff generate` ask for."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from hf_maskdiff.caching import PartialCacheConfig
from hf_maskdiff.devices import is_out_of_memory
from hf_maskdiff.hub_access import HubOutOfReach, require_hub
from hf_maskdiff.pipelines import (
    MaskedDiffusionAudioPipeline,
    MaskedDiffusionTextPipeline,
    MaskedDiffusionTextToImagePipeline,
    MaskGITPipeline,
    MDLMPipeline,
)
from hf_maskdiff.pipelines.transformers_tasks import Repository, _load_scheduler
from hf_maskdiff.schedulers import MaskedDiffusionScheduler
from hf_maskdiff_cli.checks import unknown_scheduler
from hf_maskdiff_cli.errors import one_line
from hf_maskdiff_cli.generate import read_settings
from hf_maskdiff_cli.names import SCHEDULERS, did_you_mean_folder
from hf_maskdiff_cli.samples import kind_of_pipeline

_PIPELINES = (
    MaskGITPipeline,
    MaskedDiffusionTextToImagePipeline,
    MDLMPipeline,
    MaskedDiffusionTextPipeline,
    MaskedDiffusionAudioPipeline,
)


def load_pipeline(args: argparse.Namespace, state: PartialState) -> Any:
    """The pipeline as the arguments want it: scheduler, partial caching, compilation, dtype, and where it runs.

    Raises:
        ValueError: a pipeline that cannot be loaded, a device map that diffusers does not know, a scheduler or a
            setting that there is not.
    """
    loading = {"dtype": getattr(torch, args.dtype)} | ({"device_map": args.device_map} if args.device_map else {})
    pipe = open_pipeline(args.pipeline, loading)
    set_scheduler(pipe, args.scheduler, args.scheduler_config)
    if args.num_substeps > 1:  # a text pipeline has a cache of its own, whatever its model
        cached = pipe if hasattr(pipe, "enable_cache") else pipe.transformer
        cached.enable_cache(PartialCacheConfig(num_substeps=args.num_substeps))
    if args.compile:
        _compile(pipe.transformer)
    _place(pipe, args, torch.device("cpu") if state.device.type == "cpu" else state.device)
    return pipe


def set_scheduler(pipe: Any, name: str | None, pairs: Sequence[str]) -> None:
    """Give a pipeline another scheduler, and settings as `key=value`; None and no pairs leave it as it is.

    Raises:
        ValueError: a scheduler or a setting that there is not.
    """
    if name is not None:
        pipe.register_modules(scheduler=_scheduler_of(name, pipe))
    if pairs:
        pipe.register_modules(scheduler=_with_settings(pipe.scheduler, scheduler_settings(pairs, type(pipe.scheduler))))


def open_pipeline(pipeline: str, loading: dict[str, Any]) -> Any:
    """The pipeline in a folder or a repository of the Hub.

    Args:
        pipeline: the folder, or the repository's id.
        loading: `dtype` and `device_map`, as of `from_pretrained`.

    Raises:
        ValueError: it cannot be loaded, or it is no pipeline of this package; or a device map that diffusers does not
            know.
    """
    repository = Repository(pipeline, {}, loading)
    try:
        require_hub(pipeline)
        name = repository.pipeline_name
    except Exception as error:
        raise _cannot_be_loaded(pipeline, error) from error
    kind_of_pipeline(name, pipeline)
    try:
        return repository.open(*_PIPELINES)
    except NotImplementedError as error:  # diffusers' word for a map that it does not know
        wanted = loading.get("device_map")
        raise ValueError(f"`device_map` must be one that diffusers knows, got {wanted!r}: {error}.") from error
    except Exception as error:  # of several libraries, by what is wrong with the files
        if is_out_of_memory(error):
            raise
        raise _cannot_be_loaded(pipeline, error) from error


def _cannot_be_loaded(pipeline: str, error: Exception) -> ValueError:
    is_answered = not Path(pipeline).exists() and not isinstance(error, HubOutOfReach)
    hint = did_you_mean_folder(pipeline) or ("Check the spelling." if is_answered else "")
    return ValueError(
        f"`pipeline` must be a folder or a repository of the Hub that can be loaded, got {pipeline!r}: "
        f"{one_line(error)} {hint}".rstrip()
    )


def _scheduler_of(name: str, pipe: Any) -> Any:
    """The scheduler of a name, or of a preset in a folder or on the Hub."""
    if name not in SCHEDULERS:
        require_hub(name)
    try:
        if name not in SCHEDULERS:
            found = MaskedDiffusionScheduler.load_config(name).get("_class_name")
            if found not in SCHEDULERS:
                raise unknown_scheduler(name, f"it holds a {found}, which is for other models")
        return _load_scheduler(name, pipe.scheduler.config)
    except OSError as error:
        raise unknown_scheduler(name, one_line(error).rstrip(".")) from error
    except TypeError as error:
        raise unknown_scheduler(name, f"its settings do not fit: {error}") from error


def _with_settings(scheduler: Any, settings: dict[str, Any]) -> Any:
    for name in ("mask_token_id", "codebook_size"):
        own = scheduler.config.get(name)
        if own is not None and settings.get(name, own) != own:
            raise ValueError(
                f"`scheduler_config` must leave `{name}` as it is for the model, {own}, got {settings[name]!r}. Leave "
                "it out."
            )
    try:
        return scheduler.from_config(scheduler.config, **settings)
    except TypeError as error:  # a word where a number belongs
        raise ValueError(
            f"`scheduler_config` must fit {type(scheduler).__name__}, got {settings}: {error}. See its documentation."
        ) from error


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
        whole += [name for name in pipe._exclude_from_cpu_offload if name in modules and name not in whole]
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
