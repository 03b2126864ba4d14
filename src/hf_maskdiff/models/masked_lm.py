"""MDLM as a model of transformers, which `AutoModelForMaskedLM` loads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from hf_maskdiff.models.sized_model import check_folder
from hf_maskdiff.models.transformer_mdlm import MDLMTransformer

_SETTINGS = (
    "vocab_size",
    "model_length",
    "hidden_dim",
    "cond_dim",
    "n_blocks",
    "n_heads",
    "dropout",
    "time_conditioning",
    "block_size",
)
_OPTIONAL = ("block_size",)


class MDLMConfig(PreTrainedConfig):
    """Configuration of model type "mdlm", with the names of the published `config.json`; see `MDLMTransformer`.

    Sizes have no defaults: if `config.json` lacks one, building a model is an error.
    """

    model_type = "mdlm"
    attribute_map = {  # noqa: RUF012 (transformers' convention)
        "hidden_size": "hidden_dim",
        "num_hidden_layers": "n_blocks",
        "num_attention_heads": "n_heads",
        "max_position_embeddings": "model_length",
    }

    def __init__(
        self,
        vocab_size: int | None = None,
        model_length: int | None = None,
        hidden_dim: int | None = None,
        cond_dim: int | None = None,
        n_blocks: int | None = None,
        n_heads: int | None = None,
        dropout: float = 0.1,
        time_conditioning: bool = False,
        block_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("auto_map", None)  # names the code of the published repository, which is not used
        self.vocab_size = vocab_size
        self.model_length = model_length
        self.hidden_dim = hidden_dim
        self.cond_dim = cond_dim
        self.n_blocks = n_blocks
        self.n_heads = n_heads
        self.dropout = dropout
        self.time_conditioning = time_conditioning
        self.block_size = block_size
        super().__init__(**{"tie_word_embeddings": False, **kwargs})


class MDLMForMaskedLM(PreTrainedModel):
    """Opens MDLM checkpoints with `AutoModelForMaskedLM`, for tools that expect a model of transformers.

    It wraps an `MDLMTransformer`, its attribute `backbone`, and has no other weights. It saves them in the published
    layout, which `MDLMTransformer.from_pretrained` reads too. To generate text, use `MDLMPipeline`.

    Example:

        import hf_maskdiff
        model = AutoModelForMaskedLM.from_pretrained("kuleshov-group/mdlm-owt")  # no code of the repository is run
        pipe = MDLMPipeline(tokenizer, model.backbone, scheduler)

    Args:
        config (`MDLMConfig`): sizes.
        backbone (`MDLMTransformer`, *optional*): the module to wrap; a new one by default.
    """

    config_class = MDLMConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = MDLMTransformer._no_split_modules

    def __init__(self, config: MDLMConfig, backbone: MDLMTransformer | None = None) -> None:
        super().__init__(config)
        settings = {name: getattr(config, name) for name in _SETTINGS}
        missing = [name for name, value in settings.items() if value is None and name not in _OPTIONAL]
        if missing:
            raise ValueError(f"`config.json` of an MDLM must name its sizes, {missing} are not there. Add them.")
        self.backbone = MDLMTransformer(**settings) if backbone is None else backbone
        self.post_init()

    @classmethod
    def from_transformer(cls, transformer: MDLMTransformer) -> MDLMForMaskedLM:
        """Wrap a module without a copy: `MDLMForMaskedLM.from_transformer(pipe.transformer).push_to_hub("me/mdlm")`."""
        return cls(MDLMConfig(**{name: transformer.config[name] for name in _SETTINGS}), transformer)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As for every `PreTrainedModel`, but missing or unexpected weights are an error: there is no head to train.

        Raises:
            ValueError: missing, unexpected or misshapen weights, with their names; sizes that no weight has.
        """
        if pretrained_model_name_or_path is not None:
            check_folder(Path(pretrained_model_name_or_path, kwargs.get("subfolder") or ""))
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
        )
        wrong = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
        if wrong:
            raise ValueError(
                f"The weights in {str(pretrained_model_name_or_path)!r} must fit its config.json, got {wrong}. Take "
                "both from one model."
            )
        return (model, info) if output_loading_info else model

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.vocab_embed

    def _init_weights(self, module: nn.Module) -> None:
        """Does nothing: the backbone has already initialised its weights."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput | tuple[Tensor, ...]:
        """Logits of every position.

        Args:
            input_ids: int64 `(batch_size, sequence_length)`; the mask is `vocab_size - 1`.
            attention_mask: `(batch_size, sequence_length)`, 0 or False for padding.
            timestep: t in [0, 1], `(batch_size,)`; used only by a model with `time_conditioning`.
            labels: int64 like `input_ids`, -100 at positions without a loss. If given, the output's `loss` is the mean
                cross-entropy.
            token_type_ids: ignored; accepted because many tokenizers return them.
            return_dict: False for a tuple.

        Returns:
            `MaskedLMOutput` with `logits` `(batch_size, sequence_length, vocab_size)`.
        """
        real = None if attention_mask is None else attention_mask.bool()
        logits = self.backbone(input_ids, timestep, attention_mask=real, return_dict=False)[0]
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return MaskedLMOutput(loss=loss, logits=logits)


AutoConfig.register(MDLMConfig.model_type, MDLMConfig, exist_ok=True)
AutoModelForMaskedLM.register(MDLMConfig, MDLMForMaskedLM, exist_ok=True)
