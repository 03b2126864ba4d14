"""Tokenizers by their weights: those of taming-transformers and LlamaGen as diffusers' `VQModel`, and MaskGIT's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from diffusers import VQModel
from torch import Tensor
from torch.nn.functional import normalize

from hf_maskdiff.conversion.upstream import Component, count_blocks, renamed, require_key
from hf_maskdiff.models import MaskGITVQModel, VQGANModel

_RESNET = r"(norm1|conv1|norm2|conv2)\.(weight|bias)"
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def _rules(level: str, resnet: str, attention: str, mid: tuple[str, str, str]) -> dict[str, str]:
    """Names of a VQGAN as patterns; `level` names the two lists of levels, `mid` the blocks between them."""
    down, up = (f"{level}".format(half) for half in ("encoder", "decoder"))
    rules = {}
    for prefix, blocks in ((down, "encoder.down_blocks"), (up, "decoder.up_blocks")):
        start, target = rf"{prefix}\.(\d+)\.", rf"{blocks}.\1."
        rules[rf"{start}{resnet}\.(\d+)\.{_RESNET}"] = rf"{target}resnets.\2.\3.\4"
        rules[rf"{start}{resnet}\.(\d+)\.nin_shortcut\.(weight|bias)"] = rf"{target}resnets.\2.conv_shortcut.\3"
        for theirs, ours in _ATTENTION.items():
            rules[rf"{start}{attention}\.(\d+)\.{theirs}\.(weight|bias)"] = rf"{target}attentions.\2.{ours}.\3"
    rules[rf"{down}\.(\d+)\.downsample\.conv\.(weight|bias)"] = r"encoder.down_blocks.\1.downsamplers.0.conv.\2"
    rules[rf"{up}\.(\d+)\.upsample\.conv\.(weight|bias)"] = r"decoder.up_blocks.\1.upsamplers.0.conv.\2"
    first, between, last = mid
    half = r"(encoder|decoder)\.mid\."
    for block, index in ((first, 0), (last, 1)):
        rules[rf"{half}{block}\.{_RESNET}"] = rf"\1.mid_block.resnets.{index}.\2.\3"
    for theirs, ours in _ATTENTION.items():
        rules[rf"{half}{between}\.{theirs}\.(weight|bias)"] = rf"\1.mid_block.attentions.0.{ours}.\2"
    rules[r"(encoder|decoder)\.(conv_in|conv_out)\.(weight|bias)"] = r"\1.\2.\3"
    rules[r"(encoder|decoder)\.norm_out\.(weight|bias)"] = r"\1.conv_norm_out.\2"
    rules[r"((?:post_)?quant_conv\.(?:weight|bias)|quantize\.embedding\.weight)"] = r"\1"
    return rules


_TAMING = {r"loss\..*": "", **_rules("{}.(?:down|up)", "block", "attn", ("block_1", "attn_1", "block_2"))}
_LLAMAGEN = {r"quantize\.codebook_used": "", **_rules(r"{}\.conv_blocks", "res", "attn", ("0", "1", "2"))}


def taming_vqgan(state_dict: Mapping[str, Tensor]) -> Component:
    """The tokenizer of taming-transformers: what the checkpoint of a first stage holds under "state_dict".

    Raises:
        ValueError: unknown weights.
    """
    weights = renamed(state_dict, _TAMING, "a VQGAN of taming-transformers")
    levels = count_blocks(weights, r"encoder\.down_blocks\.(\d+)\.")
    up = re.compile(r"decoder\.up_blocks\.(\d+)\.")  # numbered by resolution there, by order of computation here
    return _vq_model(
        {up.sub(lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}.", key): t for key, t in weights.items()}
    )


def llamagen_vq(state_dict: Mapping[str, Tensor]) -> Component:
    """LlamaGen's tokenizer: what its checkpoint holds under "model".

    It compares directions: vectors and rows of the codebook are normalised. With rows normalised once and for all the
    row nearest to a vector is the one of the nearest direction, so that a `VQModel` computes the same.

    Raises:
        ValueError: unknown weights.
    """
    weights = renamed(state_dict, _LLAMAGEN, "a VQ tokenizer of LlamaGen")
    rows = require_key(weights, "quantize.embedding.weight", "a VQ tokenizer of LlamaGen")
    return _vq_model({**weights, "quantize.embedding.weight": normalize(rows, dim=-1)})


def _vq_model(weights: dict[str, Tensor]) -> Component:
    # Attention by 1 x 1 convolutions is attention by matrices.
    weights = {
        key: tensor.flatten(1) if ".attentions." in key and tensor.ndim == 4 else tensor
        for key, tensor in weights.items()
    }
    levels = count_blocks(weights, r"encoder\.down_blocks\.(\d+)\.")
    convolutions = [f"encoder.down_blocks.{i}.resnets.0.conv1.weight" for i in range(levels)]
    widths = [require_key(weights, name, "a VQGAN").shape[0] for name in convolutions]
    with_attention = [
        any(key.startswith(f"encoder.down_blocks.{i}.attentions.") for key in weights) for i in range(levels)
    ]
    rows = require_key(weights, "quantize.embedding.weight", "a VQGAN")
    base = require_key(weights, "encoder.conv_in.weight", "a VQGAN")
    image = require_key(weights, "decoder.conv_out.weight", "a VQGAN")
    config = {
        "in_channels": base.shape[1],
        "out_channels": image.shape[0],
        "down_block_types": ["AttnDownEncoderBlock2D" if there else "DownEncoderBlock2D" for there in with_attention],
        "up_block_types": ["AttnUpDecoderBlock2D" if there else "UpDecoderBlock2D" for there in with_attention[::-1]],
        "block_out_channels": widths,
        "layers_per_block": count_blocks(weights, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "latent_channels": require_key(weights, "quant_conv.weight", "a VQGAN").shape[1],
        "num_vq_embeddings": rows.shape[0],
        "vq_embed_dim": rows.shape[1],
        "lookup_from_codebook": True,
    }
    if base.shape[0] == widths[0]:
        return Component(VQModel, config, weights)
    return Component(VQGANModel, {"base_channels": base.shape[0], **config}, weights)


def maskgit_vq(weights: dict[str, Tensor]) -> Component:
    """A `MaskGITVQModel` whose configuration is read off its weights."""
    what = "MaskGIT's tokenizer"
    levels = count_blocks(weights, r"encoder\.down_blocks\.(\d+)\.")
    widths = [require_key(weights, f"encoder.down_blocks.{i}.0.conv1.weight", what).shape[0] for i in range(levels)]
    rows = require_key(weights, "quantize.embedding.weight", what)
    base = require_key(weights, "encoder.conv_in.weight", what)
    config = {
        "in_channels": base.shape[1],
        "out_channels": require_key(weights, "decoder.conv_out.weight", what).shape[0],
        "block_out_channels": widths,
        "base_channels": base.shape[0],
        "layers_per_block": count_blocks(weights, r"encoder\.down_blocks\.0\.(\d+)\."),
        "mid_layers": count_blocks(weights, r"encoder\.mid_block\.(\d+)\."),
        "latent_channels": rows.shape[1],
        "num_vq_embeddings": rows.shape[0],
    }
    return Component(MaskGITVQModel, config, weights)
