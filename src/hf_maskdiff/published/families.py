"""Families of published text models: whose architecture of transformers each is, and what its weights are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import (
    AutoConfig,
    AutoTokenizer,
    Glm4MoeConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen3Config,
)

# Names of LLaDA's weights, as patterns, and of Llama's: the same arithmetic under other names. At the top `ff_out` is
# the head, in a block the way out of its feed-forward layer.
LLADA_KEYS = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_norm\.": r"model.layers.\1.input_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.q_proj\.": r"model.layers.\1.self_attn.q_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.k_proj\.": r"model.layers.\1.self_attn.k_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.v_proj\.": r"model.layers.\1.self_attn.v_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_out\.": r"model.layers.\1.self_attn.o_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.up_proj\.": r"model.layers.\1.mlp.up_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_out\.": r"model.layers.\1.mlp.down_proj.",
}
# What a LLaDA may say of its arithmetic and still be a Llama.
_LLADA_IS_LLAMA = {
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "alibi": False,
    "rope": True,
    "attention_layer_norm": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "scale_logits": False,
}


def llama_config(published: Mapping[str, Any]) -> LlamaConfig:
    """The `LlamaConfig` of a LLaDA's `config.json`.

    Raises:
        ValueError: settings under which it computes something else than a Llama.
    """
    other = {name: published[name] for name, value in _LLADA_IS_LLAMA.items() if published.get(name, value) != value}
    if other:
        raise ValueError(f"a LLaDA must compute what Llama does, got {other} in its config.json. It cannot be loaded.")
    return LlamaConfig(
        vocab_size=published.get("embedding_size") or published["vocab_size"],
        hidden_size=published["d_model"],
        intermediate_size=published.get("mlp_hidden_size") or published["mlp_ratio"] * published["d_model"],
        num_hidden_layers=published["n_layers"],
        num_attention_heads=published["n_heads"],
        num_key_value_heads=published.get("n_kv_heads") or published["n_heads"],
        max_position_embeddings=published["max_sequence_length"],
        rms_norm_eps=published["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": published["rope_theta"]},
        tie_word_embeddings=published["weight_tying"],
        bos_token_id=None,
        eos_token_id=published["eos_token_id"],
        pad_token_id=published["pad_token_id"],
        mask_token_id=published["mask_token_id"],
    )


def qwen2_config(published: Mapping[str, Any]) -> Qwen2Config:
    """The `Qwen2Config` of a Dream's `config.json`, whose names are Qwen2's."""
    foreign = ("model_type", "architectures", "auto_map", "rope_theta", "rope_scaling", "torch_dtype", "use_mrope")
    settings = {name: value for name, value in published.items() if name not in foreign}
    rope = {"rope_type": "default", "rope_theta": published["rope_theta"]}
    return Qwen2Config(**settings, rope_parameters=rope)


def native_config(published: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration of an autoregressive architecture that dLLM made bidirectional: "a2d-qwen3" is "qwen3"."""
    foreign = ("model_type", "architectures", "auto_map")
    settings = {name: value for name, value in published.items() if name not in foreign}
    return AutoConfig.for_model(published["model_type"].removeprefix("a2d-"), **settings)


# Settings that say how a model is trained or stored, or that name the code of its repository.
_FOREIGN = (
    "model_type",
    "architectures",
    "auto_map",
    "rope_theta",
    "rope_scaling",
    "torch_dtype",
    "dtype",
    "use_cache",
)


