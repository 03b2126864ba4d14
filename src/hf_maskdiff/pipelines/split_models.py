"""Models whose weights are split over processes (transformers' tensor parallelism): how they are loaded and called."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed
import transformers
from diffusers.utils.torch_utils import unwrap_module
from torch import nn

from ..sampling import Generators
from ..schedulers import MaskedDiffusionScheduler

# The arguments of transformers that say how a model is split.
_HOW_TO_SPLIT = ("tp_plan", "tp_size", "distributed_config")


def split_component(
    folder: str | os.PathLike, index: Mapping[str, Any], location: Mapping[str, Any], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The transformer of a pipeline folder as a component to hand over, where it is to be split; else nothing.

    diffusers drops the arguments that split a model, so it is loaded here, and they are removed from `kwargs`.

    Args:
        folder: of the pipeline, or its Hub id.
        index: its `model_index.json`.
        location: arguments that say where the files come from.
        kwargs: those of `from_pretrained`.

    Raises:
        ValueError: the transformer is not a model of transformers.
    """
    how = {name: kwargs.pop(name) for name in _HOW_TO_SPLIT if kwargs.get(name) is not None}
    if not how:
        return {}
    library, name = index.get("transformer", (None, None))
    if library != "transformers":
        raise ValueError(
            f"{' and '.join(how)} split models of transformers, got a {name} of {library}. Leave them out, and use "
            "`device_map`."
        )
    dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
    how |= {"dtype": dtype} if isinstance(dtype, torch.dtype) else {}
    model_class = getattr(transformers, name)
    loaded = model_class.from_pretrained(folder, subfolder="transformer", trust_remote_code=False, **location, **how)
    return {"transformer": loaded}


def generator_of_all(
    model: nn.Module, generator: Generators, scheduler: MaskedDiffusionScheduler, *arguments: Any
) -> Generators:
    """The generator that all processes of a split model use; every process must make the same call.

    Otherwise each process would compute its part of another sequence, and their sums would mean nothing.

    Args:
        model: the model.
        generator: of this process's call. None becomes one generator, with a seed of the first process.
        scheduler: of this process's pipeline.
        arguments: of the call, with a `repr` that says all.

    Raises:
        ValueError: in another process the arguments, or the states of the generators, are others.
    """
    group = _group_of(model)
    if group is None:
        return generator
    settings = sorted((name, repr(value)) for name, value in scheduler.config.items() if not name.startswith("_"))
    states = [one.get_state().tolist() for one in _listed(generator)]
    asked = hashlib.sha256(
        repr((type(scheduler).__name__, settings, arguments, generator is None, states)).encode()
    ).hexdigest()
    of_all: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(of_all, (asked, int(torch.randint(2**63 - 1, (1,)))), group=group)
    others = [process for process, (theirs, _) in enumerate(of_all) if theirs != of_all[0][0]]
    if others:
        raise ValueError(
            "the processes of a split model must all make the same call, got other arguments or seeds in "
            f"{'processes' if len(others) > 1 else 'process'} {', '.join(map(str, others))} than in process 0. Pass "
            "the same prompts, settings and seeds in each."
        )
    return torch.Generator().manual_seed(of_all[0][1]) if generator is None else generator


def _listed(generator: Generators) -> Sequence[torch.Generator]:
    if generator is None:
        return []
    return generator if isinstance(generator, Sequence) else [generator]


def _group_of(model: nn.Module) -> Any:
    """The processes that a model is split over; None where it is whole."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    model = unwrap_module(model)
    meshes = (getattr(weight, "device_mesh", None) for weight in model.parameters())
    mesh = next((mesh for mesh in meshes if mesh is not None), None)
    if mesh is None:  # older versions of transformers keep the parts as plain tensors
        mesh = getattr(model, "_device_mesh", None) if getattr(model, "_tp_size", None) else None
    if mesh is None or mesh.size() == 1:
        return None
    return mesh.get_group() if mesh.ndim == 1 else mesh.get_group("tp")
