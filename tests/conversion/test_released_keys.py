"""Names and shapes of released weights that are opened under a class of another library: aMUSEd's and Dream's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UVit2DModel, VQModel
from golden_data import cases
from torch import nn
from transformers import Qwen2ForCausalLM

from hf_maskdiff.published.families import qwen2_config

# What their `config.json` say, as far as it has a bearing on the weights.
AMUSED = {
    "hidden_size": 1024,
    "num_hidden_layers": 22,
    "num_attention_heads": 16,
    "block_num_heads": 12,
    "in_channels": 768,
    "block_out_channels": 768,
    "num_res_blocks": 3,
    "intermediate_size": 2816,
    "codebook_size": 8192,
    "vocab_size": 8256,
    "encoder_hidden_size": 768,
    "cond_embed_dim": 768,
    "micro_cond_encode_dim": 256,
    "micro_cond_embed_dim": 1280,
    "use_bias": False,
    "ln_elementwise_affine": True,
}
AMUSED_VQ = {
    "block_out_channels": [128, 256, 256, 512, 768],
    "down_block_types": ["DownEncoderBlock2D"] * 5,
    "up_block_types": ["UpDecoderBlock2D"] * 5,
    "latent_channels": 64,
    "layers_per_block": 2,
    "num_vq_embeddings": 8192,
    "mid_block_add_attention": False,
    "lookup_from_codebook": True,
}
DREAM = {
    "model_type": "Dream",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}


def assert_fits(model: nn.Module, path: Path) -> None:
    released = {key: shape for key, (shape, _) in json.loads(path.read_text()).items()}
    assert {key: list(tensor.shape) for key, tensor in model.state_dict().items()} == released


@pytest.mark.parametrize("path", cases("released_keys/amused/released_keys_transformer_*.json"))
def test_amused(path: Path) -> None:
    pixels = int(path.stem.rsplit("_", 1)[1])
    with torch.device("meta"):
        transformer = UVit2DModel(**AMUSED, sample_size=pixels // 16, downsample=pixels == 512, upsample=pixels == 512)
    assert_fits(transformer, path)


@pytest.mark.parametrize("path", cases("released_keys/amused/released_keys_vqvae.json"))
def test_the_tokenizer_of_amused(path: Path) -> None:
    with torch.device("meta"):
        vqvae = VQModel(**AMUSED_VQ)
    assert_fits(vqvae, path)


@pytest.mark.parametrize("path", cases("released_keys/dream/*.json"))
def test_dream(path: Path) -> None:
    with torch.device("meta"):
        model = Qwen2ForCausalLM(qwen2_config(DREAM))
    assert model.num_parameters() == pytest.approx(7.6156e9, rel=1e-4)
    assert_fits(model, path)
