"""A tiny ESM-2 with random weights, in a folder like the repositories of the released models."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_weights import draw_weights
from transformers import EsmConfig, EsmForMaskedLM, EsmTokenizer

# The vocabulary of the released models.
TOKENS = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
CLS, EOS, MASK = 0, 2, 32


def write_esm2(folder: Path) -> Path:
    """Vocabulary, configuration and weights; what is no residue is as unlikely as the released models find it."""
    (folder / "vocab.txt").write_text("\n".join(TOKENS))
    EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=len(TOKENS),
        mask_token_id=MASK,
        pad_token_id=1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=1026,
        position_embedding_type="rotary",
        token_dropout=True,
        emb_layer_norm_before=False,
    )
    model = EsmForMaskedLM(config).eval()
    draw_weights(model)
    model.lm_head.bias.data[[0, 1, 2, 3, *range(24, 32)]] = -50
    model.save_pretrained(folder)
    return folder
