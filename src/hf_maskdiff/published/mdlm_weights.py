"""The weights of MDLM as its authors publish them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from diffusers.models.model_loading_utils import load_state_dict
from torch import Tensor
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from hf_maskdiff.published.sizes import shapes_of

_PREFIX = "backbone."
# Arguments of `from_pretrained` that say where the files are.
LOCATION = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")


def published_weights(name_or_path: str | os.PathLike[str], location: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors by the names of `MDLMTransformer`, read from safetensors, which are downloaded where need be.

    Args:
        name_or_path: a repository of the Hub or a local folder.
        location: those of the arguments in `LOCATION` that are given.

    Raises:
        ValueError: there is no `model.safetensors`, or it is cut short.
    """
    weights: dict[str, Tensor] = {}
    files = weight_files(name_or_path, location)
    if not files:
        raise ValueError(f"{str(name_or_path)!r} must hold `model.safetensors`, whole or in shards. Check the path.")
    shapes_of(files)  # what is cut short is one clear error
    for file in files:
        weights |= load_state_dict(file)
    # SDTT's teachers have been loaded from the Hub into another model, and so have two prefixes.
    prefix = _PREFIX * (2 if any(key.startswith(2 * _PREFIX) for key in weights) else 1)
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items()}


def weight_files(name_or_path: str | os.PathLike[str], location: dict[str, Any]) -> Sequence[str]:
    """The files of a model's safetensors, which are downloaded where need be: one, all shards, or none."""
    optional = {"_raise_exceptions_for_missing_entries": False}
    file = cached_file(name_or_path, "model.safetensors", **location, **optional)
    if file is not None:
        return [file]
    index = cached_file(name_or_path, "model.safetensors.index.json", **location, **optional)
    return [] if index is None else get_checkpoint_shard_files(name_or_path, index, **location)[0]
