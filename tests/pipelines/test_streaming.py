"""Text that is shown while it is written: in reading order, or all of it in every step."""

from __future__ import annotations

import queue
from threading import Thread
from typing import Any

import pytest
import torch
from test_masked_diffusion_text import CHAT, EOS, MASK, make_pipeline, seeds
from transformers import TextIteratorStreamer, TextStreamer, pipeline
from transformers.generation.streamers import BaseStreamer

from hf_maskdiff import (
    CanvasIteratorStreamer,
    CanvasStreamer,
    EditingScheduler,
    MaskedDiffusionTextPipeline,
    ReMDMScheduler,
)


class Recorder(BaseStreamer):
    """What a streamer is handed."""

    def __init__(self) -> None:
        self.given: list[list[int]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        assert value.device.type == "cpu"
        self.given.append(value.tolist())

    def end(self) -> None:
        self.ended += 1


class DraftRecorder(Recorder):
    """Also the whole text after each call."""

    def __init__(self) -> None:
        super().__init__()
        self.canvases: list[list[int]] = []

    def put_draft(self, value: torch.Tensor) -> None:
        self.canvases.append([token for part in self.given for token in part] + value.tolist())


@pytest.fixture(params=["llama", "modernbert"])
def pipe(request: pytest.FixtureRequest) -> MaskedDiffusionTextPipeline:
    return make_pipeline(request.param)


@pytest.mark.parametrize("block_length", [None, 3])
@pytest.mark.parametrize("prompt", ["w7 w8", "w7 [MASK:3] w8 [MASK:2]", "[MASK:4] w8", None, CHAT])
def test_a_streamer_gets_the_text_in_reading_order(
    pipe: MaskedDiffusionTextPipeline, prompt: Any, block_length: int | None
) -> None:
    call = {"num_inference_steps": 3, "block_length": block_length, "stop_at_eos": False}
    call |= {} if prompt is not None and "[MASK" in prompt else {"max_new_tokens": 8}
    plain = pipe(prompt, generator=seeds(0), **call)
    streamer = Recorder()
    streamed = pipe(prompt, generator=seeds(0), streamer=streamer, **call)
    assert torch.equal(plain.sequences[0], streamed.sequences[0])
    ids = plain.sequences[0].tolist()
    assert [token for part in streamer.given for token in part] == ids
    start = pipe.encode_prompt(prompt).tolist() if prompt is not None else []
    length = start.index(MASK) if MASK in start else len(start)
    assert streamer.given[0] == start[:length]  # the prompt first, also an empty one
    assert all(streamer.given[1:])
    assert streamer.ended == 1


def test_blocks_are_handed_over_before_the_text_is_finished() -> None:
    streamer, seen = Recorder(), []

    def note(pipe: Any, step: int, t: Any, given: dict) -> dict:
        seen.append(len(streamer.given))
        return {}

    pipe = make_pipeline()
    pipe(
        "w7", 2, 8, block_length=2, stop_at_eos=False, streamer=streamer, callback_on_step_end=note, generator=seeds(0)
    )
    assert len(seen) == 8
    assert all(later >= 1 + step // 2 for step, later in enumerate(seen))


@pytest.mark.parametrize("block_length", [None, 3])
@pytest.mark.parametrize("prompt", ["w7 w8", "w7 [MASK:4] w8 [MASK:3]"])
def test_what_may_still_be_taken_back_is_not_handed_over(prompt: str, block_length: int | None) -> None:
    pipe = make_pipeline()
    for scheduler in (
        ReMDMScheduler(MASK, remasking="rescale", eta=0.6),
        EditingScheduler(MASK, threshold=0.05, editing_threshold=0.05),
    ):
        pipe.scheduler, streamer, drafts = scheduler, Recorder(), DraftRecorder()
        call = {"num_inference_steps": 8, "block_length": block_length, "stop_at_eos": False}
        call |= {} if "[" in prompt else {"max_new_tokens": 8}
        made = pipe(prompt, generator=seeds(0), streamer=streamer, **call).sequences[0].tolist()
        assert [token for part in streamer.given for token in part] == made
        assert len(streamer.given) > (2 if block_length else 1)  # block by block
        pipe(prompt, generator=seeds(0), streamer=drafts, **call)
        assert [token for part in drafts.given for token in part] == made
        assert any(MASK in canvas for canvas in drafts.canvases)


@pytest.mark.parametrize("stop_at_eos", [True, False])
def test_nothing_behind_an_end_of_text_is_handed_over(stop_at_eos: bool) -> None:
    def write_an_end(pipe: Any, step: int, t: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        ids = given["sequences"].clone()
        ids[:, 3] = EOS
        return {"sequences": ids}

    streamer = DraftRecorder()
    pipe = make_pipeline()
    call = {"max_new_tokens": 6, "num_inference_steps": 6, "callback_on_step_end": write_an_end}
    made = pipe("w7 w8", streamer=streamer, stop_at_eos=stop_at_eos, generator=seeds(0), **call).sequences[0].tolist()
    assert [token for part in streamer.given for token in part] == made
    assert len(made) == (4 if stop_at_eos else 8)


def test_what_a_callback_writes_is_handed_over() -> None:
    def write(pipe: Any, step: int, t: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        ids = given["sequences"].clone()
        ids[:, 2:] = 12
        return {"sequences": ids}

    streamer = Recorder()
    make_pipeline()("w7 w8", 1, 4, streamer=streamer, callback_on_step_end=write, generator=seeds(0))
    assert streamer.given == [[7, 8], [12] * 4]


def test_a_draft_is_the_sequence_as_it_stands() -> None:
    stands = []

    def note(pipe: Any, step: int, t: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        stands.append(given["sequences"][0].tolist())
        return {}

    streamer = DraftRecorder()
    pipe = make_pipeline()
    pipe("w7 [MASK:6] w8", 4, streamer=streamer, callback_on_step_end=note, generator=seeds(0))
    assert streamer.canvases[0] == [7, *[MASK] * 6, 8]
    unfinished = [ids for ids in stands if MASK in ids]
    assert len(unfinished) == 3
    assert streamer.canvases[1:] == unfinished


def test_transformers_own_streamers(capsys: pytest.CaptureFixture) -> None:
    pipe = make_pipeline()
    call = {"max_new_tokens": 6, "num_inference_steps": 3, "block_length": 2, "stop_at_eos": False}
    answer = pipe(CHAT, generator=seeds(0), **call).texts[0]
    streamer = TextIteratorStreamer(pipe.tokenizer, skip_prompt=True, timeout=60, skip_special_tokens=True)
    thread = Thread(target=pipe, args=(CHAT,), kwargs={"streamer": streamer, "generator": seeds(0), **call})
    thread.start()
    assert "".join(streamer) == answer
    thread.join()
    task = pipeline("masked-diffusion-text-generation", model=pipe)
    capsys.readouterr()
    printing = TextStreamer(pipe.tokenizer, skip_prompt=True, skip_special_tokens=True)
    made = task(CHAT, streamer=printing, generator=seeds(0), **call)
    assert capsys.readouterr().out.strip() == answer.strip() == made[0]["generated_text"][-1]["content"].strip()


def test_a_canvas_shows_all_of_the_text_in_every_step() -> None:
    pipe = make_pipeline()
    streamer = CanvasIteratorStreamer(pipe.tokenizer, pipe.mask_token_id, timeout=60)
    for _ in range(2):  # a streamer serves one call after another
        call = {"streamer": streamer, "generator": seeds(0), "num_inference_steps": 4}
        thread = Thread(target=pipe, args=("w7 [MASK:6] w8",), kwargs=call)
        thread.start()
        texts = list(streamer)
        thread.join()
        assert texts[0] == "w7______w8"
        assert [text.count("_") for text in texts] == sorted((text.count("_") for text in texts), reverse=True)
        assert len(texts) == 5
        assert texts[-1] == pipe("w7 [MASK:6] w8", 4, generator=seeds(0)).texts[0]
    answers = CanvasIteratorStreamer(pipe.tokenizer, pipe.mask_token_id, skip_prompt=True, mask_text="?")
    pipe(CHAT, 4, 8, streamer=answers, stop_at_eos=False)
    assert next(answers) == "?" * 8


def test_a_canvas_is_printed_over_the_last(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "8")
    streamer = CanvasStreamer(make_pipeline().tokenizer, MASK)
    streamer.on_canvas("short\n0123456789")
    assert capsys.readouterr().out == "short\n0123456789\n"
    streamer.on_canvas("next")
    assert capsys.readouterr().out == "\033[3F\033[Jnext\n"  # the second line was broken in two


def test_a_reader_does_not_wait_for_a_call_that_failed() -> None:
    pipe = make_pipeline()
    streamer = TextIteratorStreamer(pipe.tokenizer, timeout=60)
    with pytest.raises(ValueError, match="max_new_tokens"):
        pipe("w7", max_new_tokens=0, streamer=streamer)
    assert list(streamer) == [""]
    canvas = CanvasIteratorStreamer(pipe.tokenizer, MASK, timeout=0.01)
    with pytest.raises(ValueError, match="max_new_tokens"):
        pipe("w7", max_new_tokens=0, streamer=canvas)
    assert list(canvas) == []
    with pytest.raises(queue.Empty):
        next(canvas)


def test_what_cannot_be_streamed_is_refused() -> None:
    pipe = make_pipeline()
    with pytest.raises(ValueError, match="`streamer` must have `put` and `end`, got str"):
        pipe("w7", streamer="text")
    for prompt, num in ((["w7", "w8"], 1), ("w7", 2)):
        with pytest.raises(ValueError, match="shows one text, got 2 texts"):
            pipe(prompt, num_return_sequences=num, streamer=Recorder())
