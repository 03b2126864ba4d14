"""A model left in training would drop values at random in every pass, and nothing in its texts or images would tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny_text_to_image
import torch
from test_pipeline_mdlm import LENGTH, MASK_ID, character_tokenizer
from tiny_weights import draw_weights
from transformers import CLIPTextConfig, CLIPTextModel

from hf_maskdiff import (
    MaskedDiffusionTextToImagePipeline,
    MaskGITPipeline,
    MaskGITTransformer2DModel,
    MDLMPipeline,
    MDLMTransformer,
    MomentScheduler,
)


def text_pipeline(dropout: float) -> MDLMPipeline:
    torch.manual_seed(0)
    model = MDLMTransformer(29, LENGTH, hidden_dim=16, cond_dim=8, n_blocks=2, n_heads=2, dropout=dropout)
    draw_weights(model)
    scheduler = MomentScheduler(mask_token_id=MASK_ID, codebook_size=MASK_ID, masking_schedule="linear")
    return MDLMPipeline(character_tokenizer(), model, scheduler)


def image_pipeline(dropout: float) -> MaskGITPipeline:
    sizes = {"num_classes": 3, "codebook_size": 16, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = MaskGITTransformer2DModel(sample_size=4, intermediate_size=16, dropout=dropout, **sizes)
    draw_weights(model)
    scheduler = MomentScheduler(mask_token_id=16, codebook_size=16)
    return MaskGITPipeline(tiny_text_to_image.vqvae(), model, scheduler)


def prompted_pipeline(dropout: float) -> MaskedDiffusionTextToImagePipeline:
    pipe = tiny_text_to_image.pipeline(hidden_dropout=dropout, attention_dropout=dropout)
    pipe.transformer.train()
    return pipe


def of_text(pipe: Any) -> torch.Tensor:
    return pipe("abc", num_inference_steps=3, output_type="ids", generator=torch.Generator().manual_seed(0)).sequences[
        0
    ]


def of_image(pipe: Any) -> torch.Tensor:
    given = {"num_inference_steps": 3, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    return pipe([1], **given).images


def of_prompt(pipe: Any) -> torch.Tensor:
    given = tiny_text_to_image.prompts(pipe, 0) | {"num_inference_steps": 3, "output_type": "latent"}
    return pipe(**given, generator=torch.Generator().manual_seed(0)).images


def likelihood(pipe: Any) -> torch.Tensor:
    given = {"num_samples": 16, "generator": torch.Generator().manual_seed(0)}
    return torch.as_tensor(pipe.log_likelihood(["abc"], ["de"], **given).log_likelihoods)


KINDS = [
    (text_pipeline, of_text),
    (text_pipeline, likelihood),
    (image_pipeline, of_image),
    (prompted_pipeline, of_prompt),
]


@pytest.mark.parametrize(("make", "run"), KINDS, ids=["text", "likelihood", "image", "text to image"])
def test_it_is_refused_and_evaluation_or_no_dropout_is_not(
    make: Callable[[float], Any], run: Callable[[Any], torch.Tensor]
) -> None:
    pipe = make(0.5)
    with pytest.raises(ValueError, match=r"`transformer` must be in evaluation mode, got a .*pipe\.transformer\.eval"):
        run(pipe)
    pipe.transformer.eval()
    expected = run(pipe)
    part = next(part for part in pipe.transformer.modules() if isinstance(part, torch.nn.Dropout))
    part.train()  # as an adapter that was put in later
    with pytest.raises(ValueError, match="must be in evaluation mode"):
        run(pipe)
    assert torch.equal(run(make(0.0)), expected)


def test_a_text_encoder_is_asked_too() -> None:
    pipe = tiny_text_to_image.pipeline()
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "projection_dim": 6,
    }
    pipe.text_encoder = CLIPTextModel(CLIPTextConfig(attention_dropout=0.5, **sizes))
    pipe.text_encoder.train()
    with pytest.raises(ValueError, match="`text_encoder` must be in evaluation mode, got a CLIPTextModel"):
        of_prompt(pipe)
    pipe.text_encoder.eval()
    of_prompt(pipe)
