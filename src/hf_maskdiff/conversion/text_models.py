"""LLaDA (ML-GSAI/LLaDA), Dream (DreamLM/Dream) and what dLLM made of Qwen and Llama, as pipeline folders.

Their safetensors are read under Llama's and Qwen2's names (`published.text_models`), so the folder holds a model of
transformers and no code. Each comes with its authors' sampler as a preset.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_maskdiff.attention_rule import BLOCK_CAUSAL, FULL
from hf_maskdiff.conversion import text_presets
from hf_maskdiff.conversion.options import MissingOptions
from hf_maskdiff.conversion.sources import read_settings
from hf_maskdiff.conversion.upstream import Preset
from hf_maskdiff.pipelines import MaskedDiffusionTextPipeline
from hf_maskdiff.published import PUBLISHED_TYPES, load_published_text
from hf_maskdiff.published.attention import attention_unknown
from hf_maskdiff.schedulers import ConfidenceScheduler

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")


def llada(mask_token_id: int = 126336, codebook_size: int | None = None) -> Preset:
    """`generate` of LLaDA: the surest position first, by its most probable token, as many in every step."""
    scheduler = ConfidenceScheduler(
        mask_token_id=mask_token_id,
        codebook_size=codebook_size,
        masking_schedule="linear",
        rounding="even",
        token_temperature=0,
    )
    return Preset(scheduler, 128)


def dream(mask_token_id: int = 151666, codebook_size: int | None = None) -> Preset:
    """`diffusion_generate` of Dream as its authors call it: lowest entropy first, temperature 0.2, top-p 0.95."""
    scheduler = ConfidenceScheduler(
        mask_token_id=mask_token_id,
        codebook_size=codebook_size,
        masking_schedule="linear",
        rounding="even",
        measure="entropy",
        temperature=0.2,
        top_p=0.95,
    )
    return Preset(scheduler, 512)


def dream_counts(num_tokens: int, num_inference_steps: int, eps: float = 1e-3) -> list[int]:
    """Dream's own plan, cumulative: `int(masked (1 - s / t))` a step, what is left in the last one.

    It depends on the number of tokens in a way that no schedule does, so the preset spreads them evenly instead. For
    the original's counts to the token:

        table = dream_counts(128, 32)
        scheduler.from_config(scheduler.config, masking_schedule=table, rounding="floor_masked")

    Steps in which the original reveals nothing are left out, so that the table may be shorter than
    `num_inference_steps`: they cost it a pass and change no token. Times are float32, as the original computes them.
    """
    times = torch.linspace(1, eps, num_inference_steps + 1)
    table, masked = [num_tokens], num_tokens
    for n in range(num_inference_steps - 1):
        masked -= int(masked * (1 - times[n + 1] / times[n]))
        table.append(num_tokens - masked)
    return sorted({*table} - {0})


@dataclass(frozen=True)
class TextUpstream:
    """One published format of text models.

    Args:
        name: its repository.
        licence: of its weights, as their publisher states it.
        preset: how it samples, for a mask and the number of tokens.
        notes: sentences for the model card.
    """

    name: str
    licence: str
    preset: Callable[[int, int], Preset]
    notes: str


_LLADA = TextUpstream(
    "ML-GSAI/LLaDA",
    "mit",
    llada,
    'The scheduler is LLaDA\'s `generate` with `remasking="low_confidence"` and `temperature=0`. `num_inference_steps` '
    "counts the steps of a block (`block_length`), the original all of them, by default 128 for 128 tokens: pass "
    "`max_new_tokens=128, num_inference_steps=128`. `guidance_scale` is its `cfg_scale` + 1. With a temperature the "
    "original ranks positions by the probability of the token that it drew, as `MaskGITScheduler` does with "
    '`choice_temperature=0`; `remasking="random"` is `UniformScheduler` with `top_k=1`. '
    "The original may write the mask token itself, where the model finds it most probable; here it never is.",
)
_DREAM = TextUpstream(
    "DreamLM/Dream",
    "apache-2.0",
    dream,
    'The scheduler is Dream\'s `diffusion_generate` with `alg="entropy"`, `temperature=0.2`, `top_p=0.95`, which its '
    "authors call with `steps=512, max_new_tokens=512`: pass `max_new_tokens=512, num_inference_steps=512`. "
    "The original reveals `int(masked (1 - s / t))` positions a step, which depends on the length in a way that no "
    "schedule does; here every step reveals as many. `hf_maskdiff.conversion.text_models.dream_counts` gives the "
    'original\'s plan as a table for `masking_schedule`, with `rounding="floor_masked"`.',
)
_SUREST = "The scheduler is LLaDA's: the surest position first. "
_DLLM = TextUpstream("ZHZisZZ/dllm", "apache-2.0", llada, _SUREST)
_STEPS_OF_A_BLOCK = (
    "`num_inference_steps` counts the steps of a block: take at least as many as a block has positions, since the last "
    "one reveals whatever is left. "
)
_BLOCK_UPSTREAMS = {
    "sdar": TextUpstream(
        "JetAstra/SDAR",
        "mit",
        text_presets.sdar,
        "The scheduler is SDAR's `block_diffusion_generate` as it is unless told otherwise, `low_confidence_dynamic` "
        "with `confidence_threshold=0.85` and `temperature=1.0`: all drawn tokens that are more probable than that, "
        f"and at least an even share of the block. {_STEPS_OF_A_BLOCK}With `threshold=1` it is "
        "`low_confidence_static`; `sequential` is a `block_length` of 1.",
    ),
    "llada2_moe": TextUpstream(
        "inclusionAI/LLaDA2.X",
        "apache-2.0",
        text_presets.llada2,
        "The scheduler is that of diffusers' `LLaDA2Pipeline` as it is unless told otherwise, `threshold=0.95` and "
        "`temperature=0`, without editing: all tokens that are surer than that, and at least an even share of the "
        f"block. {_STEPS_OF_A_BLOCK}At a temperature the original compares the probability of the token that is "
        'drawn: `measure="drawn", token_temperature=1`.',
    ),
    "Fast_dLLM_Qwen": TextUpstream(
        "NVlabs/Fast-dLLM",
        "apache-2.0",
        text_presets.fast_dllm,
        "The scheduler is Fast-dLLM's with `threshold=0.9`: all tokens that are surer than that, and at least one. "
        f"{_STEPS_OF_A_BLOCK}The original fills in sub-blocks of 8 tokens: pass `block_length=8`.",
    ),
}


def is_text_model(folder: Path) -> bool:
    """Whether a folder holds one of these models."""
    config = folder / "config.json"
    return config.is_file() and read_settings(config).get("model_type") in PUBLISHED_TYPES


def open_text_model(
    folder: Path,
    tokenizer: str | Path | None = None,
    attention: str | None = None,
    name: str | Path | None = None,
    block_size: int | None = None,
) -> tuple[MaskedDiffusionTextPipeline, TextUpstream]:
    """The pipeline with its preset, weights in the dtype they are stored in.

    Args:
        attention, block_size: where somebody says so, see `load_published_text`.
        name: of the repository that the folder was fetched from.

    Raises:
        MissingOptions: no tokenizer in the folder, and none given; a type that does not tell the attention.
        ValueError: weights that do not fit the configuration.
    """
    model_type = str(read_settings(folder / "config.json")["model_type"])
    missing = {}
    if tokenizer is None and not any((folder / file).is_file() for file in _TOKENIZERS):
        missing["tokenizer"] = (
            f"There must be a tokenizer beside the model, {str(folder)!r} has none. Pass the name or the folder of one."
        )
    settings = read_settings(folder / "config.json")
    unknown = attention_unknown(model_type, name or folder, attention, settings)
    if unknown is not None:
        missing["attention"] = f"{unknown}."
    if attention == BLOCK_CAUSAL and block_size is None and model_type.startswith("a2d-"):
        missing["block_size"] = "Pass the size of the blocks that the model was trained with; its card says it."
    if missing:
        raise MissingOptions(missing)
    upstream = {"llada": _LLADA, "Dream": _DREAM, **_BLOCK_UPSTREAMS}.get(model_type, _DLLM)
    own = None if tokenizer is None else str(tokenizer)
    if attention is None and model_type.startswith("a2d-"):
        attention = FULL  # else it is missing: the name of the repository tells
    found = load_published_text(folder, own, attention, block_size, dtype="auto", use_safetensors=True)
    size = min(len(found.tokenizer), found.model.config.vocab_size)
    scheduler = upstream.preset(found.mask_token_id, size).scheduler
    if found.rule is not None and "block_length" in scheduler.config:  # other pipelines than ours read it there
        scheduler.register_to_config(block_length=found.rule.block_size)
    pipe = MaskedDiffusionTextPipeline(found.tokenizer, found.model, scheduler, found.shift_logits, found.eos_token_ids)
    return pipe, upstream  # the rule of a model that sees blocks is in its own configuration
