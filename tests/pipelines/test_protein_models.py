"""Protein language models through the text pipeline: a tiny ESM-2, whose chains stand between `<cls>` and `<eos>`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_esm2 import CLS, EOS, MASK, TOKENS, write_esm2

from hf_maskdiff import MaskedDiffusionTextPipeline, MomentScheduler
from hf_maskdiff.evaluation.pseudo_likelihood import pseudo_log_likelihood


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_esm2(tmp_path_factory.mktemp("esm2"))


@pytest.fixture
def pipe(folder: Path) -> MaskedDiffusionTextPipeline:
    pipe = MaskedDiffusionTextPipeline.from_pretrained(folder)
    pipe.scheduler = MomentScheduler.from_config(pipe.scheduler.config, choice_temperature=6.0)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_chain_is_filled_in_between_special_tokens(pipe: MaskedDiffusionTextPipeline) -> None:
    output = pipe("EVQ[MASK:4]LV", num_inference_steps=2, num_return_sequences=3)
    known = pipe.tokenizer("EVQ").input_ids[:-1]
    assert known[0] == CLS
    for ids, text in zip(output.sequences, output.texts, strict=True):
        assert ids.tolist()[:4] == known
        assert ids.tolist()[-3:] == [TOKENS.index("L"), TOKENS.index("V"), EOS]
        assert len(ids) == 11
        assert text.replace(" ", "")[:3] + text.replace(" ", "")[-2:] == "EVQLV"
        assert len(text.replace(" ", "")) == 9


def test_what_the_model_sees_includes_special_tokens(
    pipe: MaskedDiffusionTextPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda model, args, kwargs: seen.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    pipe("[MASK:5]", num_inference_steps=1)
    hook.remove()
    assert seen[-1].tolist() == [[CLS, *[MASK] * 5, EOS]]


def test_chains_from_nothing_need_the_special_tokens(pipe: MaskedDiffusionTextPipeline) -> None:
    """ESM divides by the share of tokens that are not masked: with no special token around them that is nothing."""
    masks = torch.full((1, 5), MASK)
    with torch.no_grad():
        assert pipe.denoiser(masks).isnan().any()
        around = torch.nn.functional.pad(masks, (1, 1), value=EOS)
        assert pipe.denoiser(around).isfinite().all()
    for arguments in ({"prompt": "[MASK:12]"}, {"max_new_tokens": 12}):
        (text,) = pipe(**arguments, num_inference_steps=4).texts
        assert len(text.replace(" ", "")) == 12
        assert set(text.replace(" ", "")) <= set("ACDEFGHIKLMNPQRSTVWY")


def test_chains_of_two_lengths_in_a_batch(pipe: MaskedDiffusionTextPipeline) -> None:
    prompts = ["EVQ[MASK:4]LV", "M[MASK:9]KKLE"]
    together = pipe(prompts, num_inference_steps=3, generator=[torch.Generator().manual_seed(i) for i in range(2)])
    for i, prompt in enumerate(prompts):
        alone = pipe(prompt, num_inference_steps=3, generator=[torch.Generator().manual_seed(i)])
        assert torch.equal(alone.sequences[0], together.sequences[i])


def test_pseudo_likelihood_is_the_model_s(pipe: MaskedDiffusionTextPipeline) -> None:
    ids = pipe.tokenizer("EVQLVESGG", return_tensors="pt").input_ids
    ours = pseudo_log_likelihood(pipe.denoiser, ids, torch.arange(1, 10), MASK)
    for i in range(1, 10):
        masked = ids.clone()
        masked[0, i] = MASK
        with torch.no_grad():
            logits = pipe.transformer(input_ids=masked, attention_mask=torch.ones_like(masked)).logits[0, i, :MASK]
        expected = logits.log_softmax(-1)[ids[0, i]]
        torch.testing.assert_close(ours[0, i - 1], expected, atol=1e-5, rtol=0)
