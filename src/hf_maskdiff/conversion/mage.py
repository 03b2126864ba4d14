"""Checkpoints of MAGE (LTH14/mage, arXiv 2211.09117) as `MaskGITTransformer2DModel` and `MaskGITVQModel`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hf_maskdiff.conversion.checkpoints import require_tensors
from hf_maskdiff.conversion.upstream import (
    Component,
    Preset,
    Tree,
    Upstream,
    count_blocks,
    names_in,
    one_head_count,
    renamed,
    require_key,
    split_qkv,
    square_side,
)
from hf_maskdiff.conversion.vqgan import maskgit_vq
from hf_maskdiff.models import MaskGITTransformer2DModel
from hf_maskdiff.schedulers import MaskGITScheduler

_WHAT = "MAGE"
_HEADS = {768: 12, 1024: 16}  # ViT-B and ViT-L
_DECODER_HEADS = {768: 16, 1024: 16}
# How far behind the codes the row of the table stands that is in the class slot of every image: 1100 of 1024 codes.
_NO_CLASS = 76
_PARAMETER = r"(weight|bias)"


def _block_rules(theirs: str, ours: str) -> dict[str, str]:
    start, target = rf"{theirs}\.(\d+)\.", rf"{ours}.\1."
    return {
        rf"{start}(norm1|norm2)\.{_PARAMETER}": rf"{target}\2.\3",
        rf"{start}attn\.qkv\.{_PARAMETER}": rf"{target}attn.qkv.\2",
        rf"{start}attn\.proj\.{_PARAMETER}": rf"{target}attn.to_out.0.\2",
        rf"{start}mlp\.fc1\.{_PARAMETER}": rf"{target}ff.net.0.proj.\2",
        rf"{start}mlp\.fc2\.{_PARAMETER}": rf"{target}ff.net.2.\2",
    }


_KEYS = {
    r"vqgan\..*": "",
    # There for what its authors train besides: nothing here reads them.
    r"cls_token|pos_embed|mask_token|decoder_pos_embed|token_emb\.position_ids": "",
    r"(?:patch_embed\.proj|decoder_pred)\.(?:weight|bias)": "",
    r"token_emb\.word_embeddings\.weight": "token_embedding.weight",
    r"mlm_layer\.bias": "token_embedding.bias",
    r"token_emb\.position_embeddings\.weight": "position_embedding.weight",
    rf"token_emb\.LayerNorm\.{_PARAMETER}": r"norm_in.\1",
    **_block_rules("blocks", "transformer_blocks"),
    rf"norm\.{_PARAMETER}": r"norm_out.\1",
    rf"decoder_embed\.{_PARAMETER}": r"decoder.proj_in.\1",
    r"decoder_pos_embed_learned": "decoder.position_embedding.weight",
    **_block_rules("decoder_blocks", "decoder.transformer_blocks"),
    rf"decoder_norm\.{_PARAMETER}": r"decoder.norm_out.\1",
    rf"mlm_layer\.fc\.{_PARAMETER}": r"head.0.\1",
    rf"mlm_layer\.ln\.{_PARAMETER}": r"head.2.\1",
}


def convert_transformer(state_dict: Mapping[str, Tensor], codebook_size: int, heads: Sequence[int] = ()) -> Component:
    """The denoiser of what a checkpoint holds under "model".

    Args:
        heads: attention heads of encoder and decoder, for widths that were not published.

    Raises:
        ValueError: unknown weights, or a width that was not published without its numbers of heads.
    """
    weights = split_qkv(renamed(state_dict, _KEYS, _WHAT), "qkv.")
    for name in ("position_embedding.weight", "decoder.position_embedding.weight"):
        places = require_key(weights, name, _WHAT)
        weights[name] = places.flatten(0, -2).roll(-1, 0)  # the class slot is first there, last here
    weights["token_embedding.bias"] = require_key(weights, "token_embedding.bias", _WHAT).flatten()
    num_places, width = weights["position_embedding.weight"].shape
    vocab_size = require_key(weights, "token_embedding.weight", _WHAT).shape[0]
    decoder_width, decoder_inner = require_key(weights, "decoder.transformer_blocks.0.ff.net.2.weight", _WHAT).shape
    config: dict[str, Any] = {
        "sample_size": square_side(num_places - 1),
        "codebook_size": codebook_size,
        "num_classes": 0,
        "hidden_size": width,
        "num_layers": count_blocks(weights, r"transformer_blocks\.(\d+)\."),
        "num_attention_heads": one_head_count(heads, _HEADS.get(width), width),
        "intermediate_size": require_key(weights, "transformer_blocks.0.ff.net.2.weight", _WHAT).shape[1],
        "mask_token_id": vocab_size - 1,
        "class_token_offset": codebook_size + _NO_CLASS,
        "vocab_size": vocab_size,
        "norm_eps": 1e-6,
        "block_norm_eps": 1e-6,
        "num_decoder_layers": count_blocks(weights, r"decoder\.transformer_blocks\.(\d+)\."),
        "decoder_hidden_size": decoder_width,
        "num_decoder_attention_heads": one_head_count(heads[1:], _DECODER_HEADS.get(decoder_width), decoder_width),
        "decoder_intermediate_size": decoder_inner,
    }
    return Component(MaskGITTransformer2DModel, config, weights)


_VQ_BLOCK = r"(norm1|conv1|norm2|conv2)\.(weight|bias)"
_VQ_KEYS = {
    rf"encoder\.down\.(\d+)\.block\.(\d+)\.{_VQ_BLOCK}": r"encoder.down_blocks.\1.\2.\3.\4",
    r"encoder\.down\.(\d+)\.block\.(\d+)\.nin_shortcut\.weight": r"encoder.down_blocks.\1.\2.conv_shortcut.weight",
    rf"decoder\.up\.(\d+)\.block\.(\d+)\.{_VQ_BLOCK}": r"decoder.up_blocks.\1.\2.\3.\4",
    r"decoder\.up\.(\d+)\.block\.(\d+)\.nin_shortcut\.weight": r"decoder.up_blocks.\1.\2.conv_shortcut.weight",
    r"decoder\.up\.(\d+)\.upsample\.conv\.(weight|bias)": r"decoder.upsamplers.\1.\2",
    rf"(encoder|decoder)\.mid\.block_(\d+)\.{_VQ_BLOCK}": r"\1.mid_block.\2.\3.\4",
    r"(encoder|decoder)\.(conv_in|conv_out)\.(weight|bias)": r"\1.\2.\3",
    r"(encoder|decoder)\.norm_out\.(weight|bias)": r"\1.conv_norm_out.\2",
    r"(quantize\.embedding\.weight)": r"\1",
}


def convert_vqvae(state_dict: Mapping[str, Tensor]) -> Component:
    """MaskGIT's tokenizer under the names of taming-transformers, as MAGE's repository holds it.

    Raises:
        ValueError: unknown weights.
    """
    weights = renamed(state_dict, _VQ_KEYS, "MAGE's tokenizer")
    levels = count_blocks(weights, r"encoder\.down_blocks\.(\d+)\.")
    # Numbered by resolution there, by order of computation here; and its middle counts from 1.
    numbers = {
        r"decoder\.(up_blocks|upsamplers)\.(\d+)\.": lambda m: f"decoder.{m[1]}.{levels - 1 - int(m[2])}.",
        r"(encoder|decoder)\.mid_block\.(\d+)\.": lambda m: f"{m[1]}.mid_block.{int(m[2]) - 1}.",
    }
    for pattern, change in numbers.items():
        weights = {re.sub(pattern, change, key): tensor for key, tensor in weights.items()}
    return maskgit_vq(weights)


def mage(codebook_size: int = 1024, mask_token_id: int = 2024) -> Preset:
    """MAGE's sampler at the settings of its README, 20 steps of temperature 6."""
    scheduler = MaskGITScheduler(
        mask_token_id=mask_token_id, codebook_size=codebook_size, masking_schedule="cosine", choice_temperature=6.0
    )
    return Preset(scheduler, 20)


def _contents(tree: Tree) -> set[str]:
    names = names_in(tree, "model")
    found = {"transformer"} if "decoder_pos_embed_learned" in names else set()
    return found | ({"vqvae"} if "vqgan.quantize.embedding.weight" in names else set())


def _vqgan_of(tree: Tree) -> dict[str, Tensor]:
    weights = require_tensors(tree["model"], '"model"')
    return {key.removeprefix("vqgan."): tensor for key, tensor in weights.items() if key.startswith("vqgan.")}


UPSTREAM = Upstream(
    name="LTH14/mage",
    licence="mit",
    contents=_contents,
    transformer=lambda tree, codebook_size, heads: convert_transformer(
        require_tensors(tree["model"], '"model"'), codebook_size, heads
    ),
    vqvae=lambda tree: convert_vqvae(_vqgan_of(tree)),
    preset=lambda transformer: mage(transformer.config.codebook_size, transformer.mask_token_id),
    notes=(
        "The model knows no classes. The original takes the counts of all images from the first one, which changes "
        "nothing where all begin with as many masks, and ranks with strict comparisons the other way round, which "
        "changes nothing but ties. It swaps red and blue when it saves a file; here images are as the tokenizer "
        "decodes them."
    ),
)
