"""What makes the samples of a set, in few words: hashes of weights and settings, and versions.

Weights are hashed as they lie in memory, every byte. A file's name, size and date, and the header that lists its
tensors, all stay what they are when the weights in it change.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import singledispatch
from importlib.metadata import version
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .claims import MADE_BY

# A new version of one of these may compute other samples. Of their settings, what says nothing of the arithmetic.
_PACKAGES = ("hf-maskdiff", "torch", "diffusers", "transformers")
_WITHOUT_EFFECT = ("transformers_version", "dtype", "torch_dtype")


def fingerprint(pipe: Any) -> dict[str, Any]:
    """What a pipeline is, its scheduler left out: equal for equal samples, wherever its weights lie.

    Args:
        pipe: a pipeline of diffusers, as it was loaded: not compiled, and with its weights in their dtype.

    Returns:
        nested dictionaries, which JSON can hold.
    """
    parts = {name: part for name, part in sorted(pipe.components.items()) if name != "scheduler" and part is not None}
    own = {name: value for name, value in pipe.config.items() if name not in pipe.components}
    return {
        "pipeline": type(pipe).__name__,
        "settings": _settings(own),
        "components": {name: {"class": type(part).__name__, **_of(part)} for name, part in parts.items()},
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def require_one_model(configuration: Mapping[str, Any]) -> None:
    """Raise `ValueError` in all processes if one of them has loaded another model than the first one."""
    own = configuration[MADE_BY]
    first, *others = gather_object([own])
    for rank, other in enumerate(others, 1):
        if other != first:
            raise ValueError(
                f"all processes must have loaded one model, got another one in process {rank} than in process 0: "
                f"{_words(other)} and {_words(first)}. Give all machines the same files and versions."
            )


def _words(found: Any) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


@singledispatch
def _of(part: Any) -> dict[str, Any]:
    """What is to be known of a component."""
    return {"settings": _settings(getattr(part, "config", {}))}


@_of.register
def _(part: torch.nn.Module) -> dict[str, Any]:
    config: Any = part.config
    settings = config.to_dict() if hasattr(config, "to_dict") else config
    return {"settings": _settings(settings), "weights": weights_hash(_state(part))}


@_of.register
def _(part: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(part, "backend_tokenizer", None)
    rules = {} if backend is None else json.loads(backend.to_str())
    rules |= {"truncation": None, "padding": None}  # which calls set
    words = {"vocabulary": part.get_vocab(), "special": part.special_tokens_map, "chat": part.chat_template}
    return {"words": _hash({"rules": rules, **words})}


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """A hash of tensors by name, dtype, shape and every byte; as fast as SHA-256 on the cores that there are."""

    def one(name: str) -> str:
        tensor = state[name]
        content: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return f"{name} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(content).hexdigest()}"

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        lines = list(threads.map(one, sorted(state)))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _state(module: torch.nn.Module) -> Mapping[str, Tensor]:
    """The tensors of a module, those included that a device map has put aside."""
    state = module.state_dict()
    if any(tensor.is_meta for tensor in state.values()):
        from accelerate.utils.modeling import get_state_dict_offloaded_model

        return get_state_dict_offloaded_model(module)
    return state


def _settings(config: Mapping[str, Any]) -> str:
    return _hash({k: v for k, v in config.items() if not k.startswith("_") and k not in _WITHOUT_EFFECT})


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _version(package: str) -> str:
    if package == "hf-maskdiff":  # which may run from its sources, without having been installed
        from hf_maskdiff import __version__

        return __version__
    return version(package)
