"""Protein language models through the text pipeline: a tiny ESM-2, whose chains stand between `<cls>` and `<eos>`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import EsmConfig, EsmForMaskedLM, EsmTokenizer

from hf_maskdiff import MaskedDiffusionTextPipeline, MomentScheduler
from hf_maskdiff.evaluation.pseudo_likelihood import pseudo_log_likelihood

# The vocabulary of the released ESM-2 models.
TOKENS = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
CLS, EOS, MASK = 0, 2, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as those of the released models: vocabulary, configuration, weights."""
    folder = tmp_path_factory.mktemp("esm2")
    (folder / "vocab.txt").write_text("\n".join(TOKENS))
    EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=len(TOKENS),
        mask_token_id=MASK,
        pad_token_id=1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=1026,
        position_embedding_type="rotary",
        token_dropout=True,
        emb_layer_norm_before=False,
    )
    model = EsmForMaskedLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.lm_head.bias.data[[0, 1, 2, 3, *range(24, 32)]] = -50  # what is no residue, the released models do not expect
    model.save_pretrained(folder)
    return folder


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
