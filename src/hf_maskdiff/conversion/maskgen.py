"""MaskGen's generators of codes and TA-TiTok's tokenizers (bytedance/1d-tokenizer, arXiv 2501.07730)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from hf_maskdiff.conversion.clip_text import open_clip_text
from hf_maskdiff.conversion.options import MissingOptions
from hf_maskdiff.conversion.sources import read_settings
from hf_maskdiff.conversion.titok_vit import VIT_RULES, add_up_embeddings, sizes_of
from hf_maskdiff.conversion.upstream import (
    Component,
    Preset,
    count_blocks,
    renamed,
    require_key,
    split_qkv,
)
from hf_maskdiff.models import MaskGenTransformer1DModel, TATiTokVQModel
from hf_maskdiff.pipelines import MaskedDiffusionTextToImagePipeline
from hf_maskdiff.pipelines.text_conditions import check_micro_conditioning
from hf_maskdiff.schedulers import AnnealedScheduler

NAME = "bytedance/1d-tokenizer"
LICENCE = "apache-2.0"
NOTES = """\
Sampled as its authors do it: 16 steps in which tokens and order are drawn at a temperature that falls from 2 to 0, and
logits are divided by what falls from 1.3 to 0.5 besides. Guidance rises from 2 to 13 as a cosine, which is their 1 to
12. The aesthetic score is the one in the generator's settings, as there, whatever their call says. Texts are filled up
with token 0, as OpenCLIP does it, since the model sees what fills them up. A code is no place in the image, so a part
of an image cannot be drawn anew (`mask_image`); `strength` works."""
_GENERATOR, _TOKENIZER = "a MaskGen", "a tokenizer of TA-TiTok"
_WEIGHTS = "model.safetensors"
_TEXT_ENCODER = "openai/clip-vit-large-patch14-336"
_TOKENIZERS = "turkeyju/tokenizer_tatitok_bl128_vq"
# What the generators of codes and their tokenizers have in common, in the words of their config.json.
_SETTINGS = {"quantize_mode": "vq", "use_l2_norm": False, "is_legacy": False, "finetune_decoder": False}
_OF_GENERATOR = {"micro_condition": True, "weight_tying": True}
_TOKENIZER_RULES = VIT_RULES | {
    r"quantize\.embed_prob": "",  # how often each code was used in training
    r"decoder\.text_guidance_proj\.(weight|bias)": r"decoder.text_proj.\1",
    r"decoder\.text_guidance_positional_embedding": "decoder.text_embedding",
    r"decoder\.ffn\.0\.(weight|bias)": r"decoder.head.\1",
    r"decoder\.conv_out\.(weight|bias)": r"decoder.conv_out.\1",
}


def _rules(num_layers: int) -> dict[str, str]:
    return {
        # of the text's queries, which the last block makes and nobody reads
        rf"blocks\.{num_layers - 1}\.attn\.add_q_proj\.(weight|bias)": "",
        r"blocks\.(\d+\..+)": r"transformer_blocks.\1",
        r"text_embed_proj\.(weight|bias)": r"context_embedder.\1",
        r"cond_pooled_proj\.(weight|bias)": r"cond_embed.\1",
        r"norm\.linear\.(weight|bias)": r"norm_out.linear.\1",
        "pos_embed": "position_embedding.weight",
        r"embeddings\.weight": "token_embedding.weight",
        r"lm_head\.weight": "scores",
    }


def convert_generator(state_dict: Mapping[str, Tensor], codebook_size: int, heads: int, score_width: int) -> Component:
    """The denoiser of a generator's weights.

    Args:
        codebook_size: of its tokenizer.
        heads: number of attention heads.
        score_width: in which the aesthetic score is encoded.

    Raises:
        ValueError: weights that such a model does not have.
    """
    layers = count_blocks(state_dict, r"blocks\.(\d+)\.")
    weights = renamed(state_dict, _rules(layers), _GENERATOR)
    scores = weights.pop("scores", None)  # the table of codes again, of which safetensors hold one
    table = weights.get("token_embedding.weight", scores)
    if table is None or (scores is not None and not torch.equal(table, scores)):
        raise ValueError(
            "a MaskGen must score codes by the table in which it looks them up, this one has "
            f"{'none' if table is None else 'two'}. Fetch it again, or it is another model."
        )
    if len(table) <= codebook_size:
        raise ValueError(
            f"a MaskGen must have rows for its tokenizer's {codebook_size} codes and the mask, got {len(table)}. Pass "
            "the tokenizer that it was trained with."
        )
    # Behind codes and mask lie rows for classes, which no text-to-image model looks up.
    weights["token_embedding.weight"] = table[: codebook_size + 1].clone()
    weights["token_embedding.bias"] = torch.zeros(codebook_size + 1, dtype=table.dtype)
    places = require_key(weights, "position_embedding.weight", _GENERATOR)[0]
    weights["position_embedding.weight"] = places
    config = {
        "num_tokens": len(places),
        "codebook_size": codebook_size,
        "hidden_size": table.shape[1],
        "num_layers": layers,
        "num_attention_heads": heads,
        "joint_attention_dim": require_key(weights, "context_embedder.weight", _GENERATOR).shape[1],
        "pooled_projection_dim": require_key(weights, "cond_embed.weight", _GENERATOR).shape[1] - score_width,
        "micro_cond_encode_dim": score_width,
        "text_pad_token_id": 0,
    }
    return Component(MaskGenTransformer1DModel, config, weights)


def convert_tokenizer(state_dict: Mapping[str, Tensor]) -> Component:
    """The tokenizer of its weights. What is always added up in it is added up here once.

    Raises:
        ValueError: weights that such a model does not have.
    """
    weights = split_qkv(renamed(state_dict, _TOKENIZER_RULES, _TOKENIZER), "qkv.")

    def take(name: str) -> Tensor:
        return require_key(weights, name, _TOKENIZER)

    latent = take("latent_tokens")
    add_up_embeddings(weights, _TOKENIZER)
    for name in ("encoder.proj_out.weight", "decoder.head.weight"):
        weights[name] = take(name).flatten(1)
    text = "decoder.text_"
    config: dict[str, Any] = {
        **sizes_of(weights, len(latent), _TOKENIZER),
        "num_text_tokens": take(f"{text}embedding").shape[0],
        "text_embed_dim": take(f"{text}proj.weight").shape[1],
    }
    return Component(TATiTokVQModel, config, weights)


def maskgen(codebook_size: int = 8192, masking_schedule: str = "arccos") -> Preset:
    """MaskGen's sampler at its authors' settings; their guidance g is `1 + g` here."""
    scheduler = AnnealedScheduler(
        mask_token_id=codebook_size,
        codebook_size=codebook_size,
        masking_schedule=masking_schedule,
        choice_temperature=2.0,
        logits_temperature=[1.3, 0.5],
    )
    return Preset(scheduler, 16, [2.0, 13.0, 1.0, 1.0])


def is_maskgen(path: Path) -> bool:
    """Whether a folder is one of MaskGen's generators, in safetensors with the settings beside them."""
    config = path / "config.json"
    return config.is_file() and (path / _WEIGHTS).is_file() and bool(_part(read_settings(config), "maskgen"))


