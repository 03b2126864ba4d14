"""Sizes that a configuration of unknown origin states, compared with the weights beside it before a model is built."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from safetensors import SafetensorError, safe_open

# Of the architectures that are opened by name, whatever they call them. All are also dimensions of weights, or counts
# of layers, of which each has weights.
SIZES = (
    *("vocab_size", "embedding_size", "hidden_size", "d_model", "dim", "hidden_dim", "cond_dim", "embedding_dim"),
    *("intermediate_size", "moe_intermediate_size", "d_ff", "head_dim", "num_attention_heads", "num_key_value_heads"),
    *("n_heads", "num_heads", "num_hidden_layers", "n_layers", "num_layers", "n_blocks", "num_experts"),
    *("num_local_experts", "codebook_size", "num_vq_embeddings", "vq_embed_dim", "latent_channels", "layers_per_block"),
    *("block_out_channels", "in_channels", "out_channels", "base_channels", "feature_size", "decoder_hidden_size"),
    *("decoder_intermediate_size", "num_decoder_attention_heads", "attention_head_dim", "joint_attention_dim"),
    *("pooled_projection_dim", "micro_cond_embed_dim", "micro_cond_encode_dim", "latent_dim", "num_codebooks"),
    *("num_buckets", "encoder_dim", "encoder_rates", "decoder_dim", "decoder_rates", "n_codebooks", "codebook_dim"),
)
# The same, but that there may be none of them.
_OR_NONE = (
    *("num_classes", "num_register_tokens", "num_decoder_layers", "num_single_layers", "mid_layers"),
    "num_conditioning_codebooks",
)
_LARGEST = 2**31 - 1  # where no weights are there to be looked at
_MOST_PER_NUMBER = 16  # parameters for a number of the weights, which quantised ones pack


def shapes_of(files: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Shapes by name of what safetensors hold; no weight is read.

    Raises:
        ValueError: a file that is none, or is cut short.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as weights:
                shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{file!r} must hold whole safetensors, it does not: {error}. Fetch it again.") from error
    return shapes


def check_sizes(settings: Mapping[str, Any], shapes: Mapping[str, Sequence[int]] | None) -> None:
    """A model may not be larger than its weights: what is too large for any memory is refused before it is built.

    Args:
        settings: of a `config.json`.
        shapes: of the weights by name; None where they cannot be looked at.

    Raises:
        ValueError: a size that is no number of at least 1, or that no weight has.
    """
    largest = _LARGEST
    if shapes is not None:
        largest = max([len(shapes), *(side for shape in shapes.values() for side in shape)])
    for name in (*SIZES, *_OR_NONE):
        least = 0 if name in _OR_NONE else 1
        stated = settings.get(name)
        for size in stated if isinstance(stated, list | tuple) else [stated]:  # some differ from layer to layer
            if size is None:
                continue
            if type(size) is not int or not least <= size <= largest:
                most = "" if shapes is None else ", the largest that its weights have"
                raise ValueError(
                    f"`{name}` in config.json must be a number from {least} to {largest}{most}, got {size!r}. Take "
                    "config.json and weights from one model."
                )


def check_count(num_parameters: int, shapes: Mapping[str, Sequence[int]]) -> None:
    """`ValueError` where a configuration describes many times as many parameters as there are weights."""
    stored = sum(math.prod(shape) for shape in shapes.values())
    if num_parameters > _MOST_PER_NUMBER * stored:
        raise ValueError(
            f"config.json must describe the weights beside it, got one for {num_parameters} parameters with {stored} "
            "numbers. Take both from one model."
        )
