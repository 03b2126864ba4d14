"""Sounds as pictures: there and back, the programs that train and fill in, on tones and a tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_training_examples import MASKGIT_ARGUMENTS, fresh_programs, fresh_programs_in, program  # noqa: F401

from hf_maskdiff.evaluation.image_data import load_labelled_images
from hf_maskdiff.evaluation.mel import log_mel, waveforms_of

RATE = 8000


def tone(frequency: float, seconds: float = 1.0) -> torch.Tensor:
    """`(1, num_samples)`, with silence before and after."""
    time = torch.arange(round(seconds * RATE)) / RATE
    return 0.5 * torch.sin(2 * torch.pi * frequency * time)[None] * ((time > 0.2) & (time < 0.8))


def loudest(sound: torch.Tensor) -> float:
    """The frequency in Hz that a sound has most of."""
    return float(torch.fft.rfft(sound[0]).abs().argmax() * RATE / sound.shape[1])


def test_a_spectrogram_becomes_a_sound_that_has_it() -> None:
    sound = tone(440) + 0.5 * tone(1500)
    wanted = log_mel(sound, RATE, 512, 64)
    made = waveforms_of(wanted, RATE, 512, 30, torch.Generator().manual_seed(0))
    assert made.shape == (1, 62 * 128)
    found = log_mel(made, RATE, 512, 64)
    assert (found - wanted[:, :, : found.shape[2]]).abs().mean() < 0.06
    assert (wanted + 3).mean() > 0.15  # silence would be as far off
    assert abs(loudest(made) - 440) < 20
    assert made[0, :1000].abs().max() < 0.01


def test_low_bands_are_in_the_last_rows_and_a_picture_becomes_its_sound() -> None:
    mel = program("mel_images")
    images = mel.images_of(torch.cat([tone(300), tone(2500)]), RATE)
    assert images.shape == (2, 1, 64, 64)
    assert (images.min(), images.max() <= 1) == (0, True)
    low, high = images[:, 0, :, 32].argmax(1).tolist()
    assert low > 50 > 20 > high
    sounds = mel.sounds_of(images, RATE)
    assert [loudest(sounds[:1]), loudest(sounds[1:])] == pytest.approx([300, 2500], abs=60)
    # The rows above a frequency are those in which it is not loudest.
    assert high == pytest.approx(mel.rows_above(2500, RATE), abs=1)
    assert low == pytest.approx(mel.rows_above(300, RATE), abs=1)
    with pytest.raises(ValueError, match="at most 8064 samples"):
        mel.images_of(torch.zeros(1, 8065), RATE)


def test_training_and_filling_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands in the programs' headers, with a tiny tokenizer, then a gap and a lost band of a clip."""
    clips = torch.cat([tone(frequency) for frequency in (300, 900) * 8])
    arrays = {"labels": np.arange(16) % 2, "class_names": ["low", "high"], "sampling_rate": RATE}
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", audios=(clips * 32767).to(torch.int16).numpy(), **arrays)
    program("render_spectrograms").main(["--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "pictures")])
    images, labels, names = load_labelled_images("train", data_dir=tmp_path / "pictures")
    assert (images.shape, names, labels.tolist()) == ((16, 1, 64, 64), ("low", "high"), [0, 1] * 8)
    data = ["--data_dir", str(tmp_path / "pictures")]
    tiny = ["--batch_size", "8", "--warmup_steps", "2", "--max_train_steps", "4"]
    with fresh_programs_in(tmp_path):
        sizes = ["--block_out_channels", "8", "8", "8", "--latent_channels", "4", "--codebook_size", "16"]
        program("train_vq").main([*data, *sizes, *tiny, "--output_dir", str(tmp_path / "vq")])
    with fresh_programs_in(tmp_path):
        arguments = [*data, "--tokenizer", str(tmp_path / "vq"), *MASKGIT_ARGUMENTS, *tiny]
        program("train_maskgit").main([*arguments, "--output_dir", str(tmp_path / "pipe")])

    fill, vary = program("fill_spectrogram"), program("vary_audio")
    common = ["--pipeline", str(tmp_path / "pipe"), "--num_inference_steps", "2"]
    fill.main([*common, "--word", "low", "--output", str(tmp_path / "new.wav")])
    assert len(vary.read_wav(tmp_path / "new.wav")[0]) == RATE
    vary.write_wav(tmp_path / "in.wav", clips[:1], RATE)
    given = [*common, "--input", str(tmp_path / "in.wav"), "--output", str(tmp_path / "out.wav")]
    seen = []
    monkeypatch.setattr(fill, "sounds_of", lambda made, rate, seed: seen.append(made) or torch.zeros(1, 8064))
    fill.main([*given, "--fill", "0.4", "0.6", "--picture", str(tmp_path / "seen.png")])
    fill.main([*given, "--above", "1000"])
    before = fill.images_of(vary.read_wav(tmp_path / "in.wav")[0][None], RATE)
    rows = fill.rows_above(1000, RATE)
    changed = [(made != before)[0, 0] for made in seen]
    for drawn, kept in (
        (changed[0][:, 25:38], changed[0].T[[*range(25), *range(38, 64)]]),
        changed[1].split([rows, 64 - rows]),
    ):
        assert not kept.any()
        assert drawn.any()
    assert (tmp_path / "seen.png").exists()
    with pytest.raises(SystemExit, match="must hold a part of the clip"):
        fill.main([*given, "--fill", "3", "4"])
    with pytest.raises(SystemExit):
        fill.main(given)
