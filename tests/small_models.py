"""Small checkpoints of language models as they are published, to be spoilt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

VOCAB, MASK = 40, 4


def save_tokenizer(folder: Path, size: int = VOCAB) -> Path:
    words = {f"w{i}": i for i in range(size)}
    del words[f"w{MASK}"]
    tokenizer = Tokenizer(WordLevel(words | {"<mask>": MASK}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w3", mask_token="<mask>").save_pretrained(folder)
    return folder


def save_a2d(folder: Path, num_key_value_heads: int = 1, **changes: Any) -> Path:
    """As dLLM publishes a Qwen3, whether it is an MDLM or a BD3LM."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    sizes["num_key_value_heads"] = num_key_value_heads
    config = Qwen3Config(vocab_size=VOCAB, num_hidden_layers=2, head_dim=8, mask_token_id=MASK, eos_token_id=3, **sizes)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    names = {"model_type": "a2d-qwen3", "architectures": ["A2DQwen3LMHeadModel"]}
    change_json(folder / "config.json", lambda settings: settings | names | changes)
    return folder


def save_bert(folder: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "max_position_embeddings": 32}
    config = BertConfig(vocab_size=VOCAB, num_hidden_layers=2, pad_token_id=0, **sizes)
    BertForMaskedLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    change_json(folder / "config.json", lambda settings: settings | changes)
    return folder


def change_json(path: Path, change: Callable[[dict], object]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def change_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})
