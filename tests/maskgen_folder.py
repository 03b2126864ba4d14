"""A small MaskGen as its authors publish theirs: generator, tokenizer of images and CLIP, each in a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from maskgen_reference import MaskGenReference, TATiTokReference
from meissonic_folder import SIZES, randomised, save_text_encoder, write_json
from safetensors.torch import load_file, save_file, save_model

TOKENS, CODES, HEADS, SCORE, WORDS = 30, 13, 4, 8, 12
TEXT, POOLED = SIZES["joint_attention_dim"], SIZES["pooled_projection_dim"]
VQ = {"quantize_mode": "vq", "codebook_size": CODES, "use_l2_norm": False, "is_legacy": False}
MASKGEN: dict[str, Any] = {
    "decoder_num_heads": HEADS,
    "micro_condition": True,
    "micro_condition_embed_dim": SCORE,
    "sample_aesthetic_score": 6.5,
}


class Published(NamedTuple):
    """Three folders, and the models in the first two."""

    generator: Path
    tokenizer: Path
    text_encoder: Path
    of_codes: MaskGenReference
    of_images: TATiTokReference


def save_maskgen(root: Path) -> Published:
    """Write the folders."""
    of_codes = randomised(MaskGenReference(TOKENS, CODES, 32, 3, HEADS, TEXT, POOLED, SCORE), std=0.15)
    of_images = randomised(TATiTokReference(2, TOKENS, CODES, 4, 64, 128, WORDS, TEXT))
    settings = {"model": {"vq_model": VQ | {"finetune_decoder": False}, "maskgen": MASKGEN}}
    write_json(root / "generator" / "config.json", settings)
    save_model(of_codes, str(root / "generator" / "model.safetensors"))  # which keeps one of two names of a table
    write_json(root / "tokenizer" / "config.json", {"model": {"vq_model": VQ | {"finetune_decoder": False}}})
    save_model(of_images, str(root / "tokenizer" / "model.safetensors"))
    save_clip(root)
    return Published(root / "generator", root / "tokenizer", root / "clip", of_codes, of_images)


def save_clip(root: Path) -> None:
    """A whole CLIP: its text half, and of the other half a name."""
    save_text_encoder(root / "parts")
    clip = Path(shutil.copytree(root / "parts" / "tokenizer", root / "clip"))
    half = root / "parts" / "text_encoder"
    write_json(clip / "config.json", {"text_config": json.loads((half / "config.json").read_text())})
    others = {"vision_model.encoder": torch.zeros(2), "logit_scale": torch.zeros(1)}
    others["text_model.embeddings.position_ids"] = torch.arange(WORDS)[None]
    save_file(load_file(half / "model.safetensors") | others, clip / "model.safetensors", {"format": "pt"})
