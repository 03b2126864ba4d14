"""Small models that see blocks from left to right, as their authors publish them: sizes are free, weights random."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from small_models import MASK, VOCAB, change_json, save_a2d, save_tokenizer
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from hf_maskdiff import MaskedDiffusionTextPipeline, MDLMTransformer

BLOCK = 4
_LLADA2 = {
    "model_type": "llada2_moe",
    "architectures": ["LLaDA2MoeModelLM"],
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 600000,
    "rope_scaling": None,
    "partial_rotary_factor": 0.5,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "score_function": "sigmoid",
    "pad_token_id": 2,
    "eos_token_id": 3,
    "mask_token_id": MASK,
    "tie_word_embeddings": False,
    "use_qk_norm": True,
    "use_bias": False,
    "use_qkv_bias": False,
}


def save_sdar(folder: Path, **changes: Any) -> Path:
    names = {"model_type": "sdar", "architectures": ["SDARForCausalLM"], "block_size": BLOCK, "rope_theta": 1e6}
    return save_a2d(folder, **(names | {"rope_scaling": None, "attn_implementation": "flex_attention"} | changes))


def save_fast_dllm(folder: Path, **changes: Any) -> Path:
    """Qwen2 with blocks and shifted logits."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCAB, num_hidden_layers=2, eos_token_id=3, **sizes)).save_pretrained(
        folder
    )
    save_tokenizer(folder)
    names = {"model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"], "bd_size": BLOCK}
    change_json(folder / "config.json", lambda settings: settings | names | {"rope_theta": 1e6} | changes)
    return folder


def llada2_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    """By their published names."""
    generator = torch.Generator().manual_seed(0)
    hidden, dim = config["hidden_size"], config["head_dim"]

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    def feed_forward(name: str, width: int) -> dict[str, Tensor]:
        shapes = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
        return {f"{name}.{part}.weight": new(*shape) for part, shape in shapes.items()}

    weights = {"model.word_embeddings.weight": new(config["vocab_size"], hidden), "model.norm.weight": 1 + new(hidden)}
    weights["lm_head.weight"] = new(config["vocab_size"], hidden)
    heads, kept = config["num_attention_heads"], config["num_key_value_heads"]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        weights |= {
            f"{layer}.{name}.weight": 1 + new(hidden) for name in ("input_layernorm", "post_attention_layernorm")
        }
        weights[f"{layer}.attention.query_key_value.weight"] = new((heads + 2 * kept) * dim, hidden)
        weights[f"{layer}.attention.dense.weight"] = new(hidden, heads * dim)
        weights |= {f"{layer}.attention.{name}_layernorm.weight": 1 + new(dim) for name in ("query", "key")}
        if i < config["first_k_dense_replace"]:
            weights |= feed_forward(f"{layer}.mlp", config["intermediate_size"])
            continue
        width = config["moe_intermediate_size"]
        for expert in range(config["num_experts"]):
            weights |= feed_forward(f"{layer}.mlp.experts.{expert}", width)
        weights |= feed_forward(f"{layer}.mlp.shared_experts", width * config["num_shared_experts"])
        weights[f"{layer}.mlp.gate.weight"] = new(config["num_experts"], hidden)
        weights[f"{layer}.mlp.gate.expert_bias"] = new(config["num_experts"])
    return weights


