"""VampNet's codec, a LAC (hugofloresgarcia/lac), as `LACModel`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hf_maskdiff.conversion.checkpoints import require_tensors
from hf_maskdiff.conversion.upstream import Component, Tree, names_in, require_key
from hf_maskdiff.models.codec_lac import LACModel

_WHAT = "a LAC"
_MARKS = {"encoder.block.0.weight_v", "decoder.model.1.block.2.mrf_blocks.0.block.0.layer.1.weight_v"}
# Of the convolutions that change the length; a kernel is twice as long as the rate.
_STRIDED = r"encoder\.block\.\d+\.block\.4\.weight_v|decoder\.model\.\d+\.block\.1\.weight_v"
_SAMPLING_RATE = 44100  # where the file does not say it


def is_lac(tree: Tree) -> bool:
    """Whether a checkpoint holds a whole LAC with even rates, and not for example a codec's codebooks alone."""
    if not names_in(tree, "state_dict") >= _MARKS:
        return False
    strided = (re.fullmatch(_STRIDED, str(name)) and tensor for name, tensor in tree["state_dict"].items())
    return all(tensor.shape[-1] % 4 == 0 for tensor in strided if isinstance(tensor, Tensor) and tensor.ndim)


def convert_lac(tree: Tree) -> Component:
    """The codec of a checkpoint; weight norms are multiplied out.

    Raises:
        ValueError: weights that such a codec does not have.
    """
    weights = without_weight_norms(require_tensors(tree["state_dict"], '"state_dict"'))
    weights = {_renamed(name): tensor for name, tensor in weights.items()}
    table = require_key(weights, "codebooks.0.codebook.weight", _WHAT)
    config: dict[str, Any] = {
        "encoder_dim": len(require_key(weights, "encoder.0.weight", _WHAT)),
        "encoder_rates": _rates(weights, r"encoder\.(\d+)\.4\.weight"),
        "decoder_dim": len(require_key(weights, "decoder.0.weight", _WHAT)),
        "decoder_rates": _rates(weights, r"decoder\.(\d+)\.1\.weight"),
        "n_codebooks": sum(name.endswith(".codebook.weight") for name in weights),
        "codebook_size": table.shape[0],
        "codebook_dim": table.shape[1],
        "sampling_rate": _sampling_rate(tree),
    }
    return Component(LACModel, config, weights)


def without_weight_norms(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights with `weight` in place of each pair `weight_g` and `weight_v`.

    Raises:
        ValueError: one of a pair is missing.
    """
    result = {name: tensor for name, tensor in weights.items() if not name.endswith(("weight_g", "weight_v"))}
    for start in {name[:-1] for name in weights if name.endswith(("weight_g", "weight_v"))}:
        length, direction = (require_key(weights, start + kind, "weight norms") for kind in "gv")
        norm = torch.linalg.vector_norm(direction.float(), dim=tuple(range(1, direction.ndim)), keepdim=True)
        result[start.removesuffix("_")] = (length.float() * direction.float() / norm).to(direction.dtype)
    return result


def _renamed(name: str) -> str:
    """Without the names of containers, which number their layers as ours do."""
    name = re.sub(r"^quantizer\.quantizers\.", "codebooks.", name)
    return re.sub(r"\.(?:block|model|mrf_blocks|layer)(?=\.)", "", name)


def _rates(weights: Mapping[str, Tensor], pattern: str) -> list[int]:
    """How many times shorter or longer the time gets, stage by stage: half a kernel's length."""
    found = {int(match[1]): tensor for name, tensor in weights.items() if (match := re.fullmatch(pattern, name))}
    return [found[stage].shape[-1] // 2 for stage in sorted(found)]


def _sampling_rate(tree: Tree) -> int:
    metadata = tree.get("metadata")
    stated = metadata.get("kwargs") if isinstance(metadata, Mapping) else None
    found = stated.get("sample_rate") if isinstance(stated, Mapping) else None
    return found if type(found) is int and found > 0 else _SAMPLING_RATE
