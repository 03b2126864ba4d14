"""What the weights of TiTok's and TA-TiTok's tokenizers have in common: those of two vision transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_maskdiff.conversion.upstream import count_blocks, require_key, square_side

_HEAD_WIDTH = 64  # of all published ones


def _rules_of(half: str) -> dict[str, str]:
    block, ours = rf"{half}\.transformer\.(\d+)\.", rf"{half}.transformer_blocks.\1."
    rules = {
        rf"{half}\.ln_pre\.(weight|bias)": rf"{half}.norm_in.\1",
        rf"{half}\.ln_post\.(weight|bias)": rf"{half}.norm_out.\1",
        rf"{block}attn\.in_proj_(weight|bias)": rf"{ours}attn.qkv.\2",
        rf"{half}\.(class_embedding|positional_embedding|latent_token_positional_embedding)": rf"{half}.\1",
    }
    for name, own in (("ln_1", "norm1"), ("attn.out_proj", "attn.to_out.0"), ("ln_2", "norm2")):
        rules[rf"{block}{name}\.(weight|bias)".replace("attn.", r"attn\.")] = rf"{ours}{own}.\2"
    for name, own in (("c_fc", "ff.net.0.proj"), ("c_proj", "ff.net.2")):
        rules[rf"{block}mlp\.{name}\.(weight|bias)"] = rf"{ours}{own}.\2"
    return rules


VIT_RULES = {
    **_rules_of("encoder"),
    **_rules_of("decoder"),
    "latent_tokens": "latent_tokens",
    r"decoder\.mask_token": "mask_token",
    r"encoder\.patch_embed\.(weight|bias)": r"encoder.patch_embedding.\1",
    r"encoder\.conv_out\.(weight|bias)": r"encoder.proj_out.\1",
    r"decoder\.decoder_embed\.(weight|bias)": r"decoder.proj_in.\1",
    r"quantize\.embedding\.weight": "quantize.embedding.weight",
}


def add_up_embeddings(weights: dict[str, Tensor], what: str) -> None:
    """Put sums in the place of embeddings that are always added up: of places, of the mask, and of the codes.

    Args:
        weights: renamed by `VIT_RULES`; changed in place.
        what: the upstream, for the error.

    Raises:
        ValueError: one of them is missing.
    """

    def take(name: str) -> Tensor:
        require_key(weights, name, what)
        return weights.pop(name)

    latent, mask = take("latent_tokens"), take("mask_token")[0]
    for half, own, patches in (("encoder", latent, 0.0), ("decoder", torch.zeros(()), mask)):
        places = take(f"{half}.positional_embedding")
        weights[f"{half}.class_embedding"] = take(f"{half}.class_embedding") + places[:1]
        weights[f"{half}.position_embedding"] = places[1:] + patches
        weights[f"{half}.latent_embedding"] = take(f"{half}.latent_token_positional_embedding") + own


def sizes_of(weights: dict[str, Tensor], num_latent_tokens: int, what: str) -> dict[str, Any]:
    """The part of a tokenizer's configuration that says how large its two transformers and its codebook are.

    Args:
        weights: after `add_up_embeddings`.
        num_latent_tokens: codes of an image, which are no longer to be seen in the weights.
        what: the upstream, for the error.

    Raises:
        ValueError: one of the weights is missing.
    """
    patch, rows, into = (
        require_key(weights, f"{name}.weight", what)
        for name in ("encoder.patch_embedding", "quantize.embedding", "decoder.proj_in")
    )
    sizes: dict[str, Any] = {
        "sample_size": square_side(len(weights["encoder.position_embedding"])) * patch.shape[-1],
        "patch_size": patch.shape[-1],
        "in_channels": patch.shape[1],
        "num_latent_tokens": num_latent_tokens,
        "num_vq_embeddings": rows.shape[0],
        "vq_embed_dim": rows.shape[1],
    }
    for half, prefix, width in (("encoder", "", patch.shape[0]), ("decoder", "decoder_", into.shape[0])):
        sizes[f"{prefix}hidden_size"] = width
        sizes[f"num_{prefix}layers"] = count_blocks(weights, rf"{half}\.transformer_blocks\.(\d+)\.")
        sizes[f"num_{prefix}attention_heads"] = width // _HEAD_WIDTH
    return sizes
