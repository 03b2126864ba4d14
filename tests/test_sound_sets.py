"""Sets of sounds: classes in turn, WAV files and codes, the same alone and in a batch; and who judges none of them."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_audio
import torch

from hf_maskdiff import MaskedDiffusionAudioPipeline
from hf_maskdiff_cli import main


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose coarse model knows three words."""
    folder = tmp_path_factory.mktemp("words") / "pipe"
    pipe = tiny_audio.pipeline(transformer=tiny_audio.transformer(num_classes=3))
    pipe.register_to_config(call_defaults={"chunk_length_s": 1.2})
    pipe.save_pretrained(folder)
    return folder


def made(words: Path, folder: Path, *options: object) -> list[dict[str, Any]]:
    command = ["generate", "--pipeline", words, "--num_samples", 5, "--output_dir", folder, "--num_inference_steps", 2]
    assert main([str(word) for word in (*command, *options)]) == 0
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_sounds_of_the_classes_in_turn(words: Path, tmp_path: Path) -> None:
    rows = made(words, tmp_path / "set", "--block_size", 2, "--batch_size", 2, "--guidance_scale", 2)
    assert [row["label"] for row in rows] == [0, 1, 2, 0, 1]
    pipe = MaskedDiffusionAudioPipeline.from_pretrained(words)
    pipe.set_progress_bar_config(disable=True)
    for row in rows:
        generator = [torch.Generator().manual_seed(row["seed"])]
        call = {"class_labels": row["label"], "audio_length_in_s": 1.2, "num_inference_steps": 2, "guidance_scale": 2}
        alone = pipe(**call, generator=generator)
        assert row["tokens"] == alone.codes.flatten().tolist()
        with wave.open(io.BytesIO(row["audio"]["bytes"])) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (tiny_audio.RATE, 1, 2)
            heard = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        expected = alone.audios[0, 0].clamp(-1, 1) * 32767
        assert len(heard) == len(expected) == 12 * tiny_audio.HOP
        assert np.abs(heard - expected.numpy()).max() <= 1


def test_a_length_and_a_class(words: Path, tmp_path: Path) -> None:
    rows = made(words, tmp_path / "set", "--audio_length_in_s", 2, "--class_labels", 2)
    assert {row["label"] for row in rows} == {2}
    assert {len(row["tokens"]) for row in rows} == {20 * tiny_audio.CODEBOOKS}
    assert len({tuple(row["tokens"]) for row in rows}) == 5


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["generate", "--num_samples", "1", "--max_new_tokens", "3"], "`max_new_tokens` must be left out for a pip"),
        (["generate", "--num_samples", "1", "--audio_length_in_s", "0.01"], "must be seconds of at least a frame"),
        (["generate", "--num_samples", "1", "--audio_length_in_s", "0"], "must be seconds of at least a frame"),
        (["evaluate", "--num_samples", "2"], "`pipeline` must make images or texts to be judged, got one of sounds"),
        (["tune", "--max_passes", "4"], "`pipeline` must make images or texts to be judged, got one of sounds"),
    ],
)
def test_what_sounds_are_not_for(
    words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], message: str
) -> None:
    assert main([*command, "--pipeline", str(words), "--output_dir", str(tmp_path / "new")]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
