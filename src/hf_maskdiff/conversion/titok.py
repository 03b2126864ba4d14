"""TiTok's generators and tokenizers (bytedance/1d-tokenizer, arXiv 2406.07550), from `torch.save` or safetensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from hf_maskdiff.conversion.checkpoints import read_checkpoint, require_tensors
from hf_maskdiff.conversion.sources import read_settings
from hf_maskdiff.conversion.titok_vit import VIT_RULES, add_up_embeddings, sizes_of
from hf_maskdiff.conversion.upstream import (
    Component,
    Preset,
    Tree,
    Upstream,
    count_blocks,
    one_head_count,
    renamed,
    require_key,
    split_qkv,
)
from hf_maskdiff.models import TiTokTransformer1DModel, TiTokVQModel
from hf_maskdiff.schedulers import AnnealedScheduler

_WHERE = "The checkpoint"
_GENERATOR, _TOKENIZER = "a generator of TiTok", "a tokenizer of TiTok"
_HEADS = {768: 16, 1024: 16}  # of the published generators, by width
_WEIGHTS = "model.safetensors"
# What a generator of either architecture is known by, by the name of its head.
_MARKS = {
    "model.lm_head.weight": {"model.lm_head.weight", "model.embeddings.LayerNorm.weight"},
    "lm_head.weight": {"lm_head.weight", "in_blocks.0.norm1.weight"},
}
# What the tokenizers with a published generator have in common, in the words of their config.json.
_SETTINGS = {"quantize_mode": "vq", "use_l2_norm": True, "is_legacy": True, "finetune_decoder": True}
# By the number of codes: steps, choice temperature, and guidance. A linear rise of weight w is 1 + w n / T there.
_PUBLISHED: dict[int, tuple[int, float, tuple[float, ...]]] = {
    32: (8, 9.5, (1.0, 1 + 4.5 * 7 / 8)),
    64: (8, 11.0, (1.0, 1 + 3.0 * 7 / 8)),
    128: (64, 2.8, (1.0, 6.9, 3.0)),
}

_LAYER, _BLOCK = r"model\.encoder\.layer\.(\d+)\.", r"transformer_blocks.\1."
_BERT = {
    r"model\.embeddings\.word_embeddings\.weight": "token_embedding.weight",
    r"model\.embeddings\.position_embeddings\.weight": "position_embedding.weight",
    r"model\.embeddings\.token_type_embeddings\.weight": "token_type",
    r"model\.embeddings\.(?:position_ids|token_type_ids)": "",
    r"model\.embeddings\.LayerNorm\.(weight|bias)": r"norm_in.\1",
    rf"{_LAYER}attention\.self\.query\.(weight|bias)": rf"{_BLOCK}attn.to_q.\2",
    rf"{_LAYER}attention\.self\.key\.(weight|bias)": rf"{_BLOCK}attn.to_k.\2",
    rf"{_LAYER}attention\.self\.value\.(weight|bias)": rf"{_BLOCK}attn.to_v.\2",
    rf"{_LAYER}attention\.output\.dense\.(weight|bias)": rf"{_BLOCK}attn.to_out.0.\2",
    rf"{_LAYER}attention\.output\.LayerNorm\.(weight|bias)": rf"{_BLOCK}norm1.\2",
    rf"{_LAYER}intermediate\.dense\.(weight|bias)": rf"{_BLOCK}ff.net.0.proj.\2",
    rf"{_LAYER}output\.dense\.(weight|bias)": rf"{_BLOCK}ff.net.2.\2",
    rf"{_LAYER}output\.LayerNorm\.(weight|bias)": rf"{_BLOCK}norm2.\2",
    r"model\.lm_head\.(weight|bias)": r"head.\1",
}


def _uvit_rules(half: int) -> dict[str, str]:
    """Names of a U-ViT whose halves have so many blocks each, which are numbered through here."""
    rules = {
        r"embeddings\.weight": "token_embedding.weight",
        "pos_embed": "position_embedding.weight",
        r"norm\.(weight|bias)": r"norm_out.\1",
        r"lm_head\.(weight|bias)": r"head.\1",
    }
    starts = {f"in_blocks.{i}.": i for i in range(half)} | {"mid_block.": half}
    starts |= {f"out_blocks.{i}.": half + 1 + i for i in range(half)}
    for start, block in starts.items():
        theirs, ours = start.replace(".", r"\."), f"transformer_blocks.{block}."
        for name, own in (("mlp.fc1", "ff.net.0.proj"), ("mlp.fc2", "ff.net.2"), ("attn.proj", "attn.to_out.0")):
            rules[f"{theirs}{name}".replace("mlp.", r"mlp\.") + r"\.(weight|bias)"] = rf"{ours}{own}.\1"
        rules[rf"{theirs}(norm1|norm2|attn\.qkv)\.(weight|bias)"] = rf"{ours}\1.\2"
        if block > half:
            rules[rf"{theirs}skip_linear\.(weight|bias)"] = rf"skips.{block - half - 1}.\1"
    return rules


def convert_generator(state_dict: Mapping[str, Tensor], codebook_size: int, heads: Sequence[int] = ()) -> Component:
    """The denoiser of a generator's weights, of either architecture.

    Args:
        codebook_size: of its tokenizer.
        heads: number of attention heads, where its width is not a published one.

    Raises:
        ValueError: weights that such a model does not have.
    """
    half = count_blocks(state_dict, r"out_blocks\.(\d+)\.")
    is_uvit = "pos_embed" in state_dict
    weights = renamed(state_dict, _uvit_rules(half) if is_uvit else _BERT, _GENERATOR)
    places = require_key(weights, "position_embedding.weight", _GENERATOR)
    if is_uvit:
        places, weights = places[0], _with_biases(split_qkv(weights, "qkv."))
    else:
        places = places + require_key(weights, "token_type", _GENERATOR)[0]
        del weights["token_type"]
    weights["position_embedding.weight"] = places.roll(-1, 0)  # the class is first there, last here
    rows, width = require_key(weights, "token_embedding.weight", _GENERATOR).shape
    config = {
        "num_tokens": len(places) - 1,
        "codebook_size": codebook_size,
        "num_classes": rows - codebook_size - 2,
        "hidden_size": width,
        "num_layers": count_blocks(weights, r"transformer_blocks\.(\d+)\."),
        "num_attention_heads": one_head_count(heads, _HEADS.get(width), width),
        "intermediate_size": require_key(weights, "transformer_blocks.0.ff.net.2.weight", _GENERATOR).shape[1],
        "norm_first": is_uvit,
        "num_skips": half,
        "norm_eps": 1e-5 if is_uvit else 1e-12,
    }
    return Component(TiTokTransformer1DModel, config, weights)


def _with_biases(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """With zeros for the biases of queries, keys and values, which a U-ViT has none of."""
    missing = {}
    for name, tensor in weights.items():
        start, found, _ = name.partition("weight")
        if found and start.endswith(("to_q.", "to_k.", "to_v.")) and f"{start}bias" not in weights:
            missing[f"{start}bias"] = torch.zeros(len(tensor), dtype=tensor.dtype)
    return weights | missing


def _tokenizer_rules(levels: int) -> dict[str, str]:
    rules = VIT_RULES | {
        r"decoder\.ffn\.(0|2)\.(weight|bias)": r"decoder.head.\1.\2",
        r"pixel_quantize\.embedding\.weight": "pixel_embedding.weight",
        r"pixel_decoder\.(conv_in|conv_out)\.(weight|bias)": r"pixel_decoder.\1.\2",
        r"pixel_decoder\.norm_out\.(weight|bias)": r"pixel_decoder.conv_norm_out.\1",
    }
    places = {r"pixel_decoder\.mid\.": "pixel_decoder.mid_block."}
    for level in range(levels):  # numbered by resolution there, by order of computation here
        block = levels - 1 - level
        places[rf"pixel_decoder\.up\.{level}\.block\."] = f"pixel_decoder.up_blocks.{block}."
        upsample = rf"pixel_decoder\.up\.{level}\.upsample_conv\.(weight|bias)"
        rules[upsample] = rf"pixel_decoder.upsamplers.{block}.\1"
    for theirs, ours in places.items():
        rules[rf"{theirs}(\d+)\.(norm1|conv1|norm2|conv2)\.(weight|bias)"] = rf"{ours}\1.\2.\3"
        rules[rf"{theirs}(\d+)\.nin_shortcut\.(weight|bias)"] = rf"{ours}\1.conv_shortcut.\2"
    return rules


def convert_tokenizer(state_dict: Mapping[str, Tensor]) -> Component:
    """The tokenizer of its weights. What is always added up in it is added up here once.

    Raises:
        ValueError: weights that such a model does not have.
    """
    levels = count_blocks(state_dict, r"pixel_decoder\.up\.(\d+)\.")
    weights = split_qkv(renamed(state_dict, _tokenizer_rules(levels), _TOKENIZER), "qkv.")

    def take(name: str) -> Tensor:
        return require_key(weights, name, _TOKENIZER)

    latent = take("latent_tokens")
    add_up_embeddings(weights, _TOKENIZER)
    for name in ("encoder.proj_out.weight", "decoder.head.0.weight", "decoder.head.2.weight"):
        weights[name] = take(name).flatten(1)
    weights["quantize.embedding.weight"] = normalize(take("quantize.embedding.weight"), dim=-1)

    pixels = "pixel_decoder."
    widths = [take(f"{pixels}up_blocks.{i}.0.conv1.weight").shape[0] for i in range(levels)][::-1]
    config: dict[str, Any] = {
        **sizes_of(weights, len(latent), _TOKENIZER),
        "num_pixel_embeddings": take("pixel_embedding.weight").shape[0],
        "latent_channels": take("pixel_embedding.weight").shape[1],
        "block_out_channels": widths,
        "layers_per_block": count_blocks(weights, rf"{pixels}up_blocks\.0\.(\d+)\."),
        "mid_layers": count_blocks(weights, rf"{pixels}mid_block\.(\d+)\."),
    }
    return Component(TiTokVQModel, config, weights)


def titok(num_tokens: int = 32, codebook_size: int = 4096) -> Preset:
    """TiTok's sampler at its authors' settings for so many codes; other numbers get those of 32."""
    steps, temperature, guidance = _PUBLISHED.get(num_tokens, _PUBLISHED[32])
    scheduler = AnnealedScheduler(
        mask_token_id=codebook_size, codebook_size=codebook_size, choice_temperature=temperature
    )
    return Preset(scheduler, steps, list(guidance))


def is_titok(path: Path) -> bool:
    """Whether a folder is one of TiTok's models, in safetensors with the settings beside them."""
    config = path / "config.json"
    return config.is_file() and (path / _WEIGHTS).is_file() and bool(_vq_settings(read_settings(config)))