def open_maskgen(
    folder: Path, tokenizer: Path | None = None, text_encoder: Path | None = None
) -> MaskedDiffusionTextToImagePipeline:
    """The pipeline of a generator, its tokenizer of images and the text encoder, in memory.

    Raises:
        MissingOptions: a `ValueError`: one of the other two is not given.
        ValueError: settings of another model; weights that are missing, or do not fit each other.
    """
    _require_parts(tokenizer, text_encoder)
    settings = read_settings(folder / "config.json")
    own = _part(settings, "maskgen")
    _require(_part(settings, "vq_model"), _SETTINGS, _GENERATOR)
    _require(own, _OF_GENERATOR, _GENERATOR)
    vqvae = _open_tokenizer(tokenizer)
    codes = vqvae.config.num_vq_embeddings
    weights = load_file(folder / _WEIGHTS)
    heads, score_width = (_count(own, name) for name in ("decoder_num_heads", "micro_condition_embed_dim"))
    transformer = convert_generator(weights, codes, heads, score_width).build()
    words, encoder = open_clip_text(text_encoder)
    _check_fit(transformer, vqvae, words, encoder)
    score = own.get("sample_aesthetic_score", 6.0)
    check_micro_conditioning((0, 0), score)
    preset = maskgen(codes, own.get("mask_schedule_strategy", "arccos"))
    defaults = {"num_inference_steps": preset.num_inference_steps, "guidance_scale": preset.guidance_scale}
    defaults["micro_conditioning_aesthetic_score"] = score
    return MaskedDiffusionTextToImagePipeline(vqvae, words, encoder, transformer, preset.scheduler, defaults)


