"""Published masked diffusion language models as models of transformers: no code of their repositories is run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from hf_maskdiff.attention_rule import BlockCausal

from .attention import OWN_SIZE_NAME, attention_of
from .families import FAMILIES
from .fused_weights import with_split_projections
from .malformed import refusing, settings_of
from .mdlm_weights import LOCATION, weight_files
from .sizes import check_count, check_sizes, shapes_of
from .tokenizer_files import check_ids, check_special_id, open_tokenizer

# Tokens that end a turn besides a tokenizer's end of text.
_ENDS_OF_TURN = ("<|eot_id|>", "<|im_end|>")
_SUPPORTED = (
    "a LLaDA, a LLaDA2, a Dream, an SDAR, a Fast-dLLM v2, a BD3-LM, a model of dLLM (Qwen2, Qwen3 or Llama), or a "
    "masked or causal language model that transformers has itself"
)
# What transformers makes of settings that fit no model. Too little memory is a RuntimeError, and stays one.
_NONSENSE = (TypeError, AttributeError, LookupError, ArithmeticError)


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
    rule: BlockCausal | None = None

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: Any,
        shift_logits: bool = False,
        rule: BlockCausal | None = None,
        mask_token: str | None = None,
    ) -> PublishedText:
        """Finds mask and ends of text in the configurations of model and tokenizer.

        Raises:
            ValueError: no mask; a mask or an end of text that is no row of the model.
        """
        rows = model.config.vocab_size
        mask = getattr(model.config, "mask_token_id", None)
        if mask is None or (type(mask) is int and mask >= rows):
            mask = tokenizer.mask_token_id
        if mask is None and mask_token is not None:
            mask = tokenizer.get_vocab().get(mask_token)
        if mask is None:
            raise ValueError(
                f"{model.name_or_path!r} must name a mask token, in `config.json` as `mask_token_id` or in its "
                "tokenizer, got none. Pass a `tokenizer` that has one."
            )
        check_special_id("mask_token_id", mask, rows)
        generation = getattr(model.generation_config, "eos_token_id", None) if model.can_generate() else None
        ends = [tokenizer.eos_token_id, *(generation if isinstance(generation, list) else [generation])]
        ends += [tokenizer.get_vocab().get(token) for token in _ENDS_OF_TURN]
        ends = [end for end in ends if end is not None]
        for end in ends:
            check_special_id("eos_token_id", end, rows)
        return cls(model, tokenizer, mask, shift_logits, sorted(set(ends)), rule)


def _of_the_base(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that hold for the model under an adapter as well: not where in a repository the adapter is."""
    return _without(kwargs, ("revision", "subfolder"))


