"""A LLaDA of random weights, as its authors publish theirs: weights, settings, tokenizer, and code beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_weights import draw_weights
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hf_maskdiff.published.families import LLADA_KEYS, llama_config

END, MASK = "<|endoftext|>", "<|mdm_mask|>"
TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|eot_id|>{% endfor %}<|assistant|>"


def _tokenizer() -> PreTrainedTokenizerFast:
    """Bytes; the mask is an added token that no `mask_token` names."""
    core = Tokenizer(BPE())
    core.pre_tokenizer, core.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = [END, "<|eot_id|>", "<|user|>", "<|assistant|>", MASK]
    trainer = BpeTrainer(initial_alphabet=ByteLevel.alphabet(), special_tokens=special, show_progress=False)
    core.train_from_iterator([], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END)
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write(folder: Path) -> Path:
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    settings = {
        "model_type": "llada",
        "architectures": ["LLaDAModelLM"],
        "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM"},
        "block_type": "llama",
        "vocab_size": len(tokenizer),
        "embedding_size": len(tokenizer),
        "d_model": 32,
        "mlp_hidden_size": 48,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 4,
        "max_sequence_length": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "weight_tying": False,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "mask_token_id": tokenizer.convert_tokens_to_ids(MASK),
    }
    (folder / "config.json").write_text(json.dumps(settings))
    for name in ("configuration_llada.py", "modeling_llada.py"):
        (folder / name).write_text("raise SystemExit('code of the repository was run')")
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(settings))
    draw_weights(model)
    save_file(_as_published(model.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _as_published(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Llama's names to LLaDA's, by the patterns read backwards."""
    found = {}
    for name, tensor in weights.items():
        for pattern, theirs in LLADA_KEYS.items():
            ours = re.escape(theirs).replace(r"\\1", r"(\d+)")
            if match := re.match(ours, name):
                published = pattern.removeprefix("^").replace("\\.", ".")
                published = published.replace(r"(\d+)", match[1] if match.groups() else "")
                found[published + name[match.end() :]] = tensor.contiguous()
    assert len(found) == len(weights)
    return found