def _default_rope(published: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """`rope_parameters` of a `config.json` of transformers 4; `ValueError` for positions that are scaled."""
    if published.get("rope_scaling") is not None:
        raise ValueError(
            f"`rope_scaling` must be null, got {published['rope_scaling']!r}. Such a model cannot be loaded yet."
        )
    return {"rope_type": "default", "rope_theta": published["rope_theta"], **more}


def sdar_config(published: Mapping[str, Any]) -> Qwen3Config:
    """The `Qwen3Config` of an SDAR's `config.json`, whose names are Qwen3's.

    Raises:
        ValueError: attention windows, or scaled positions.
    """
    return Qwen3Config(**_like_qwen(published, ("block_size",)))


def fast_dllm_config(published: Mapping[str, Any]) -> Qwen2Config:
    """The `Qwen2Config` of a Fast-dLLM v2's `config.json`, whose names are Qwen2's; errors as of `sdar_config`."""
    return Qwen2Config(**_like_qwen(published, ("bd_size",)))


def _like_qwen(published: Mapping[str, Any], own: Sequence[str]) -> dict[str, Any]:
    if published.get("use_sliding_window"):
        raise ValueError("`use_sliding_window` must be false, got true. Blocks and windows at once are not supported.")
    foreign = (*_FOREIGN, *own, "attn_implementation", "layer_types", "sliding_window", "max_window_layers")
    settings = {name: value for name, value in published.items() if name not in foreign}
    return {**settings, "rope_parameters": _default_rope(published)}


# What a LLaDA2 may say of its arithmetic and still be a GLM-4-MoE.
_LLADA2_IS_GLM = {
    "hidden_act": "silu",
    "norm_topk_prob": True,
    "score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "use_qk_norm": True,
    "use_bias": False,
    "use_qkv_bias": False,
    "norm_head": False,
    "num_nextn_predict_layers": 0,
}
_LLADA2_NAMES = {"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"}
_LLADA2_SAME = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "moe_intermediate_size"),
    *("num_experts_per_tok", "n_group", "topk_group", "first_k_dense_replace", "routed_scaling_factor"),
)
LLADA2_KEYS = {
    r"^model\.word_embeddings\.": "model.embed_tokens.",
    r"^model\.layers\.(\d+)\.attention\.query_key_value\.": r"model.layers.\1.self_attn.qkv_proj.",
    r"^model\.layers\.(\d+)\.attention\.query_layernorm\.": r"model.layers.\1.self_attn.q_norm.",
    r"^model\.layers\.(\d+)\.attention\.key_layernorm\.": r"model.layers.\1.self_attn.k_norm.",
    r"^model\.layers\.(\d+)\.attention\.dense\.": r"model.layers.\1.self_attn.o_proj.",
    r"^model\.layers\.(\d+)\.mlp\.gate\.expert_bias$": r"model.layers.\1.mlp.gate.e_score_correction_bias",
}


def glm4_moe_config(published: Mapping[str, Any]) -> Glm4MoeConfig:
    """The `Glm4MoeConfig` of a LLaDA2's `config.json`: the same arithmetic under other names.

    Raises:
        ValueError: settings under which it computes something else.
    """
    other = {name: published[name] for name, value in _LLADA2_IS_GLM.items() if published.get(name, value) != value}
    if other:
        raise ValueError(f"a LLaDA2 must compute what GLM-4-MoE does, got {other} in its config.json. It is another.")
    ids = {name: published.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")}
    return Glm4MoeConfig(
        **{name: published[name] for name in _LLADA2_SAME},
        **{name: published[theirs] for name, theirs in _LLADA2_NAMES.items()},
        **ids,
        rope_parameters=_default_rope(published, partial_rotary_factor=published["partial_rotary_factor"]),
        tie_word_embeddings=published.get("tie_word_embeddings", False),
        norm_topk_prob=True,
        use_qk_norm=True,
        attention_bias=False,
        num_nextn_predict_layers=0,
    )


@dataclass(frozen=True)
class Family:
    """How a family of published models is loaded.

    Args:
        config: makes the configuration of transformers of the published one.
        shift_logits: row i - 1 predicts position i.
        keys: patterns of the weights' names, and what they become.
        split: the projections of queries, keys and values are one weight.
        tokenizer: class of transformers.
        mask_token: how the tokenizer writes the mask, where neither it nor the configuration says so.
    """

    config: Callable[[Mapping[str, Any]], PreTrainedConfig]
    shift_logits: bool = False
    keys: dict[str, str] = field(default_factory=dict)
    split: bool = False
    tokenizer: Any = AutoTokenizer
    mask_token: str | None = None


FAMILIES = {
    "llada": Family(llama_config, keys=LLADA_KEYS),
    "Dream": Family(qwen2_config, shift_logits=True, tokenizer=Qwen2Tokenizer),
    "a2d-qwen2": Family(native_config),
    "a2d-qwen3": Family(native_config),
    "a2d-llama": Family(native_config),
    "sdar": Family(sdar_config),
    "llada2_moe": Family(glm4_moe_config, keys=LLADA2_KEYS, split=True, mask_token="<|mask|>"),
    "Fast_dLLM_Qwen": Family(fast_dllm_config, shift_logits=True, mask_token="|<MASK>|"),
}
PUBLISHED_TYPES = tuple(FAMILIES)
