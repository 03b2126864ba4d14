"""What holds for every scheduler, batch of prompts and hostile model: a text is its own row's, and is all text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_weights import draw_weights
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from hf_maskdiff import MaskedDiffusionScheduler, MDLMPipeline, MDLMTransformer, MomentScheduler

LETTERS = "abcdefghij"
LENGTH, ROWS = 8, 14  # ids 10 to 12 are no letters, 13 is the mask
PROMPTS = st.lists(
    st.sampled_from(["a", "bcd", "hgfedc", "[MASK]b", "a[MASK:2]c[MASK]d", "[MASK:6]"]), min_size=1, max_size=4
)


def make_pipeline(scheduler_class: type[MaskedDiffusionScheduler]) -> MDLMPipeline:
    torch.manual_seed(0)
    model = MDLMTransformer(ROWS, LENGTH, hidden_dim=16, cond_dim=8, n_blocks=2, n_heads=2).eval()
    draw_weights(model)
    # It would write nothing but the mask, and else no letter.
    model.output_layer.linear.bias.data[len(LETTERS) :] = torch.tensor([50.0, 60.0, 70.0, 80.0])
    letters = Tokenizer(BPE({letter: i for i, letter in enumerate(LETTERS)}, merges=[]))
    letters.decoder = decoders.Fuse()
    scheduler = scheduler_class(mask_token_id=ROWS - 1, codebook_size=len(LETTERS), masking_schedule="linear")
    # In float64, so that the rounding of a matrix product, which depends on the batch, decides nothing.
    pipe = MDLMPipeline(PreTrainedTokenizerFast(tokenizer_object=letters), model.double(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@settings(max_examples=10)
@given(prompts=PROMPTS, steps=st.integers(1, 9), new=st.none() | st.integers(1, 30), first_seed=st.integers(0, 99))
def check_batch(pipe: MDLMPipeline, prompts: list[str], steps: int, new: int | None, first_seed: int) -> None:
    """`new` tokens after each prompt, in blocks that slide by 3; or what fills the model."""
    call = {"num_inference_steps": steps, "max_new_tokens": new, "stride": None if new is None else 3}

    def generators(first: int, count: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(first + i) for i in range(count)]

    together = pipe(prompts, generator=generators(first_seed, len(prompts)), **call)
    for i, prompt in enumerate(prompts):
        alone = pipe(prompt, generator=generators(first_seed + i, 1), **call)
        assert alone.texts == [together.texts[i]]
        assert alone.num_model_passes == [together.num_model_passes[i]]
        ids, given_ids = together.sequences[i], pipe.encode_prompt(prompt)
        assert ((ids >= 0) & (ids < len(LETTERS))).all()
        known = given_ids != ROWS - 1
        assert torch.equal(ids[: len(given_ids)][known], given_ids[known])
        fills_in = not bool(known.all())
        expected = len(given_ids) + (new or 0) if fills_in or new is not None else LENGTH
        assert len(ids) == len(together.texts[i]) == expected


def test_a_text_is_its_own_and_is_all_text(scheduler_class: type[MaskedDiffusionScheduler]) -> None:
    check_batch(make_pipeline(scheduler_class))


SPANS = ["[MASK", "[MASK:]", "[MASK:-1]", "[MASK: 3]", "[MASK:3", "[MASK:1.5]", "[MASK3]", "[MASK:1000000000000]"]


@pytest.mark.parametrize("span", SPANS)
def test_mask_spans_that_do_not_parse(span: str) -> None:
    pipe = make_pipeline(MomentScheduler)
    with pytest.raises(ValueError, match=r"a mask span must read \[MASK\] or \[MASK:n\], n from 1 to 999999, got"):
        pipe(["a", f"b{span} c"])


@pytest.mark.parametrize("prompt", [5, [], ["a", None], {"text": "a"}, b"a"])
def test_what_is_no_prompt(prompt: object) -> None:
    with pytest.raises(ValueError, match="`prompt` must be a string or a list of them, or a chat"):
        make_pipeline(MomentScheduler)(prompt)


@pytest.mark.parametrize("prompt", ["", ["a", ""]])
def test_prompts_without_a_token(prompt: str | list[str]) -> None:
    with pytest.raises(ValueError, match="`prompt` must hold at least one token, got ''"):
        make_pipeline(MomentScheduler)(prompt)
