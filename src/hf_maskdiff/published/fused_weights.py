"""Published weights in which the projections of queries, keys and values are one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig

_FUSED = ".qkv_proj."


def with_split_projections(
    files: Iterable[str], keys: Mapping[str, str], config: PreTrainedConfig
) -> dict[str, Tensor]:
    """Weights by the names of transformers, with three projections for each fused one.

    Files are mapped into memory, and what is split off shares it.

    Args:
        files: safetensors.
        keys: patterns of names, and what they become; a fused weight is to be named `...qkv_proj...`.
        config: states how many heads of which size there are.

    Raises:
        ValueError: no files, or a fused weight whose rows are not those of the heads.
    """
    head_dim, heads, kept = config.head_dim, config.num_attention_heads, config.num_key_value_heads
    sizes = [heads * head_dim, kept * head_dim, kept * head_dim]
    weights: dict[str, Tensor] = {}
    for file in files:
        for published, tensor in load_file(file).items():
            name = published
            for pattern, target in keys.items():
                name = re.sub(pattern, target, name)
            if _FUSED not in name:
                weights[name] = tensor
                continue
            if tensor.shape[0] != sum(sizes):
                raise ValueError(
                    f"{published!r} must have the {sum(sizes)} rows of {heads} + 2 * {kept} heads of {head_dim}, got "
                    f"{tensor.shape[0]}. Take config.json and weights from one model."
                )
            for letter, part in zip("qkv", tensor.split(sizes), strict=True):
                weights[name.replace(_FUSED, f".{letter}_proj.")] = part
    if not weights:
        raise ValueError("the weights must be safetensors, there are none. Check the path.")
    return weights
