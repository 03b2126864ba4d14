"""What text decoding is compared: a published loop, and the scheduler and cache of ours that make the same passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from reference_loops import dkv_decode, dllm_fast_dllm, dllm_mdlm, fast_dllm, klass, sdar
from reference_model import ReferenceModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hf_maskdiff import (
    ConfidenceScheduler,
    DelayedCacheConfig,
    DualCacheConfig,
    KLASSScheduler,
    MaskedDiffusionTextPipeline,
    PrefixCacheConfig,
    ThresholdScheduler,
)

SHAPES: dict[str, Callable[..., PreTrainedModel]] = {
    "llada": lambda **sizes: LlamaForCausalLM(LlamaConfig(**sizes)),
    "qwen3": lambda **sizes: Qwen3ForCausalLM(Qwen3Config(**sizes | {"num_key_value_heads": 4, "head_dim": 64})),
}
# In standard deviations of the logits: with it, some tokens are sure, and most are not, as in trained models.
LOGIT_SCALE = 10.0


@dataclass(frozen=True)
class Setting:
    """What is decoded."""

    shape: str
    vocab_size: int
    prompt_length: int
    new_tokens: int
    batch_size: int
    block_length: int = 32
    steps_a_block: int = 8

    @property
    def arguments(self) -> dict[str, int]:
        """Of a published loop, which counts the steps of all blocks, up to the largest number it may need."""
        steps = self.steps_a_block * (self.new_tokens // self.block_length)
        sizes = {"new_tokens": self.new_tokens, "block_length": self.block_length}
        return sizes | {"steps": steps, "mask_id": self.mask_id}

    @property
    def mask_id(self) -> int:
        return self.vocab_size - 1

    def prompt(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randint(self.mask_id, (self.batch_size, self.prompt_length), generator=generator)


def make_model(setting: Setting, hidden_size: int = 512, num_layers: int = 8) -> PreTrainedModel:
    """An untrained decoder of a published shape, a few times smaller."""
    torch.manual_seed(0)
    sizes = {"vocab_size": setting.vocab_size, "hidden_size": hidden_size, "intermediate_size": 3 * hidden_size}
    sizes |= {"num_hidden_layers": num_layers, "num_attention_heads": 8, "max_position_embeddings": 4096}
    sizes |= {"num_key_value_heads": 8, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    model = SHAPES[setting.shape](**sizes).eval()
    nn.init.normal_(model.lm_head.weight, std=LOGIT_SCALE / hidden_size**0.5)
    return model


@dataclass(frozen=True)
class Contest:
    """A published loop, and what makes the same passes here.

    Args:
        loop: with the model, the prompt, and the arguments of a setting.
        scheduler: makes our scheduler.
        cache: ours; None for none.
        batches: whether the original can fill in several rows at once.
        as_needed: whether a block may take a step for each of its positions, instead of the steps of the setting.
        in_blocks: whether the model sees blocks from left to right.
        draws: whether tokens are drawn, each side with noise of its own, so that they differ.
    """

    loop: Callable[..., Tensor]
    scheduler: Callable[..., Any]
    cache: Any = None
    batches: bool = False
    as_needed: bool = False
    in_blocks: bool = False
    draws: bool = False


def even(**tokens: int) -> Any:
    return ConfidenceScheduler(**tokens, masking_schedule="linear", rounding="even", token_temperature=0)


def sure(threshold: float = 0.9) -> Callable[..., Any]:
    return lambda **tokens: ThresholdScheduler(**tokens, threshold=threshold, token_temperature=0)


def with_factor(**tokens: int) -> Any:
    return ThresholdScheduler(**tokens, threshold=None, factor=1.0, token_temperature=0)


def unchanged(**tokens: int) -> Any:
    return KLASSScheduler(**tokens, token_temperature=0)


def fixed(loop: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    return lambda model, prompt, **arguments: loop(model, prompt, **arguments, **options)


def of_rows(model: ReferenceModel, prompt: Tensor, **arguments: int) -> Tensor:
    return dllm_mdlm(model, list(prompt), eos_id=0, **arguments)


def planned_draws(**tokens: int) -> Any:
    """The surest tokens drawn, as many as planned: no probability is above 1."""
    return ThresholdScheduler(**tokens, threshold=1.0, measure="drawn", follow_schedule=True, rounding="even")


def in_blocks(
    model: ReferenceModel, prompt: Tensor, new_tokens: int, block_length: int, steps: int, mask_id: int
) -> Tensor:
    steps_a_block = steps // (new_tokens // block_length)
    return sdar(model, prompt, new_tokens, block_length, steps_a_block, mask_id, "low_confidence_static")


CONTESTS: Mapping[str, Contest] = {
    "Fast-dLLM, no cache": Contest(fast_dllm, even),
    "Fast-dLLM, prefix": Contest(fixed(fast_dllm, cache="prefix"), even, PrefixCacheConfig()),
    "Fast-dLLM, dual": Contest(fixed(fast_dllm, cache="dual"), even, DualCacheConfig()),
    "Fast-dLLM, threshold": Contest(fixed(fast_dllm, threshold=0.9), sure(), as_needed=True),
    "Fast-dLLM, prefix, threshold": Contest(
        fixed(fast_dllm, cache="prefix", threshold=0.9), sure(), PrefixCacheConfig(), as_needed=True
    ),
    "Fast-dLLM, dual, threshold": Contest(
        fixed(fast_dllm, cache="dual", threshold=0.9), sure(), DualCacheConfig(), as_needed=True
    ),
    "dLLM, MDLM": Contest(of_rows, even, batches=True),
    "dLLM, prefix": Contest(fixed(dllm_fast_dllm, cache="prefix"), even, PrefixCacheConfig(), batches=True),
    "dLLM, dual": Contest(fixed(dllm_fast_dllm, cache="dual"), even, DualCacheConfig(), batches=True),
    "dLLM, dual, factor": Contest(
        fixed(dllm_fast_dllm, cache="dual", factor=1.0), with_factor, DualCacheConfig(), batches=True, as_needed=True
    ),
    "dKV-Cache": Contest(fixed(dkv_decode, refresh_every=8), even, DelayedCacheConfig(refresh_every=8), batches=True),
    "KLASS": Contest(klass, unchanged, as_needed=True),
    "SDAR": Contest(in_blocks, planned_draws, in_blocks=True, draws=True),
}


def pipeline_of(model: PreTrainedModel, setting: Setting, contest: Contest) -> MaskedDiffusionTextPipeline:
    """Ours, with a tokenizer of one word."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    scheduler = contest.scheduler(mask_token_id=setting.mask_id, codebook_size=setting.mask_id)
    sees = {"attention": "block_causal", "block_size": setting.block_length} if contest.in_blocks else {}
    pipe = MaskedDiffusionTextPipeline(tokenizer, model, scheduler, **sees)
    pipe.set_progress_bar_config(disable=True)
    if contest.cache is not None:
        pipe.enable_cache(contest.cache)
    return pipe
