"""The page's tab of sounds, on a tiny pipeline: frames of a run, the sound and pictures shown, what it refuses."""

from __future__ import annotations

import base64
import io
import re
import wave
from pathlib import Path

import numpy as np
import pytest
import tiny_audio
import torch
from PIL import Image

from hf_maskdiff.demo.opening import Opened, open_all
from hf_maskdiff.demo.runs import panels_of
from hf_maskdiff.demo.samplers import Choice
from hf_maskdiff.demo.sound_runs import SoundRequest, sound_runs, spectrogram

CHOICES = [Choice("Moment", 6.0, 1), Choice("Halton", 6.0, 2)]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    folder = tmp_path_factory.mktemp("words") / "pipe"
    model = tiny_audio.transformer(num_classes=3)
    pipe = tiny_audio.pipeline(fine=False, transformer=model)
    pipe.register_to_config(call_defaults={"chunk_length_s": 12.8})  # 1024 samples, as the spectrogram needs
    pipe.save_pretrained(folder)
    return open_all([str(folder)], "cpu")[0]


def test_a_run_is_that_of_the_pipeline_and_can_be_heard(words: Opened) -> None:
    request = SoundRequest.of(2, 2, 7, 3, 2.0)
    runs = sound_runs(words, CHOICES, request)
    shown = list(panels_of(runs))
    assert len(shown) == 1 + 3 + 1
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    call = {"audio_length_in_s": 12.8, "num_inference_steps": 3, "guidance_scale": 2.0, "generator": generators}
    expected = words.for_one_run(CHOICES[0])(class_labels=[2, 2], **call)
    assert torch.equal(runs[0].record.tokens, expected.codes)
    players = re.findall(r'src="data:audio/wav;base64,([^"]+)"', shown[-1][0])
    assert len(players) == 2
    for player, audio in zip(players, expected.audios, strict=True):
        with wave.open(io.BytesIO(base64.b64decode(player))) as file:
            heard = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        np.testing.assert_allclose(heard, audio[0].clamp(-1, 1).numpy() * 32767, atol=1)
    first = re.search(r'src="data:audio/wav;base64,([^"]+)"', shown[0][0])
    assert first is not None
    with wave.open(io.BytesIO(base64.b64decode(first[1]))) as file:
        assert not any(file.readframes(file.getnframes()))  # all is masked yet
    maps = re.findall(r'heat map of A" src="data:image/png;base64,([^"]+)"', shown[-1][0])
    sizes = [Image.open(io.BytesIO(base64.b64decode(one))).size for one in maps]
    assert sizes == [(128 * 4, tiny_audio.COARSE * 4)] * 2  # a row for each codebook, a column for each frame


def test_no_class_is_not_guided_and_says_so(words: Opened) -> None:
    request = SoundRequest.of(None, 1, 0, 1, 2.0)
    (panel, _) = list(panels_of(sound_runs(words, CHOICES, request)))[-1]
    assert "nothing to guide towards" in panel
    assert "1 pass" in panel


def test_a_tone_is_a_dark_line_low_in_the_picture() -> None:
    tone = 0.5 * torch.sin(2 * torch.pi * 500 * torch.arange(8000) / 8000)
    picture = np.asarray(spectrogram(tone[None], 8000))
    assert picture.shape == (64, 126)
    assert (picture[:30, 5:-5] > 200).all()
    assert 40 <= picture[:, 60].argmin() <= 55
    assert picture[:, 60].min() < 80


def test_the_page_has_a_tab_of_sounds(words: Opened) -> None:
    pytest.importorskip("gradio")
    from hf_maskdiff.demo.page import build_page

    page, _ = build_page([words])
    labels = {block.label for block in page.blocks.values() if getattr(block, "label", None)}
    assert {"Sounds", "Guidance", "Steps", "Sampler A"} <= labels


def test_sounds_of_two_models_are_refused(tmp_path: Path) -> None:
    tiny_audio.pipeline().save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match="sounds that one transformer draws and a codec decodes"):
        open_all([str(tmp_path / "two")], "cpu")