def save_llada2(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    config = _LLADA2 | changes
    (folder / "config.json").write_text(json.dumps(config))
    save_file(llada2_weights(_LLADA2), folder / "model.safetensors", {"format": "pt"})
    return save_tokenizer(folder)


def llada2_logits(config: dict[str, Any], weights: dict[str, Tensor], ids: Tensor, seen: Tensor) -> Tensor:
    """A LLaDA2 written down anew, one token at a time where experts are chosen: `(batch_size, L, vocab_size)`.

    Args:
        seen: bool `(L, L)`, which positions (columns) each one sees.
    """
    dim, heads, kept = config["head_dim"], config["num_attention_heads"], config["num_key_value_heads"]

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).rsqrt() * weight

    def feed_forward(x: Tensor, name: str) -> Tensor:
        gate, up, down = (weights[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return (nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T

    def rotated(x: Tensor) -> Tensor:
        width = int(dim * config["partial_rotary_factor"])
        angles = config["rope_theta"] ** (-torch.arange(0, width, 2) / width) * torch.arange(x.shape[1])[:, None]
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        a, b, rest = x.split([width // 2, width // 2, dim - width], dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)

    def experts(x: Tensor, name: str) -> Tensor:
        scores = (weights[f"{name}.gate.weight"] @ x).sigmoid()
        biased = scores + weights[f"{name}.gate.expert_bias"]
        groups = biased.view(config["n_group"], -1)
        best = groups.topk(2).values.sum(-1).topk(config["topk_group"]).indices.tolist()
        allowed = [i for i in range(len(biased)) if i // groups.shape[1] in best]
        chosen = sorted(allowed, key=lambda i: -float(biased[i]))[: config["num_experts_per_tok"]]
        total = sum(float(scores[i]) for i in chosen)
        parts = [float(scores[i]) / total * feed_forward(x, f"{name}.experts.{i}") for i in chosen]
        return config["routed_scaling_factor"] * sum(parts) + feed_forward(x, f"{name}.shared_experts")

    x = weights["model.word_embeddings.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        projected = (
            norm(x, weights[f"{layer}.input_layernorm.weight"]) @ weights[f"{layer}.attention.query_key_value.weight"].T
        )
        query, key, value = projected.unflatten(-1, (-1, dim)).split([heads, kept, kept], dim=2)
        query = rotated(norm(query, weights[f"{layer}.attention.query_layernorm.weight"]))
        key = rotated(norm(key, weights[f"{layer}.attention.key_layernorm.weight"]))
        key, value = (part.repeat_interleave(heads // kept, 2) for part in (key, value))
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / dim**0.5
        attended = torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), value)
        x = x + attended.flatten(2) @ weights[f"{layer}.attention.dense.weight"].T
        fed = norm(x, weights[f"{layer}.post_attention_layernorm.weight"])
        if i < config["first_k_dense_replace"]:
            x = x + feed_forward(fed, f"{layer}.mlp")
        else:
            x = x + torch.stack([torch.stack([experts(token, f"{layer}.mlp") for token in row]) for row in fed])
    return norm(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T


def save_bd3lm(folder: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_dim": 16, "cond_dim": 8, "n_blocks": 2, "n_heads": 2, "vocab_size": VOCAB, "model_length": 64}
    model = MDLMTransformer(**sizes, block_size=BLOCK)
    for name, parameter in model.named_parameters():
        if "modulation" in name:
            nn.init.normal_(parameter, std=0.2)
    folder.mkdir(parents=True)
    weights = {f"backbone.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    weights |= {"sampling_eps_min": torch.tensor(1e-3), "sampling_eps_max": torch.tensor(1.0)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    names = {"model_type": "bd3lm", "architectures": ["BD3LM"], "adaln": True, "causal": False, "block_size": BLOCK}
    more = {"cross_attn": True, "attn_backend": "flex", "time_conditioning": False, "dropout": 0.1, "var_min": True}
    (folder / "config.json").write_text(json.dumps(sizes | names | more | changes))
    return folder


def save_dllm(folder: Path, **changes: Any) -> Path:
    return save_a2d(folder, **({"rope_theta": 1e6} | changes))


# name -> how it is saved, and what has to be said when it is opened
FAMILIES: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "sdar": (save_sdar, {}),
    "fast_dllm": (save_fast_dllm, {}),
    "llada2": (save_llada2, {"block_size": BLOCK}),
    "dllm": (save_dllm, {"attention": "block_causal", "block_size": BLOCK}),
    "bd3lm": (save_bd3lm, {}),
}


def spread(pipe: MaskedDiffusionTextPipeline) -> MaskedDiffusionTextPipeline:
    """Large random weights: every token depends on those before it, and rounding decides nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in pipe.transformer.named_parameters():
            if parameter.ndim < 2:
                continue
            width = 1.0 if "embed" in name else 1.5 * parameter.shape[-1] ** -0.5
            width = 0.05 if "modulation" in name else width  # the same for all positions
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * width)
        for name, parameter in pipe.transformer.named_parameters():
            if name.endswith("modulation.bias") and name.startswith("blocks"):
                parameter.view(6, -1)[[2, 5]] = 1  # gates: a new model's are closed
        head = next(
            module for name, module in pipe.transformer.named_modules() if name in ("lm_head", "output_layer.linear")
        )
        head.weight.mul_(2)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def open_family(name: str, folder: Path, **said: Any) -> MaskedDiffusionTextPipeline:
    save, needed = FAMILIES[name]
    words = {"tokenizer": str(save_bd3lm_tokenizer(folder.parent / "words"))} if name == "bd3lm" else {}
    return spread(MaskedDiffusionTextPipeline.from_pretrained(save(folder), **(needed | words | said)))


def save_bd3lm_tokenizer(folder: Path) -> Path:
    """Without a word for the mask, which is the last row."""
    return save_tokenizer(folder, VOCAB - 1)
