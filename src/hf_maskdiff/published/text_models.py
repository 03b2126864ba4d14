"""Published masked diffusion language models as models of transformers: no code of their repositories is run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2Tokenizer,
)
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

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
# Tokens that end a turn besides a tokenizer's end of text.
_ENDS_OF_TURN = ("<|eot_id|>", "<|im_end|>")


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


@dataclass(frozen=True)
class _Family:
    """How a family of published models is loaded."""

    config: Callable[[Mapping[str, Any]], PreTrainedConfig]
    shift_logits: bool = False
    keys: dict[str, str] = field(default_factory=dict)
    tokenizer: Any = AutoTokenizer


_FAMILIES = {
    "llada": _Family(llama_config, keys=LLADA_KEYS),
    "Dream": _Family(qwen2_config, shift_logits=True, tokenizer=Qwen2Tokenizer),
    "a2d-qwen2": _Family(native_config),
    "a2d-qwen3": _Family(native_config),
    "a2d-llama": _Family(native_config),
}
PUBLISHED_TYPES = tuple(_FAMILIES)
_LOCATION = ("cache_dir", "force_download", "proxies", "token", "revision", "local_files_only", "subfolder")


def base_of_adapter(name_or_path: str | os.PathLike, location: Mapping[str, Any]) -> str | None:
    """The model that an adapter's repository names; None where it is no adapter alone."""
    file = find_adapter_config_file(str(name_or_path), **location)
    optional = {"_raise_exceptions_for_missing_entries": False}
    if file is None or cached_file(str(name_or_path), "config.json", **location, **optional) is not None:
        return None
    return json.loads(Path(file).read_text(encoding="utf-8"))["base_model_name_or_path"]


@dataclass(frozen=True)
class PublishedText:
    """A published model, and what a pipeline has to know of it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    mask_token_id: int
    shift_logits: bool
    eos_token_ids: list[int]

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: Any, shift_logits: bool = False) -> PublishedText:
        """Finds mask and ends of text in the configurations of model and tokenizer."""
        mask = getattr(model.config, "mask_token_id", None)
        if mask is None or mask >= model.config.vocab_size:
            mask = tokenizer.mask_token_id
        if mask is None:
            raise ValueError(
                f"{model.name_or_path!r} must name a mask token, in `config.json` as `mask_token_id` or in its "
                "tokenizer, got none. Pass a `tokenizer` that has one."
            )
        generation = getattr(model.generation_config, "eos_token_id", None) if model.can_generate() else None
        ends = [tokenizer.eos_token_id, *(generation if isinstance(generation, list) else [generation])]
        ends += [tokenizer.get_vocab().get(token) for token in _ENDS_OF_TURN]
        return cls(model, tokenizer, mask, shift_logits, sorted({end for end in ends if end is not None}))


def _of_the_base(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that hold for the model under an adapter as well: not where in a repository the adapter is."""
    return {name: value for name, value in kwargs.items() if name not in ("revision", "subfolder")}


def with_adapter(found: PublishedText, name_or_path: str | os.PathLike, location: Mapping[str, Any]) -> PublishedText:
    """The model with an adapter applied.

    Raises:
        ValueError: the adapter belongs to layers that the model does not have. Weights without a place would leave
            the model as it was, without a word.
    """
    model = found.model
    try:
        info = model.load_adapter(str(name_or_path), adapter_kwargs=dict(location))
    except (ValueError, RuntimeError) as error:
        info, reason = None, str(error)
    else:
        lost = sorted(map(str, (*getattr(info, "missing_keys", ()), *getattr(info, "unexpected_keys", ()))))
        reason = f"Weights without a place: {lost[:4]}" if lost else ""
    if reason:
        raise ValueError(
            f"the adapter {str(name_or_path)!r} must fit {model.name_or_path!r}, which is opened as "
            f"{type(model).__name__}, got one for other layers. Train it on that class, or merge it with the code "
            f"that it was trained with. ({reason})"
        )
    model.eval()
    return found


def load_published_text(
    name_or_path: str | os.PathLike, tokenizer: PreTrainedTokenizerBase | str | None = None, **kwargs: Any
) -> PublishedText:
    """Loads a masked diffusion language model of the Hub, or a masked language model, with its own tokenizer.

    LLaDA becomes a `LlamaForCausalLM`, Dream a `Qwen2ForCausalLM`, what dLLM made of Qwen or Llama that model itself;
    any other repository is opened as `AutoModelForMaskedLM`, or `AutoModelForCausalLM` where that is what it holds.

    A repository of an adapter (LoRA) is opened with the model that it names, and applied to it; that needs `peft`.

    Args:
        tokenizer: an object or a name; None for that of the repository.
        kwargs: as for every model of transformers: `dtype`, `device_map`, `attn_implementation`, `revision`, ...

    Raises:
        ValueError: no mask token, neither in the configuration nor in the tokenizer; weights that do not fit.
    """
    location = {name: kwargs[name] for name in _LOCATION if kwargs.get(name) is not None}
    if (base := base_of_adapter(name_or_path, location)) is not None:
        return with_adapter(load_published_text(base, tokenizer, **_of_the_base(kwargs)), name_or_path, location)
    published, _ = PreTrainedConfig.get_config_dict(name_or_path, **location)
    family = _FAMILIES.get(published.get("model_type", ""))
    tokenizer_class = AutoTokenizer if family is None else family.tokenizer
    found: Any = tokenizer
    if not isinstance(found, PreTrainedTokenizerBase):
        source = name_or_path if tokenizer is None else tokenizer
        # Said at once, since transformers asks at the terminal whether to run a repository's code.
        found = tokenizer_class.from_pretrained(source, trust_remote_code=False, **({} if tokenizer else location))
    if family is None:
        config = AutoConfig.from_pretrained(name_or_path, **location)
        is_masked_lm = type(config) in AutoModelForMaskedLM._model_mapping
        auto = AutoModelForMaskedLM if is_masked_lm else AutoModelForCausalLM
        model, info = auto.from_pretrained(name_or_path, output_loading_info=True, **kwargs)
    else:
        config = family.config(published)
        architecture = AutoModelForCausalLM._model_mapping[type(config)]
        kwargs |= {"ignore_mismatched_sizes": True} | ({"key_mapping": family.keys} if family.keys else {})
        model, info = architecture.from_pretrained(name_or_path, config=config, output_loading_info=True, **kwargs)
        # Else `save_pretrained` would give the weights their published names again, beside a config that is Llama's.
        model._weight_conversions = None
    # A masked language model may bring heads that are not asked for; in a model of one of these families all is known.
    kinds = ("missing_keys", "mismatched_keys", *(() if family is None else ("unexpected_keys",)))
    wrong = {kind: sorted(map(str, info[kind])) for kind in kinds if info.get(kind)}
    if wrong:
        raise ValueError(f"The weights in {str(name_or_path)!r} must fit its config.json, got {wrong}.")

    published_text = PublishedText.of(model.eval(), found, family is not None and family.shift_logits)
    model.config.mask_token_id = published_text.mask_token_id  # the model is nobody else's yet
    return published_text
