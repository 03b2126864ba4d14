"""A model left in training would drop values at random in every pass, and nothing in its texts or images would tell."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import tiny_text_to_image
import torch
from test_pipeline_mdlm import LENGTH, MASK_ID, character_tokenizer
from tiny_weights import draw_weights
from transformers import CLIPTextConfig, CLIPTextModel, PretrainedConfig

from hf_maskdiff import (
    MaskedDiffusionTextToImagePipeline,
    MaskGITPipeline,
    MaskGITTransformer2DModel,
    MDLMPipeline,
    MDLMTransformer,
    MomentScheduler,
)
from hf_maskdiff.pipelines.checks import check_no_dropout


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


class Layer(torch.nn.Module):
    """A layer that only holds a probability, as those do that hand it to a function."""

    def __init__(self, name: str, value: Any) -> None:
        super().__init__()
        setattr(self, name, value)


class DropPath(Layer):
    pass


HELD: list[tuple[torch.nn.Module, str]] = [
    *(
        (Layer(name, 0.1), name)
        for name in ("dropout", "activation_dropout", "dropout_prob", "resid_pdrop", "layerdrop")
    ),
    (Layer("config", PretrainedConfig(hidden_dropout=0.1)), "config.hidden_dropout"),
    (Layer("config", PretrainedConfig(attention_probs_dropout_prob=0.1)), "config.attention_probs_dropout_prob"),
    (DropPath("p", 0.1), "p"),
    (torch.nn.AlphaDropout(0.1), "p"),
]


@pytest.mark.parametrize(("layer", "rate"), HELD, ids=lambda value: value if isinstance(value, str) else "")
def test_a_probability_is_found_under_any_name(layer: torch.nn.Module, rate: str) -> None:
    model = torch.nn.Sequential(layer)
    with pytest.raises(ValueError, match=rf"a Sequential whose `0\.{re.escape(rate)}` drops.*pipe\.transformer\.eval"):
        check_no_dropout({"transformer": model})
    check_no_dropout({"transformer": model.eval()})


@pytest.mark.parametrize(
    "layer",
    [
        Layer("dropout", 0.0),
        Layer("p", 0.9),  # of a layer that does other things
        Layer("token_dropout", True),  # ESM's scaling of its input, which is not random
        Layer("config", PretrainedConfig(hidden_dropout_prob=0.0, classifier_dropout=0.1, summary_first_dropout=0.1)),
    ],
    ids=["no dropout", "another p", "a switch", "a head's"],
)
def test_a_layer_that_drops_nothing_may_stay_in_training(layer: torch.nn.Module) -> None:
    check_no_dropout({"transformer": torch.nn.Sequential(layer), "scheduler": None})