def read_titok(path: Path) -> Tree:
    """The weights of one of TiTok's models: of a folder, or of a file of `torch.save`.

    Raises:
        ValueError: settings that no tokenizer of a published generator has.
    """
    if not path.is_dir():
        return read_checkpoint(path)
    if not is_titok(path):
        raise ValueError(
            f"`tokenizer` must hold {_WEIGHTS!r} and TiTok's config.json, {path.name!r} does not. Pass for example "
            "'yucornetto/tokenizer_titok_l32_imagenet'."
        )
    settings = _vq_settings(read_settings(path / "config.json"))
    other = {name: settings[name] for name, value in _SETTINGS.items() if settings.get(name, value) != value}
    if other:
        raise ValueError(f"a TiTok must have {_SETTINGS} in its config.json, got {other}. It is another tokenizer.")
    return load_file(path / _WEIGHTS)


def _vq_settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    model = settings.get("model")
    found = model.get("vq_model") if isinstance(model, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _contents(tree: Tree) -> set[str]:
    names = set(map(str, tree))
    found = {"transformer"} if any(marks <= names for marks in _MARKS.values()) else set()
    return found | ({"vqvae"} if {"latent_tokens", "pixel_quantize.embedding.weight"} <= names else set())


UPSTREAM = Upstream(
    name="bytedance/1d-tokenizer",
    licence="apache-2.0",
    contents=_contents,
    transformer=lambda tree, codebook_size, heads: convert_generator(
        require_tensors(tree, _WHERE), codebook_size, heads
    ),
    vqvae=lambda tree: convert_tokenizer(require_tensors(tree, _WHERE)),
    preset=lambda transformer: titok(transformer.config.num_tokens, transformer.config.codebook_size),
    widths=lambda tree: _widths(require_tensors(tree, _WHERE)),
    notes=(
        "Sampled as its authors do it: tokens and order are drawn at a temperature that falls to 0, and guidance rises "
        "from none. A code is no place in the image, so a part of an image cannot be drawn anew (`mask_image`); "
        "`strength` works."
    ),
    tokenizer_source="'yucornetto/tokenizer_titok_l32_imagenet', or the tokenizer of as many codes",
)


def _widths(weights: Mapping[str, Tensor]) -> list[tuple[int, int | None]]:
    head = next(head for head, marks in _MARKS.items() if marks <= weights.keys())
    width = weights[head].shape[1]
    return [(width, _HEADS.get(width))]
