"""Text of MDLM's models."""

from __future__ import annotations

import os
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..hub_access import stop_out_of_reach
from ..models import MDLMTransformer
from ..models.transformer_mdlm import PUBLISHED_TYPES
from ..published import check_ids, open_tokenizer
from ..published.malformed import settings_of
from ..published.sdtt import is_sdtt
from ..schedulers import AncestralScheduler
from .pipeline_masked_diffusion_text import _LOCATION, MaskedDiffusionTextPipeline
from .published_pipelines import PUBLISHED_TOKENIZER


class MDLMPipeline(MaskedDiffusionTextPipeline):
    r"""Writes, continues and fills in text with MDLM's models (arXiv 2406.07524), as published or trained here.

    It is a `MaskedDiffusionTextPipeline` whose model is an `MDLMTransformer`, with the last row as its mask; without
    `max_new_tokens` it fills the model's length.

    Example:

        from hf_maskdiff import MDLMPipeline

        pipe = MDLMPipeline.from_pretrained("pipelines/mdlm-shakespeare")
        text = pipe("ROMEO:", num_inference_steps=32).texts[0]
        pipe(["JULIET:", "First Citizen:"], num_return_sequences=2).texts  # four texts
        pipe("To be, or [MASK:12] question.").texts  # infilling: twelve tokens
        pipe("KING", max_new_tokens=500, stride=32).texts  # longer than the model, by sliding blocks

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): its ids are rows of the transformer.
        transformer ([`MDLMTransformer`]): the denoiser, token ids to logits; its last row is the mask.
        scheduler ([`MaskedDiffusionScheduler`]): which positions are revealed when, and at what temperature.
        shift_logits, eos_token_ids: see `MaskedDiffusionTextPipeline`.
    """

    card_tags = ("mdlm",)
    card_example = 'print(pipe("ROMEO:", num_inference_steps=32).texts[0])'
    default_max_new_tokens = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> MDLMPipeline:
        """As `DiffusionPipeline.from_pretrained`; opens the repositories of MDLM's authors too.

        Those (kuleshov-group/mdlm-owt), and SDTT's (jdeschena/sdtt, a `revision` for each model), hold a model and no
        tokenizer: it is `openai-community/gpt2` unless `tokenizer` is given, an object or a name. The scheduler is
        their own, `AncestralScheduler`, unless `scheduler` is given.
        """
        location = {name: kwargs[name] for name in _LOCATION if kwargs.get(name) is not None}
        where = repr(str(pretrained_model_name_or_path))
        try:
            settings_of(
                f"model_index.json in {where}", lambda: cls.load_config(pretrained_model_name_or_path, **location)
            )
        except OSError as error:  # no pipeline
            stop_out_of_reach(error, pretrained_model_name_or_path, location.get("cache_dir"))
            try:
                config = settings_of(
                    f"config.json in {where}",
                    lambda: MDLMTransformer.load_config(pretrained_model_name_or_path, **location),
                )
            except OSError:
                raise error from None
            if config.get("model_type") not in PUBLISHED_TYPES and not is_sdtt(config):
                raise
        else:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

        kwargs.pop("trust_remote_code", None)  # nothing there is code
        tokenizer = kwargs.pop("tokenizer", PUBLISHED_TOKENIZER)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            tokenizer = open_tokenizer(tokenizer)
        scheduler = kwargs.pop("scheduler", None)
        transformer = kwargs.pop("transformer", None)
        if transformer is None:
            transformer = MDLMTransformer.from_pretrained(pretrained_model_name_or_path, **kwargs)
        check_ids(tokenizer, transformer.config.vocab_size)
        if scheduler is None:
            mask_token_id = transformer.config.vocab_size - 1
            scheduler = AncestralScheduler(mask_token_id=mask_token_id, codebook_size=mask_token_id)
        return cls(tokenizer, transformer, scheduler)

    def transformers_config(self) -> dict[str, Any]:
        """`config.json` of the model, by which `AutoModelForMaskedLM` opens the repository too."""
        settings = {name: value for name, value in self.transformer.config.items() if not name.startswith("_")}
        weights = "transformer/diffusion_pytorch_model.safetensors"
        return {**settings, "model_type": "mdlm", "transformers_weights": weights}
