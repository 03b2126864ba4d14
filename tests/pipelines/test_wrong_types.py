"""Every argument of every pipeline, given what it cannot be: one `ValueError` at the door, before any model call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

import numpy as np
import pytest
import tiny_audio
import tiny_text_to_image
import torch
from test_transformers_tasks import pipe, tokenizer  # noqa: F401

from hf_maskdiff import MaskGITPipeline, MDLMPipeline

NAN = float("nan")
# Of no argument but `return_dict`, of which Python asks whether it is true.
NEVER = [NAN, -1, 2.5j, b"x", object(), {"a": 1}, [None], ["x", 3], [NAN, NAN], (1, -2, 3, 4, 5, 6), lambda: None]
NEVER += [torch.tensor(NAN), torch.tensor([1.0, NAN]), torch.full((1, 4, 4), NAN), np.array(["x"]), np.array("x")]
NEVER += [
    np.array([1.5, 2.5]),
    torch.full((2, 3, 5, 7), 2.0),
    torch.Generator,
    [torch.Generator()] * 5,
    np.float64("inf"),
]
# Which of these some arguments may be.
ALLOWED = {"callback_on_step_end": (10, 18), "prompts": (6,), "micro_conditioning_aesthetic_score": (1,)}
NO_NUMBERS = ("guidance_scale", "strength", "audio_length_in_s", "chunk_length_s", "chunk_overlap_s", "temperature")
NO_NUMBERS += ("sampling_temperature", "repetition_penalty", "micro_conditioning_aesthetic_score", "generator")


def wrong(name: str) -> Iterator[Any]:
    yield from (value for i, value in enumerate(NEVER) if i not in ALLOWED.get(name, ()))
    if name in NO_NUMBERS:
        yield from (True, "3", "", float("inf"))
    if name in ("callback_on_step_end_tensor_inputs", "bad_words_ids"):
        yield from (True, "", 0)
    if name in ("stop_at_eos", "mask_counts"):
        yield from ("", 0, [], "no")


def refuse(call: Callable[..., object], given: dict[str, Any], names: Any) -> None:
    for name in names:
        for value in wrong(name):
            assert "must" in said(call, given | {name: value}), (name, value)


def said(call: Callable[..., object], given: dict[str, Any]) -> str:
    """The message of the error; of another type it says which, and of none that it was accepted."""
    try:
        call(**given)
    except ValueError as error:
        return str(error)
    except Exception as error:
        return repr(error)
    return "accepted"


def arguments(call: Callable[..., object]) -> list[str]:
    return [name for name in signature(call).parameters if name != "return_dict"]


def without_passes(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def forward(*_: object, **__: object) -> None:
        raise AssertionError("the model was called")

    monkeypatch.setattr(pipeline.transformer, "forward", forward)
    return pipeline


def test_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    play = without_passes(tiny_audio.pipeline(), monkeypatch)
    clip = {"audio": tiny_audio.clips(), "sampling_rate": tiny_audio.RATE}
    names = set(arguments(play.__call__))
    of_clips = {"audio", "sampling_rate", "keep", "codes"}
    refuse(play, {"audio_length_in_s": 1.2}, sorted(names - of_clips))
    refuse(play, clip | {"keep": torch.ones(1, 12, dtype=torch.bool)}, ["audio", "sampling_rate", "keep"])
    refuse(play, {"codes": torch.full((1, 4, 12), tiny_audio.MASK)}, ["codes", "keep"])
    refuse(play.encode_audio, clip, arguments(play.encode_audio))
    refuse(play.decode_codes, {"codes": torch.zeros(1, 4, 12, dtype=torch.int64)}, arguments(play.decode_codes))
    for value in (torch.zeros(0), torch.zeros(1, 1, 0)):
        with pytest.raises(ValueError, match=r"`audio` must hold at least the 8 samples of a frame, got 0"):
            play.encode_audio(value, tiny_audio.RATE)
    for codes in (torch.full((1, 4, 12), 17), torch.zeros(1, 5, 12, dtype=torch.int64)):
        with pytest.raises(ValueError, match="`codes` must"):
            play.decode_codes(codes)
    assert play.decode_codes(torch.zeros(1, 1, 12, dtype=torch.int64)).shape == (1, 1, 96)


def test_text_to_image(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = without_passes(tiny_text_to_image.pipeline(), monkeypatch)
    prompt = tiny_text_to_image.prompts(draw, 1)
    refuse(draw, prompt, arguments(draw.__call__))
    refuse(draw.encode_prompt, {}, ["prompt"])
    for name, value in prompt.items():
        shape = rf"\(num_prompts, (num_tokens, )?{value.shape[-1]}\)"
        with pytest.raises(ValueError, match=f"`{name}` must be a floating-point tensor {shape}, got torch.float32"):
            draw(**prompt | {name: value[..., 1:]})


def test_images(make_pipeline: Callable[..., MaskGITPipeline], monkeypatch: pytest.MonkeyPatch) -> None:
    draw = without_passes(make_pipeline(), monkeypatch)
    refuse(draw, {"class_labels": 1}, arguments(draw.__call__))


def test_texts(pipe: MDLMPipeline, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    without_passes(pipe, monkeypatch)
    refuse(pipe, {"prompt": "ab"}, arguments(pipe.__call__))
    refuse(pipe.log_likelihood, {"prompts": "ab", "continuations": "ba"}, arguments(pipe.log_likelihood))