def _without(kwargs: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in names}


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
    name_or_path: str | os.PathLike,
    tokenizer: PreTrainedTokenizerBase | str | None = None,
    attention: str | None = None,
    block_size: int | None = None,
    **kwargs: Any,
) -> PublishedText:
    """Loads a masked diffusion language model of the Hub, or a masked language model, with its own tokenizer.

    LLaDA becomes a `LlamaForCausalLM`, Dream and Fast-dLLM v2 a `Qwen2ForCausalLM`, SDAR a `Qwen3ForCausalLM`, LLaDA2 a
    `Glm4MoeForCausalLM`, what dLLM made of Qwen or Llama that model itself; any other repository is opened as
    `AutoModelForMaskedLM`, or `AutoModelForCausalLM` where that is what it holds.
    Code of a repository is never run.

    A repository of an adapter (LoRA) is opened with the model that it names, and applied to it; that needs `peft`.

    Args:
        tokenizer: an object or a name; None for that of the repository.
        attention: "full" or "block_causal", of a model of a type that dLLM gives to both kinds (without a need where
            "mdlm" is in the repository's name) or of a model of transformers; others say it themselves.
        block_size: of blocks that are seen from left to right, where config.json does not state it.
        kwargs: as for every model of transformers: `dtype`, `device_map`, `attn_implementation`, `revision`, ...

    Raises:
        ValueError: a model of another family; a type that does not tell the attention; no mask token, neither in the
            configuration nor in the tokenizer; ids that are no rows of the model; sizes or weights that do not fit.
        OSError: no model there.
    """
    if kwargs.pop("trust_remote_code", None):
        raise ValueError(
            "`trust_remote_code` must be left out, got True: code of a repository is never run here. Load such a model "
            "yourself and pass it to `MaskedDiffusionTextPipeline.from_model`."
        )
    location = {name: kwargs[name] for name in LOCATION if kwargs.get(name) is not None}
    if (base := base_of_adapter(name_or_path, location)) is not None:
        found_base = load_published_text(base, tokenizer, attention, block_size, **_of_the_base(kwargs))
        return with_adapter(found_base, name_or_path, location)
    what = f"config.json in {str(name_or_path)!r}"
    published = settings_of(what, lambda: PreTrainedConfig.get_config_dict(name_or_path, **location)[0])
    model_type = str(published.get("model_type", ""))
    rule = attention_of(model_type, name_or_path, published, attention, block_size)
    family = FAMILIES.get(model_type)
    with refusing(what, "Take config.json and weights from one model."):
        config = _native_config(name_or_path, location, model_type) if family is None else family.config(published)
    architecture = _architecture(config, name_or_path, model_type)
    shapes = _shapes(name_or_path, location, kwargs)
    with refusing(what, "Take config.json and weights from one model."):
        _check_size(architecture, config, shapes)

    found: Any = tokenizer
    if not isinstance(found, PreTrainedTokenizerBase):
        source = name_or_path if tokenizer is None else tokenizer
        tokenizer_class = AutoTokenizer if family is None else family.tokenizer
        found = open_tokenizer(source, tokenizer_class, **({} if tokenizer else location))
    check_ids(found, config.vocab_size)
    if family is not None:
        kwargs |= {"config": config, "ignore_mismatched_sizes": True}
        kwargs |= {"key_mapping": family.keys} if family.keys and not family.split else {}
    where: Any = name_or_path
    if family is not None and family.split:
        weights = with_split_projections(weight_files(name_or_path, location), family.keys, config)
        where, kwargs = None, {"state_dict": weights, **_without(kwargs, LOCATION)}
    try:
        model, info = architecture.from_pretrained(where, output_loading_info=True, trust_remote_code=False, **kwargs)
    except _NONSENSE as error:
        raise ValueError(f"{what} must describe the weights beside it: {error}. Take both from one model.") from error
    if family is not None:
        # Else `save_pretrained` would give the weights their published names again, beside a config that is Llama's.
        model._weight_conversions = None
    _check_weights(name_or_path, info, all_are_known=family is not None)

    shift_logits, mask_token = (False, None) if family is None else (family.shift_logits, family.mask_token)
    published_text = PublishedText.of(model.eval(), found, shift_logits, rule, mask_token)
    model.config.mask_token_id = published_text.mask_token_id  # the model is nobody else's yet
    if rule is not None:
        setattr(model.config, OWN_SIZE_NAME, rule.block_size)
    return published_text


def _check_weights(name_or_path: str | os.PathLike, info: Mapping[str, Any], all_are_known: bool) -> None:
    """Raise `ValueError` where weights lack or do not fit; a masked language model may bring heads not asked for."""
    kinds = ("missing_keys", "mismatched_keys", *(("unexpected_keys",) if all_are_known else ()))
    wrong = {kind: sorted(map(str, info[kind])) for kind in kinds if info.get(kind)}
    if wrong:
        raise ValueError(f"The weights in {str(name_or_path)!r} must fit its config.json, got {wrong}.")


def _native_config(name_or_path: str | os.PathLike, location: Mapping[str, Any], model_type: str) -> PreTrainedConfig:
    """The configuration of a model that is transformers' own; `ValueError` where it has none of that type."""
    try:
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=False, **location)
    except (ValueError, KeyError) as error:
        if model_type in CONFIG_MAPPING:  # what it says is of that type's settings
            raise
        raise _unsupported(name_or_path, model_type) from error


def _architecture(config: PreTrainedConfig, name_or_path: str | os.PathLike, model_type: str) -> type[PreTrainedModel]:
    """The class of transformers that a configuration is of."""
    for auto in (AutoModelForMaskedLM, AutoModelForCausalLM):
        if type(config) in auto._model_mapping and hasattr(config, "vocab_size"):
            found = auto._model_mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise _unsupported(name_or_path, model_type)


def _unsupported(name_or_path: str | os.PathLike, model_type: str) -> ValueError:
    return ValueError(
        f"{str(name_or_path)!r} must hold {_SUPPORTED}, got one of type {model_type!r}. Code of a repository is never "
        "run: load such a model yourself and pass it to `MaskedDiffusionTextPipeline.from_model`."
    )


def _shapes(
    name_or_path: str | os.PathLike, location: dict[str, Any], kwargs: Mapping[str, Any]
) -> dict[str, tuple[int, ...]] | None:
    """Shapes of the weights, without reading them; None where they are not the repository's safetensors."""
    if kwargs.get("variant") is not None or kwargs.get("use_safetensors") is False:
        return None
    return shapes_of(weight_files(name_or_path, location)) or None


def _check_size(
    architecture: type[PreTrainedModel], config: PreTrainedConfig, shapes: Mapping[str, tuple[int, ...]] | None
) -> None:
    """Holds a configuration against the shapes of its weights, before memory is taken for it."""
    check_sizes(config.to_dict(), shapes)
    if shapes is not None:
        with torch.device("meta"):
            model = architecture(config)
        check_count(sum(parameter.numel() for parameter in model.parameters()), shapes)
