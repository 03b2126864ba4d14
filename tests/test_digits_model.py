"""The shipped model of spoken digits: it says what it is asked for, keeps what it is told to, and is compared."""

from __future__ import annotations

import importlib
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_training_examples import fresh_programs, program  # noqa: F401

from hf_maskdiff import MaskedDiffusionAudioPipeline
from hf_maskdiff.audio_masks import keep_outside
from hf_maskdiff.evaluation.word_classifier import WordClassifier

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "pipelines" / "vampnet-digits"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def pipe() -> MaskedDiffusionAudioPipeline:
    pipe = MaskedDiffusionAudioPipeline.from_pretrained(MODEL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def judge() -> WordClassifier:
    return WordClassifier.from_pretrained(MODEL / "word_classifier").eval()


def test_it_says_the_words_that_it_is_asked_for(pipe: MaskedDiffusionAudioPipeline, judge: WordClassifier) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(20)]
    made = pipe(class_labels=WORDS * 2, audio_length_in_s=1.0, generator=generators)
    assert pipe.sampling_rate == 8000
    assert made.audios.shape[:2] == (20, 1)
    assert abs(made.audios.shape[2] - 8000) < 128
    classes = judge.read(made.audios[:, 0])[0]
    assert sum(classes == torch.arange(20) % 10) >= 15
    assert len({tuple(codes.flatten().tolist()) for codes in made.codes}) == 20


def test_a_gap_is_filled_and_the_rest_stays(pipe: MaskedDiffusionAudioPipeline) -> None:
    codes = pipe(class_labels="seven", audio_length_in_s=1.0, generator=torch.Generator().manual_seed(0)).codes
    keep = keep_outside(0.2, 0.5, codes.shape[2], pipe.frame_rate)
    call = {"class_labels": "seven", "codes": codes, "keep": keep, "generator": torch.Generator().manual_seed(1)}
    filled = pipe(**call).codes
    kept = keep.expand(pipe.num_codebooks, -1)
    assert torch.equal(filled[0][kept], codes[0][kept])
    assert not torch.equal(filled, codes)


def test_words_are_shown(tmp_path: Path) -> None:
    arguments = ["--pipeline", str(MODEL), "--steps", "4", "--words", "one", "six", "--schedulers", "moment", "halton"]
    program("show_words").main([*arguments, "--output", str(tmp_path / "words.png"), "--wav_dir", str(tmp_path)])
    pixels = np.asarray(Image.open(tmp_path / "words.png"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    for name in ("one_moment", "six_halton"):
        with wave.open(str(tmp_path / f"{name}.wav")) as file:
            assert (file.getframerate(), file.getnchannels()) == (8000, 1)
            assert np.abs(np.frombuffer(file.readframes(file.getnframes()), "<i2")).max() > 1000


def test_samplers_are_compared_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All measures of a sampler, in groups and guided too, and of real clips, on clips that are noise."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    noise = np.random.default_rng(0).integers(-5000, 5000, (8, 8000), dtype=np.int16)
    about = {"class_names": np.array(WORDS), "sampling_rate": np.array(8000)}
    np.savez(tmp_path / "test.npz", audios=noise, labels=np.arange(8) % 2, **about)
    names = ["real", "tokenizer", "moment 6", "moment 6, 2 groups", "moment 6, guidance 2"]
    run = ["--beds", "words", "--speech_dir", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--number", "4"]
    bench = importlib.import_module("samplers_at_equal_passes")
    found = bench.main([*run, "--num_seeds", "1", "--steps", "0", "4", "--samplers", *names])
    cells = {cell["sampler"]: cell for cell in found["words"]["cells"]}
    assert set(cells) == set(names)
    assert cells["tokenizer"]["frechet"] != cells["real"]["frechet"] > 0
    assert [cells[name]["calls"] for name in names[2:]] == [4, 8, 8]  # partial passes and those without a class count
    assert len({cells[name]["frechet"] for name in names}) == 5
    assert all(0 <= cell["accuracy"] <= 1 for cell in cells.values())
