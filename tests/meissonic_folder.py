"""A small Meissonic as its authors publish theirs: random weights under the published names, a folder a component."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel
from meissonic_reference import MeissonicReference
from safetensors.torch import save_file
from tiny_weights import draw_weights
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

CODES, ROWS = 14, 19
SIZES: dict[str, Any] = {
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 32,
    "axes_dims_rope": [4, 6, 6],
    "vocab_size": ROWS,
    "codebook_size": CODES,
}


def save_meissonic(folder: Path, downsample: bool = True, **changes: Any) -> MeissonicReference:
    """Write the folder; returns the transformer that it holds."""
    sizes = SIZES | {"downsample": downsample, "upsample": downsample} | changes
    reference = randomised(MeissonicReference(**sizes))
    names = {"_class_name": "Transformer2DModel", "patch_size": 1, "in_channels": 64, "guidance_embeds": False}
    write_json(folder / "transformer" / "config.json", sizes | names)
    weights = {name: tensor.contiguous() for name, tensor in reference.state_dict().items()}
    save_file(weights, folder / "transformer" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    save_text_encoder(folder)
    vqvae().save_pretrained(folder / "vqvae")
    scheduler = {"_class_name": "Scheduler", "mask_token_id": ROWS - 1, "masking_schedule": "cosine"}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    own = ["src.scheduler", "Scheduler"], ["src.transformer", "Transformer2DModel"]
    index = {"_class_name": "Pipeline", "scheduler": own[0], "transformer": own[1], "vqvae": ["diffusers", "VQModel"]}
    write_json(folder / "model_index.json", index)
    return reference


def randomised(model: Any, std: float = 0.3) -> Any:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return model.eval()


def vqvae() -> VQModel:
    model = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=4,
        num_vq_embeddings=CODES,
        norm_num_groups=4,
        lookup_from_codebook=True,
    )
    draw_weights(model)
    return model.eval()


def save_text_encoder(folder: Path) -> None:
    """A CLIP that reads letters, and its tokenizer."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "tokenizer" / "vocab.json", {word: index for index, word in enumerate(words)})
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 12, "pad_token": "<|endoftext|>"}
    write_json(folder / "tokenizer" / "tokenizer_config.json", special | settings)
    ids = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=SIZES["joint_attention_dim"],
        projection_dim=SIZES["pooled_projection_dim"],
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=12,
        **ids,
    )
    torch.manual_seed(0)
    CLIPTextModelWithProjection(config).save_pretrained(folder / "text_encoder")


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
