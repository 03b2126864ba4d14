"""What a text pipeline asks of a model, and how each kind of model answers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import singledispatch
from typing import Any, Protocol

from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor
from transformers import PreTrainedModel

from hf_maskdiff.attention_rule import BlockCausal
from hf_maskdiff.caching import (
    BlockCacheConfig,
    CacheConfig,
    CacheSwitch,
    KeyValueCache,
    PartialCacheConfig,
    PassPlan,
    Span,
    fitting,
)
from hf_maskdiff.denoisers.transformers_denoiser import TransformersDenoiser
from hf_maskdiff.models import MDLMTransformer


class TextDenoiser(Protocol):
    """Maps tokens to logits, in full and partial passes; see `TransformersDenoiser` for the arguments."""

    @property
    def model(self) -> Any: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def model_length(self) -> int | None: ...

    @property
    def mask_token_id(self) -> int | None: ...

    @property
    def time_conditioning(self) -> bool: ...

    @property
    def rule(self) -> BlockCausal | None: ...

    @property
    def partial_cache(self) -> PartialCacheConfig | None: ...

    @property
    def plan(self) -> PassPlan | None: ...

    @property
    def cache_of_diffusers(self) -> object | None: ...

    def __call__(
        self,
        input_ids: Tensor,
        timestep: float | Tensor | None = None,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        logits_at: Tensor | None = None,
        cache: Any = None,
        num_runs: int | None = None,
        offsets: Tensor | None = None,
        length: int | None = None,
        span: Span | None = None,
    ) -> Tensor: ...

    def enable_cache(self, config: Any) -> None: ...

    def disable_cache(self) -> None: ...

    def take_over(self, other: Any) -> None: ...

    def new_cache(self) -> Any: ...

    def cache_context(self, name: str) -> AbstractContextManager[None]: ...

    def _reset_stateful_cache(self) -> None: ...


class MDLMDenoiser(CacheSwitch):
    """An `MDLMTransformer`, whose mask token is its last id; its caches are the model's own kind."""

    def __init__(self, model: MDLMTransformer) -> None:
        super().__init__(model)
        self.cache_context, self._reset_stateful_cache = model.cache_context, model._reset_stateful_cache
        self._own = None if self.rule is None else BlockCacheConfig()

    def enable_cache(self, config: Any) -> None:
        """As `CacheSwitch`; a model that sees blocks from left to right is cached exactly or not at all."""
        sees_blocks = self.rule is not None
        super().enable_cache(fitting(config, sees_blocks) if isinstance(config, CacheConfig) else config)

    @property
    def vocab_size(self) -> int:
        return self.model.config.vocab_size

    @property
    def model_length(self) -> int:
        return self.model.config.model_length

    @property
    def mask_token_id(self) -> int:
        return self.vocab_size - 1

    @property
    def rule(self) -> BlockCausal | None:
        size = self.model.config.block_size
        return None if size is None else BlockCausal(size)

    @property
    def time_conditioning(self) -> bool:
        return self.model.config.time_conditioning

    def __call__(
        self,
        input_ids: Tensor,
        timestep: float | Tensor | None = None,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
        logits_at: Tensor | None = None,
        cache: KeyValueCache | None = None,
        num_runs: int | None = None,
        offsets: Tensor | None = None,
        length: int | None = None,
        span: Span | None = None,
    ) -> Tensor:
        arguments: dict[str, Any] = {"positions": positions, "cache": cache, "logits_at": logits_at}
        arguments |= {"attention_mask": attention_mask, "offsets": offsets, "length": length}
        return self.model(input_ids, timestep, return_dict=False, **arguments)[0]


def text_denoiser(model: Any, shift_logits: bool = False, rule: BlockCausal | None = None) -> TextDenoiser:
    """The denoiser for a pipeline's model, which may be compiled.

    Raises:
        ValueError: a model of another kind, or a rule that is not that of an `MDLMTransformer`.
    """
    return _text_denoiser.dispatch(type(unwrap_module(model)))(model, shift_logits, rule)


@singledispatch
def _text_denoiser(model: Any, shift_logits: bool, rule: BlockCausal | None) -> TextDenoiser:
    raise ValueError(
        "`transformer` must be an MDLMTransformer or a model of transformers with `.logits`, got "
        f"{type(model).__name__}. Load it with `AutoModelForMaskedLM` or `AutoModelForCausalLM`."
    )


@_text_denoiser.register(MDLMTransformer)
def _(model: Any, shift_logits: bool, rule: BlockCausal | None) -> TextDenoiser:
    denoiser = MDLMDenoiser(model)
    if rule not in (None, denoiser.rule):
        raise ValueError(
            f"`block_size` must be the model's own, {model.config.block_size}, got {rule.block_size}. Leave "
            "`attention` and `block_size` out."
        )
    return denoiser


@_text_denoiser.register(PreTrainedModel)
def _(model: Any, shift_logits: bool, rule: BlockCausal | None) -> TextDenoiser:
    return TransformersDenoiser(model, shift_logits, rule)