def _require_parts(tokenizer: Path | None, text_encoder: Path | None) -> None:
    missing = {}
    if tokenizer is None:
        missing["tokenizer"] = f"a MaskGen must come with a TA-TiTok of as many codes. Pass {_TOKENIZERS!r}."
    if text_encoder is None:
        missing["text_encoder"] = f"a MaskGen must come with the CLIP that reads its prompts. Pass {_TEXT_ENCODER!r}."
    if missing:
        raise MissingOptions(missing)


def _open_tokenizer(folder: Path | None) -> TATiTokVQModel:
    config = None if folder is None else folder / "config.json"
    if folder is None or config is None or not config.is_file() or not (folder / _WEIGHTS).is_file():
        raise ValueError(
            f"`tokenizer` must hold {_WEIGHTS!r} and TA-TiTok's config.json, {folder and folder.name!r} does not. Pass "
            f"for example {_TOKENIZERS!r}."
        )
    settings = _part(read_settings(config), "vq_model")
    _require(settings, _SETTINGS, "a TA-TiTok")
    return convert_tokenizer(load_file(folder / _WEIGHTS)).build()


def _part(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The part of a config.json that speaks of one model; empty where there is none."""
    model = settings.get("model")
    found = model.get(name) if isinstance(model, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _require(settings: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    other = {name: settings[name] for name, value in expected.items() if settings.get(name, value) != value}
    if other:
        raise ValueError(f"{what} must have {dict(expected)} in its config.json, got {other}. It is another model.")


def _count(settings: Mapping[str, Any], name: str) -> int:
    count = settings.get(name)
    if type(count) is not int or count < 1:
        raise ValueError(
            f"`{name}` in a MaskGen's config.json must be an integer above 0, got {count!r}. Fetch it again."
        )
    return count


def _check_fit(
    transformer: Any, vqvae: TATiTokVQModel, words: CLIPTokenizer, encoder: CLIPTextModelWithProjection
) -> None:
    """Raise `ValueError` for parts of different models."""
    ours, images, text = transformer.config, vqvae.config, encoder.config
    for what, one, of, other in (
        ("generator's number of codes of an image", ours.num_tokens, "tokenizer", images.num_latent_tokens),
        ("generator's `joint_attention_dim`", ours.joint_attention_dim, "text encoder", text.hidden_size),
        ("generator's `pooled_projection_dim`", ours.pooled_projection_dim, "text encoder", text.projection_dim),
        ("tokenizer's `text_embed_dim`", images.text_embed_dim, "text encoder", text.hidden_size),
        ("tokenizer's number of tokens of a text", images.num_text_tokens, "text encoder", words.model_max_length),
    ):
        if one != other:
            raise ValueError(f"The {what} must be that of the {of}, got {one} and {other}. Pass its own.")
