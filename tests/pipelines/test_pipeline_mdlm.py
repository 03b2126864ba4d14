"""The text pipeline: prompts, infilling, long texts, batches, model passes, and clear errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_weights import draw_weights
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from hf_maskdiff import (
    AncestralScheduler,
    EntropyBoundedScheduler,
    FirstHittingScheduler,
    HybridScheduler,
    MaskGITScheduler,
    MDLMPipeline,
    MDLMTransformer,
    MomentScheduler,
)

CHARACTERS = " abcdefghijklmnopqrstuvwxyz"
LENGTH, MASK_ID, EOS_ID = 16, 28, 27


def character_tokenizer(characters: str = CHARACTERS) -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate([*characters, "<eos>"])}
    tokenizer = Tokenizer(BPE(vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", clean_up_tokenization_spaces=False)


@pytest.fixture
def pipe() -> MDLMPipeline:
    torch.manual_seed(0)
    transformer = MDLMTransformer(29, LENGTH, hidden_dim=16, cond_dim=8, n_blocks=2, n_heads=2)
    draw_weights(transformer)
    scheduler = MomentScheduler(mask_token_id=MASK_ID, codebook_size=MASK_ID, masking_schedule="linear")
    pipe = MDLMPipeline(character_tokenizer(), transformer.eval(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(n) for n in numbers]


def test_a_prompt_is_continued_and_an_unconditional_text_fills_the_model(pipe: MDLMPipeline) -> None:
    output = pipe(["hello", "a"], num_inference_steps=4, generator=seeds(0, 1))
    assert [text[:n] for text, n in zip(output.texts, (5, 1), strict=True)] == ["hello", "a"]
    assert [len(ids) for ids in output.sequences] == [LENGTH, LENGTH]
    assert output.num_model_passes == [4, 4]
    free = pipe(num_inference_steps=4, num_return_sequences=3)
    assert len(free.texts) == 3
    assert not any((ids == MASK_ID).any() for ids in free.sequences)
    short = pipe("abc", max_new_tokens=2, num_inference_steps=8, output_type="ids")
    assert len(short.sequences[0]) == 5
    assert short.texts is None
    assert short.num_model_passes == [2]  # two positions, one a pass


def test_mask_spans_and_fixed_ids_are_filled_in_and_nothing_else_changes(pipe: MDLMPipeline) -> None:
    text = pipe("ab[MASK:3]cd[MASK]", num_inference_steps=2).texts[0]
    assert (text[:2], text[5:7]) == ("ab", "cd")
    ids = torch.arange(12).view(2, 6)
    mask = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    output = pipe(input_ids=ids, mask=mask, num_inference_steps=2)
    after = torch.stack(output.sequences)
    assert torch.equal(after[~mask], ids[~mask])
    assert (after != MASK_ID).all()
    assert torch.equal(ids, torch.arange(12).view(2, 6))  # the caller's own


@pytest.mark.parametrize(
    "scheduler_class",
    [MomentScheduler, HybridScheduler, MaskGITScheduler, AncestralScheduler, FirstHittingScheduler,
     EntropyBoundedScheduler],
)  # fmt: skip
def test_a_text_is_the_same_alone_and_beside_others(pipe: MDLMPipeline, scheduler_class: type) -> None:
    pipe.scheduler = scheduler_class(mask_token_id=MASK_ID, codebook_size=MASK_ID, masking_schedule="linear")
    prompts = ["a", "some longer", "ab[MASK:4]cd"]
    together = pipe(prompts, num_inference_steps=5, generator=seeds(3, 4, 5))
    for i, prompt in enumerate(prompts):
        alone = pipe(prompt, num_inference_steps=5, generator=seeds(3 + i))
        assert alone.texts == [together.texts[i]]
        assert alone.num_model_passes == [together.num_model_passes[i]]
    assert not any((ids >= MASK_ID).any() for ids in together.sequences)


def test_skipped_model_calls_change_no_token(pipe: MDLMPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe.scheduler = AncestralScheduler(mask_token_id=MASK_ID, codebook_size=MASK_ID)
    saved = pipe(["a", "bc"], num_inference_steps=60, generator=seeds(0, 1))
    assert all(passes < 30 for passes in saved.num_model_passes)
    # A model that is told the time must be asked anew each time; told it is, but its answer is the same.
    forward = pipe.transformer.forward
    monkeypatch.setattr(pipe.transformer, "forward", lambda ids, t, **rest: forward(ids, None, **rest))
    pipe.transformer.register_to_config(time_conditioning=True)
    monkeypatch.setattr(pipe.transformer, "_noise_level", lambda t, n, device: torch.zeros(1))
    asked = pipe(["a", "bc"], num_inference_steps=60, generator=seeds(0, 1))
    assert asked.texts == saved.texts
    assert max(asked.num_model_passes) > 30


def test_first_hitting_takes_one_pass_for_each_position(pipe: MDLMPipeline) -> None:
    pipe.scheduler = FirstHittingScheduler(mask_token_id=MASK_ID)
    assert pipe("abcd", num_inference_steps=3).num_model_passes == [LENGTH - 4]


@pytest.mark.parametrize("call", [{}, {"guidance_scale": 2.0}, {"block_length": 5}])
def test_first_hitting_tells_each_row_its_own_time(pipe: MDLMPipeline, call: dict[str, Any]) -> None:
    """A row of n masks begins at time 1 and loses 1 / n in each pass, whatever the rows beside it."""
    torch.manual_seed(1)
    told = MDLMTransformer(29, LENGTH, hidden_dim=16, cond_dim=8, n_blocks=2, n_heads=2, time_conditioning=True)
    draw_weights(told)
    pipe.register_modules(transformer=told.eval())
    pipe.scheduler = FirstHittingScheduler(mask_token_id=MASK_ID)
    times = []
    told.register_forward_pre_hook(lambda _, inputs: times.append(inputs[1]))
    prompts, call = ["a", "some longer", "ab[MASK:4]cd"], {"num_inference_steps": 1, **call}
    together = pipe(prompts, generator=seeds(3, 4, 5), **call)
    for i, prompt in enumerate(prompts):
        alone = pipe(prompt, generator=seeds(3 + i), **call)
        assert alone.texts == [together.texts[i]]
    if call.keys() == {"num_inference_steps"}:
        assert [time.tolist() for time in times[-4:]] == [[1.0], [0.75], [0.5], [0.25]]


def test_longer_texts_are_written_block_by_block(pipe: MDLMPipeline) -> None:
    seen = []

    def callback(pipe, step, t, given):
        seen.append((step, given["sequences"].shape))
        return given

    output = pipe("ab", max_new_tokens=30, stride=8, num_inference_steps=2, callback_on_step_end=callback)
    assert len(output.sequences[0]) == 32
    assert output.texts[0].startswith("ab")
    assert output.num_model_passes == [6]  # 16, then twice 8 more
    assert [step for step, _ in seen] == list(range(6))
    assert {shape for _, shape in seen} == {(1, LENGTH)}
    long_prompt = "abcdefgh" * 3
    assert pipe(long_prompt, max_new_tokens=4, stride=8, num_inference_steps=2).texts[0].startswith(long_prompt)


def test_a_text_ends_with_its_end_token(pipe: MDLMPipeline) -> None:
    with torch.no_grad():
        pipe.transformer.output_layer.linear.bias[EOS_ID] = 1e4
    output = pipe(["abc", "abcd"], stop_at_eos=True, stride=8, max_new_tokens=100, num_inference_steps=2)
    assert [ids.tolist()[-1] for ids in output.sequences] == [EOS_ID, EOS_ID]
    assert [len(ids) for ids in output.sequences] == [4, 5]
    assert output.texts == ["abc", "abcd"]


def test_partial_texts_can_be_shown_and_a_run_be_stopped(pipe: MDLMPipeline) -> None:
    texts = []

    def callback(pipe, step, t, given):
        texts.extend(pipe.decode_sequences(given["sequences"]))
        pipe._interrupt = step == 1
        return given

    output = pipe("abc", num_inference_steps=6, callback_on_step_end=callback)
    assert len(texts) == 2
    assert texts[0].count("_") > texts[1].count("_") > 0
    assert output.texts == [texts[-1]]


def test_saved_and_loaded(pipe: MDLMPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    loaded = MDLMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    texts = [p("ab", num_inference_steps=3, generator=seeds(0)).texts for p in (loaded, pipe)]
    assert texts[0] == texts[1]


def test_the_layout_of_the_published_model_is_opened(golden_folder: Path) -> None:
    folder = golden_folder / "mdlm"
    size = json.loads((folder / "config.json").read_text())["vocab_size"] - 1  # without the mask
    pipe = MDLMPipeline.from_pretrained(folder, tokenizer=character_tokenizer(CHARACTERS[: size - 1]))
    assert isinstance(pipe.scheduler, AncestralScheduler)
    assert pipe.scheduler.config.mask_token_id == pipe.transformer.config.vocab_size - 1
    with pytest.raises(OSError, match="model_index"):
        MDLMPipeline.from_pretrained(folder.parent / "nothing")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ""}, "at least one token"),
        ({"prompt": []}, "a string or a list"),
        ({"prompt": "a" * 20}, "must fit the model's length 16"),
        ({"prompt": "a" * 16}, "leave room"),
        ({"prompt": "a[MASK:0]"}, "mask span must read"),
        ({"prompt": "a[MASK:x]b"}, "mask span must read"),
        ({"prompt": "a", "max_new_tokens": 0}, "max_new_tokens"),
        ({"prompt": "a", "stride": 17}, "at most the model's length"),
        ({"prompt": "a", "input_ids": torch.zeros(1, 3, dtype=torch.int64)}, "not both"),
        ({"prompt": "a", "mask": torch.ones(1, 3).bool()}, "must come with `input_ids`"),
        ({"input_ids": torch.full((1, 3), 29)}, "ids in 0 .. 28"),
        ({"input_ids": torch.zeros(3)}, "int64 of shape"),
        ({"input_ids": torch.zeros(1, 3, dtype=torch.int64), "mask": torch.ones(1, 2).bool()}, "`mask` must be bool"),
        ({"prompt": "a", "num_inference_steps": 0}, "num_inference_steps"),
        ({"prompt": "a", "num_return_sequences": 0}, "num_return_sequences"),
        ({"prompt": "a", "output_type": "pil"}, "output_type"),
        ({"prompt": "a", "generator": [torch.Generator()] * 2}, "one per row"),
    ],
)
def test_bad_input_gets_one_clear_error(pipe: MDLMPipeline, arguments: dict, message: str) -> None:
    def fail(*args, **kwargs):
        raise AssertionError("the model was called")

    pipe.transformer.forward = fail
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)


def test_parts_that_do_not_fit_are_refused(pipe: MDLMPipeline) -> None:
    pipe.scheduler = MomentScheduler(mask_token_id=5)
    with pytest.raises(ValueError, match="must be the model's, 28"):
        pipe("a")
    pipe.scheduler = MomentScheduler(mask_token_id=MASK_ID)
    pipe.tokenizer.add_tokens([f"<{i}>" for i in range(5)])
    with pytest.raises(ValueError, match="at most 29 tokens"):
        pipe("a")


def test_a_compiled_model_is_one_graph_in_all_steps(pipe: MDLMPipeline) -> None:
    """CUDA graphs need constant shapes: how many positions a step reads must not show in them."""
    torch.compiler.reset()
    graphs: list[Any] = []
    call: Any = {"num_inference_steps": 4, "num_return_sequences": 2, "output_type": "ids"}

    def ids() -> list[list[int]]:
        return [row.tolist() for row in pipe(**call, generator=torch.Generator().manual_seed(0)).sequences]

    expected = ids()
    pipe.transformer.compile(backend=lambda graph, _: graphs.append(graph) or graph.forward)  # type: ignore[func-returns-value]
    assert ids() == expected
    assert ids() == expected
    assert len(graphs) == 1
    torch.compiler.reset()
