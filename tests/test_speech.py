"""Programs for audio: words of a synthesizer, by a stand-in or the real one where it is installed; a clip varied."""

from __future__ import annotations

import shutil
import stat
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import tiny_audio
import torch
from test_training_examples import fresh_programs, program  # noqa: F401

# Voices "low" and "high" are tones of their own, "again" sounds like "low", and "mute" says nothing.
COMMAND = """#!{python}
import math, struct, sys, wave
if "--voices=variant" in sys.argv:
    print("Pty Language Age/Gender VoiceName File")
    for voice in ("low", "high", "again", "mute"):
        print(f" 5  variant  --/M  {{voice}}  !v/{{voice}}   ")
    sys.exit()
said = dict(zip(sys.argv[1::2], sys.argv[2::2]))
voice = said["-v"].removeprefix("xx+")
tone = {{"low": 200, "again": 200, "high": 600, "mute": 0}}[voice] + int(said["-p"])
samples = [0] * 500 + [int(9000 * math.sin(2 * math.pi * tone * i / 8000)) for i in range(30 * int(said["-s"]) // 10)]
samples = [sample if voice != "mute" else 0 for sample in samples] + [0] * 300
with wave.open(said["-w"], "wb") as file:
    file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
    file.writeframes(struct.pack(f"<{{len(samples)}}h", *samples))
"""


@pytest.fixture
def command(tmp_path: Path) -> str:
    path = tmp_path / "speaker"
    path.write_text(COMMAND.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_words_of_voices(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speech = program("render_speech")
    monkeypatch.setattr(speech, "is_test", lambda voice: voice == "high")
    monkeypatch.setattr(speech, "PITCHES", (0, 50))
    monkeypatch.setattr(speech, "SPEEDS", (140,))
    arguments = ["--language", "xx", "--words", "yes", "no", "--sampling_rate", "4000", "--command", command]
    speech.main([*arguments, "--output_dir", str(tmp_path / "set")])
    for split, tone in (("train", 200), ("test", 600)):
        found = np.load(tmp_path / "set" / f"{split}.npz")
        assert found["class_names"].tolist() == ["yes", "no"]
        assert int(found["sampling_rate"]) == 4000
        assert found["labels"].tolist() == [0, 0, 1, 1]  # of one voice: "low" sounds like "again", which comes first
        audios = found["audios"]
        assert (audios.shape, audios.dtype) == ((4, 4000), np.int16)
        for clip, pitch in zip(audios.astype(np.float64), (0, 50, 0, 50), strict=True):
            assert abs(np.abs(np.fft.rfft(clip)).argmax() - (tone + pitch)) <= 3
            assert abs(np.abs(clip).max() - 0.5 * 32767) <= 1
            heard = np.flatnonzero(np.abs(clip) > 200)
            assert abs(np.ptp(heard) - 210) < 10


def test_resampling_keeps_what_both_rates_hold() -> None:
    speech = program("render_speech")
    time = torch.arange(800) / 8000
    tones = [torch.sin(2 * torch.pi * tone * time) for tone in (200, 3000)]
    made = speech.resample(tones[0] + tones[1], 8000, 4000)
    torch.testing.assert_close(made, torch.sin(2 * torch.pi * 200 * torch.arange(400) / 4000), atol=1e-4, rtol=0)


def test_without_the_program(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"must be installed, it is not\. On Debian: apt-get install espeak-ng"):
        program("render_speech").main(["--command", "no-such-speaker", "--output_dir", str(tmp_path)])


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_espeak(tmp_path: Path) -> None:
    program("render_speech").main(["--max_voices", "2", "--words", "yes", "--output_dir", str(tmp_path)])
    found = [np.load(tmp_path / f"{split}.npz")["audios"] for split in ("train", "test")]
    assert sum(len(audios) for audios in found) == 12


def test_a_clip_is_varied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two channels become one; with every code kept the clip comes back as its codes sound."""
    vary = program("vary_audio")
    pipe = tiny_audio.pipeline()
    pipe.save_pretrained(tmp_path / "pipe")
    vary.write_wav(tmp_path / "in.wav", tiny_audio.clips()[0].expand(2, -1), tiny_audio.RATE)
    audio, rate = vary.read_wav(tmp_path / "in.wav")
    torch.testing.assert_close(audio, tiny_audio.clips()[0, 0], atol=1e-4, rtol=0)
    assert rate == tiny_audio.RATE
    command = ["--pipeline", str(tmp_path / "pipe"), "--num_inference_steps", "2"]
    common = [*command, "--input", str(tmp_path / "in.wav"), "--output"]
    sounds = {}
    for name, options in {"same": ["--every", "1"], "fill": ["--fill", "0.5", "0.8"], "few": ["--every", "4"]}.items():
        vary.main([*common, str(tmp_path / f"{name}.wav"), *options])
        sounds[name] = vary.read_wav(tmp_path / f"{name}.wav")[0]
    expected = pipe.decode_codes(pipe.encode_audio(audio, rate))[0, 0].clamp(-1, 1)
    torch.testing.assert_close(sounds["same"], expected, atol=1e-4, rtol=0)
    assert not torch.equal(sounds["fill"], sounds["same"])
    vary.main([*command, "--seconds", "2", "--output", str(tmp_path / "new.wav")])
    assert "2.00 seconds" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        vary.main([*common, str(tmp_path / "no.wav")])
    assert "--every or --fill" in capsys.readouterr().err


def test_which_codes_the_options_keep() -> None:
    vary, pipe = program("vary_audio"), tiny_audio.pipeline()
    options = "--pipeline x --output y --input z --every 4 --fill 0.5 0.8 --codebooks 2"
    args = vary.parse_args(options.split())
    keep = vary.kept(args, 12, pipe)
    assert keep.any(0).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 8, 9, 10, 11]
    assert keep.any(1).tolist() == [True, True, False, False]


def test_a_wav_file_holds_what_it_was_given(tmp_path: Path) -> None:
    pipe = tiny_audio.pipeline()
    audio = torch.tensor([[0.0, 0.5, -0.5, 2.0], [1.0, -1.0, 0.25, -3.0]])
    pipe.save_wav(tmp_path / "new" / "two.wav", audio)
    with wave.open(str(tmp_path / "new" / "two.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, tiny_audio.RATE)
        samples = np.frombuffer(file.readframes(4), "<i2").reshape(4, 2).T / 32767
    np.testing.assert_allclose(samples, audio.clamp(-1, 1), atol=1e-4)
    first = (tmp_path / "new" / "two.wav").read_bytes()
    pipe.save_wav(tmp_path / "array.wav", audio.numpy())  # a call with `output_type="np"` returns arrays
    assert (tmp_path / "array.wav").read_bytes() == first
    for wrong, got in ((audio[0], r"torch.float32 \(4,\)"), (audio.long(), r"torch.int64 \(2, 4\)")):
        with pytest.raises(
            ValueError, match=rf"must have the shape \(channels, num_samples\) and hold floats, got {got}"
        ):
            pipe.save_wav(tmp_path / "one.wav", wrong)
