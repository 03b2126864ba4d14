"""Runs of the page on the models of this repository: frame by frame, side by side, and beside other users'."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from hf_maskdiff import HaltonScheduler, MaskGITPipeline, MDLMPipeline, MomentScheduler, PartialCacheConfig
from hf_maskdiff.demo.editing import edit_of, painted_part
from hf_maskdiff.demo.image_runs import ImageRequest, image_runs
from hf_maskdiff.demo.opening import Opened, open_all
from hf_maskdiff.demo.passes import Passes
from hf_maskdiff.demo.runs import Run, panels_of
from hf_maskdiff.demo.samplers import Choice, samplers
from hf_maskdiff.demo.stepwise import Frame, StepwiseCall, in_turns
from hf_maskdiff.demo.text_runs import TextRequest, text_runs

PIPELINES = Path(__file__).parents[2] / "pipelines"
DIGITS, PLAYS = PIPELINES / "maskgit-mnist", PIPELINES / "mdlm-shakespeare"
MOMENT, HALTON = Choice("Moment", 6.0, 1), Choice("Halton", 6.0, 1)


@pytest.fixture(scope="module")
def digits() -> Opened:
    return open_all([str(DIGITS)], "cpu")[0]


@pytest.fixture(scope="module")
def plays() -> Opened:
    return open_all([str(PLAYS)], "cpu")[0]


def drawing(**changed: Any) -> ImageRequest:
    return ImageRequest(**{"label": 3, "num_images": 2, "seed": 5, "steps": 4, "guidance_scale": 1.0, **changed})


def writing(**changed: Any) -> TextRequest:
    given = {"prompt": "ROMEO:", "max_new_tokens": 20, "seed": 5, "steps": 4, "guidance_scale": 1.0}
    return TextRequest(**{**given, **changed})


def finish(runs: list[Any]) -> list[Frame]:
    return list(in_turns([run.stepwise for run in runs]))[-1]


# --- what is opened ---------------------------------------------------------------------------------------------------


def test_pipelines_are_opened_by_their_folders(digits: Opened, plays: Opened) -> None:
    assert (digits.name, digits.kind, type(digits.pipe)) == ("maskgit-mnist", "images", MaskGITPipeline)
    assert (plays.name, plays.kind, type(plays.pipe)) == ("mdlm-shakespeare", "texts", MDLMPipeline)
    assert (digits.choice_temperature, plays.choice_temperature) == (6.0, 4.0)


def test_what_cannot_be_opened_is_said() -> None:
    with pytest.raises(ValueError, match=r"that can be loaded, got '.*maskgit-mist'.*Did you mean "):
        open_all([str(PIPELINES / "maskgit-mist")], "cpu")
    with pytest.raises(ValueError, match="--device must be a device of this machine"):
        open_all([str(DIGITS)], "cuda:77")


# --- frames -----------------------------------------------------------------------------------------------------------


def test_a_frame_for_each_step_and_one_for_the_end(digits: Opened) -> None:
    (run,) = image_runs(digits, [MOMENT, MOMENT], drawing())[:1]
    frames = list(run.stepwise)
    assert [frame.step for frame in frames] == [1, 2, 3, 4, 4]
    assert [frame.finished for frame in frames] == [False] * 4 + [True]
    assert [frame.passes for frame in frames] == [Passes(n, 0) for n in (1, 2, 3, 4, 4)]
    assert all(before.seconds <= after.seconds for before, after in pairwise(frames))
    left = [int((frame.tokens == digits.mask_token_id).sum()) for frame in frames]
    assert left == sorted(left, reverse=True)
    assert (left[0] > 0, left[-1]) == (True, 0)


def test_the_result_is_that_of_the_pipeline(digits: Opened, plays: Opened) -> None:
    run = image_runs(digits, [HALTON, MOMENT], drawing(guidance_scale=2.0))[1]
    pipe = MaskGITPipeline.from_pretrained(DIGITS)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    call = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "latent"}
    expected = pipe(class_labels=[3, 3], generator=generators, **call).images
    (frame,) = finish([run])
    assert torch.equal(frame.tokens, expected)
    assert frame.passes == Passes(8, 0)  # two for each step

    write = MDLMPipeline.from_pretrained(PLAYS)
    write.set_progress_bar_config(disable=True)
    write.scheduler = HaltonScheduler.from_config(write.scheduler.config, choice_temperature=None)
    write.enable_cache(PartialCacheConfig(num_substeps=3))
    generator = torch.Generator().manual_seed(5)
    output = write("ROMEO:", num_inference_steps=4, max_new_tokens=20, generator=generator)
    text_run = text_runs(plays, [MOMENT, Choice("Halton", 6.0, 3)], writing())[1]
    (frame,) = finish([text_run])
    assert frame.tokens[0].tolist() == output.sequences[0].tolist()
    assert frame.passes == Passes(output.num_model_passes[0], output.num_partial_passes[0])
    text_run.panel(frame)
    assert text_of(text_run.view()) == output.texts[0]


def text_of(html: str) -> str:
    from html import unescape

    return unescape(re.sub(r"<[^>]+>", "", html))


@pytest.mark.parametrize("name", sorted(samplers()))
def test_every_sampler_fills_in_images_and_texts(name: str, digits: Opened, plays: Opened) -> None:
    choices = [Choice(name, 4.0, 2), MOMENT]
    runs: list[Run] = [
        image_runs(digits, choices, drawing(num_images=1))[0],
        text_runs(plays, choices, writing(max_new_tokens=6))[0],
    ]
    for run, mask in zip(runs, (digits.mask_token_id, plays.mask_token_id), strict=True):
        panel = run.panel(None)
        for frame in run.stepwise:
            panel = run.panel(frame)
        assert not (frame.tokens == mask).any()
        assert f"{frame.step} step" in panel
        assert str(frame.passes) in panel
        assert frame.passes.partial == 0 or run.choice.of.has_substeps
        assert all(remark.split(";")[0] in text_of(panel) for remark in run.remarks)


def test_the_history_is_when_a_position_was_revealed(digits: Opened) -> None:
    (run,) = image_runs(digits, [HALTON, MOMENT], drawing())[:1]
    masked = [run.record.tokens == digits.mask_token_id]
    for frame in run.stepwise:
        run.panel(frame)
        masked.append(frame.tokens == digits.mask_token_id)
    when = sum(mask.long() for mask in masked[:-1])  # the number of frames in which it was masked
    assert torch.equal(run.record.history, when)


# --- editing ----------------------------------------------------------------------------------------------------------


def test_kept_pixels_stay_and_kept_codes_are_given(digits: Opened) -> None:
    image = Image.effect_noise((28, 28), 90).convert("RGB")
    layer = Image.new("RGBA", (28, 28))
    ImageDraw.Draw(layer).rectangle((14, 0, 27, 27), fill="red")
    edit = edit_of(digits.pipe, *painted_part({"background": image, "layers": [layer]}))
    assert (edit.codes.shape, edit.editable.shape) == ((1, 7, 7), (1, 7, 7))
    (run,) = image_runs(digits, [MOMENT, HALTON], drawing(edit=edit))[:1]
    (frame,) = finish([run])
    run.panel(frame)
    kept = ~edit.editable.expand(2, -1, -1)
    assert torch.equal(frame.tokens[kept], edit.codes.expand(2, -1, -1)[kept])
    assert bool((run.record.history[kept] == 0).all())
    assert bool((run.record.history[~kept] > 0).all())
    columns = int(kept[0, 0].sum()) * 4
    for picture in run.pictures():
        box = (0, 0, columns, 28)
        assert picture.crop(box).tobytes() == image.convert("L").crop(box).tobytes()
        assert picture.tobytes() != image.convert("L").tobytes()


# --- several users ----------------------------------------------------------------------------------------------------


def test_users_at_once_get_what_they_get_alone(digits: Opened, plays: Opened) -> None:
    """Four at once on two models, with other samplers, R, guidance and seeds: no result depends on the others."""
    own = digits.pipe.scheduler

    def images(choice: Choice, **changed: Any) -> Callable[[], Any]:
        return lambda: finish(image_runs(digits, [choice, HALTON], drawing(**changed)))[0].tokens

    def text(choice: Choice, **changed: Any) -> Callable[[], Any]:
        return lambda: finish(text_runs(plays, [choice, HALTON], writing(**changed)))[0].tokens

    users = [
        images(Choice("Moment", 6.0, 3), steps=6),
        images(Choice("MaskGIT", 2.0, 1), guidance_scale=3.0, seed=9),
        text(Choice("Hybrid", 4.0, 2), guidance_scale=2.0),
        text(Choice("Uniform", 4.0, 1), steps=9, prompt="KING [MASK:7]", max_new_tokens=None),
    ]
    alone = [user() for user in users]
    with ThreadPoolExecutor(len(users)) as pool:
        together = list(pool.map(lambda user: user(), users))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    assert digits.pipe.scheduler is own
    assert type(own) is MomentScheduler
    assert digits.pipe.partial_cache is None
    assert plays.pipe.denoiser.partial_cache is None


# --- stopping and failing ---------------------------------------------------------------------------------------------


def threads() -> set[threading.Thread]:
    return set(threading.enumerate())


def gone(since: set[threading.Thread]) -> bool:
    for _ in range(200):
        if threads() <= since:
            return True
        time.sleep(0.05)
    return False


def test_a_page_that_is_closed_leaves_no_thread(plays: Opened) -> None:
    before = threads()
    panels = panels_of(text_runs(plays, [MOMENT, HALTON], writing()))
    for _ in range(3):
        next(panels)
    assert threads() - before
    panels.close()
    assert gone(before)


def test_an_error_of_the_pipeline_comes_out_and_ends_both(digits: Opened) -> None:
    before = threads()
    runs = image_runs(digits, [MOMENT, HALTON], drawing(label=77))
    with pytest.raises(ValueError, match=r"`class_labels` must be in 0 \.\. 9, got 77\."):
        list(panels_of(runs))
    assert gone(before)


def test_a_call_that_is_never_resumed_gives_up(monkeypatch: pytest.MonkeyPatch, digits: Opened) -> None:
    from hf_maskdiff.demo import stepwise

    monkeypatch.setattr(stepwise, "_PATIENCE", 0.2)
    before = threads()
    (run,) = image_runs(digits, [MOMENT, HALTON], drawing())[:1]
    next(run.stepwise)
    assert gone(before)


def test_the_time_between_steps_is_not_counted() -> None:
    def pipeline(callback_on_step_end: Callable[..., Any]) -> None:
        for step in range(3):
            time.sleep(0.02)
            callback_on_step_end(None, step, None, {"tokens": torch.zeros(1)})

    call = StepwiseCall(pipeline, "tokens", torch.zeros(1))
    frame = next(call)
    while not frame.finished:
        time.sleep(0.3)
        frame = next(call)
    assert 0.06 <= frame.seconds < 0.6


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("To be [MASK:x]", "a mask span must read"), ("KING " * 200, "a prompt must leave room|must fit the model's")],
)
def test_a_prompt_that_cannot_be_read_is_one_line(prompt: str, said: str, plays: Opened) -> None:
    with pytest.raises(ValueError, match=said):
        list(panels_of(text_runs(plays, [MOMENT, HALTON], writing(prompt=prompt))))


def test_guidance_towards_nothing_is_said(digits: Opened) -> None:
    (run,) = image_runs(digits, [MOMENT, HALTON], drawing(label=None, guidance_scale=3.0))[:1]
    assert "“Guidance” is not used" in run.panel(None)
    assert finish([run])[0].passes == Passes(4, 0)


def test_what_the_controls_hold_becomes_a_request() -> None:
    assert ImageRequest.of(3, 2, 5, 4, 1, None) == drawing()
    assert TextRequest.of("ROMEO:", False, 20, 5, 4, 1) == writing()
    assert TextRequest.of("", False, 0, 5, 4, 1) == writing(prompt=None, max_new_tokens=None)
    assert TextRequest.of("Hi", True, 20, 5, 4, 1).prompt == [{"role": "user", "content": "Hi"}]
    with pytest.raises(ValueError, match="“Seed” must be a whole number"):
        ImageRequest.of(3, 2, None, 4, 1)
