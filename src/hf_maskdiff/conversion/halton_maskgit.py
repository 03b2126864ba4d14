"""Checkpoints of Halton-MaskGIT (valeoai/Halton-MaskGIT, arXiv 2503.17076) as `HaltonMaskGITTransformer2DModel`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch

_MODEL_KEYS = {
    "cls_emb.weight": "class_embedding.weight",
    "tok_emb.weight": "token_embedding.weight",
    "pos_emb.weight": "position_embedding.weight",
    "reg_tokens.weight": "register_embedding.weight",
    "last_norm.norm_final.weight": "norm_out.weight",
    "last_norm.norm_final.bias": "norm_out.bias",
    "last_norm.mlp.1.weight": "modulation_out.weight",
    "last_norm.mlp.1.bias": "modulation_out.bias",
    "head.bias": "token_embedding.bias",
}
_BLOCK_KEYS = {
    "mlp.1.weight": "modulation.weight",
    "mlp.1.bias": "modulation.bias",
    "ln1.weight": "norm1.weight",
    "attn.wq.weight": "attn.to_q.weight",
    "attn.wk.weight": "attn.to_k.weight",
    "attn.wv.weight": "attn.to_v.weight",
    "attn.wo.weight": "attn.to_out.0.weight",
    "ln2.weight": "norm2.weight",
    "ff.w1.weight": "ff.gate_proj.weight",
    "ff.w2.weight": "ff.down_proj.weight",
    "ff.w3.weight": "ff.up_proj.weight",
}
_BLOCK = re.compile(r"transformer\.layers\.(\d+)\.(.+)")
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")  # left by distributed training and by compilation


def convert_halton_maskgit_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename an upstream transformer's tensors to ours; the tensors themselves are passed on, not copied.

    Args:
        state_dict: What upstream stores under `model_state_dict`, with or without the prefixes of wrappers.

    Returns:
        A state dict for `HaltonMaskGITTransformer2DModel`.

    Raises:
        ValueError: If a name is unknown, or the output layer is not tied to the token table.
    """
    upstream = {_WRAPPERS.sub("", key): tensor for key, tensor in state_dict.items()}
    head = upstream.pop("head.weight", None)
    if head is not None and not torch.equal(head, upstream["tok_emb.weight"]):
        raise ValueError(
            "`head.weight` must equal `tok_emb.weight`: this model's output layer is its token table, and the two "
            "differ here. Pass a checkpoint of the published architecture."
        )

    converted = {}
    for key, tensor in upstream.items():
        block = _BLOCK.fullmatch(key)
        if block is not None and block[2] in _BLOCK_KEYS:
            converted[f"transformer_blocks.{block[1]}.{_BLOCK_KEYS[block[2]]}"] = tensor
        elif key in _MODEL_KEYS:
            converted[_MODEL_KEYS[key]] = tensor
        else:
            raise ValueError(
                f"`state_dict` must hold a Halton-MaskGIT class-conditional transformer, got the key {key!r}. Pass "
                "what the checkpoint stores under `model_state_dict`."
            )
    return converted


def halton_maskgit_config(state_dict: Mapping[str, torch.Tensor], num_attention_heads: int) -> dict[str, int]:
    """Read the configuration of `HaltonMaskGITTransformer2DModel` off the shapes of a converted state dict.

    Args:
        state_dict: What `convert_halton_maskgit_state_dict` returned.
        num_attention_heads: The one number that no shape tells. Published: 6 for the sizes tiny and small, 12 for
            base, 16 for large.

    Raises:
        ValueError: If the number of heads does not fit the width of the attention layers, or the positions do not form
            a square.
    """
    num_tokens = state_dict["position_embedding.weight"].shape[0]
    sample_size = math.isqrt(num_tokens)
    if sample_size**2 != num_tokens:
        raise ValueError(f"The number of positions must be a square, got {num_tokens}. Pass a model of square images.")
    inner_dim, hidden_size = state_dict["transformer_blocks.0.attn.to_q.weight"].shape
    if num_attention_heads < 1 or num_attention_heads * (hidden_size // num_attention_heads) != inner_dim:
        raise ValueError(
            f"`num_attention_heads` heads of {hidden_size} // `num_attention_heads` must be {inner_dim} wide in all, "
            f"got {num_attention_heads} heads. Pass the number that the model was built with."
        )
    registers = state_dict.get("register_embedding.weight")
    return {
        "sample_size": sample_size,
        "codebook_size": state_dict["token_embedding.weight"].shape[0] - 1,
        "num_classes": state_dict["class_embedding.weight"].shape[0] - 1,
        "hidden_size": hidden_size,
        "num_layers": sum(key.endswith(".norm1.weight") for key in state_dict),
        "num_attention_heads": num_attention_heads,
        "intermediate_size": state_dict["transformer_blocks.0.ff.gate_proj.weight"].shape[0],
        "num_register_tokens": 0 if registers is None else registers.shape[0],
    }
