"""Meissonic (MeissonFlow/Meissonic) and Monetico (Collov-Labs/Monetico) as `MeissonicTransformer2DModel`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hf_maskdiff.conversion.upstream import renamed, require_key

_BLOCKS = r"((?:single_)?transformer_blocks\.\d+\..+)"
_KEPT = r"((?:time_text_embed|cond_embed|context_embedder)\..+)"
_RULES = {
    _BLOCKS: r"\1",
    _KEPT: r"\1",
    r"embed\.embeddings\.weight": "token_embedding.weight",
    r"embed\.layer_norm\.weight": "code_in.norm.weight",
    r"embed\.conv\.weight": "code_in.proj.weight",
    r"down_block\.downsample\.norm\.weight": "square_in.norm.weight",
    r"down_block\.downsample\.(?:conv|Conv2d_0)\.weight": "square_in.proj.weight",
    r"project_to_hidden_norm\.weight": "proj_in.norm.weight",
    r"project_to_hidden\.weight": "proj_in.proj.weight",
    r"encoder_proj_layer_norm\.weight": "context_norm.weight",
    r"project_from_hidden_norm\.weight": "proj_out.norm.weight",
    r"project_from_hidden\.weight": "proj_out.proj.weight",
    r"up_block\.upsample\.norm\.weight": "square_out.norm.weight",
    r"up_block\.upsample\.conv\.weight": "square_out.proj.weight",
    r"mlm_layer\.conv1\.weight": "code_out.weight",
    r"mlm_layer\.layer_norm\.weight": "head.norm.weight",
    r"mlm_layer\.conv2\.weight": "head.proj.weight",
}


def convert_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as published under the names of `MeissonicTransformer2DModel`; convolutions become projections.

    A convolution whose kernel is as large as its stride sees each square of codes for itself. As a projection, it takes
    the square's codes row by row.

    Raises:
        ValueError: weights that such a model does not have.
    """
    weights = renamed(state_dict, _RULES, "a Meissonic")
    for name in ("code_in.proj.weight", "code_out.weight", "head.proj.weight"):
        weights[name] = require_key(weights, name, "a Meissonic").flatten(1)
    if "square_in.proj.weight" in weights:  # (out, in, row, column)
        weights["square_in.proj.weight"] = weights["square_in.proj.weight"].permute(0, 2, 3, 1).flatten(1)
    if "square_out.proj.weight" in weights:  # (in, out, row, column)
        weights["square_out.proj.weight"] = weights["square_out.proj.weight"].permute(2, 3, 1, 0).flatten(0, 2)
    return weights
