"""The training programs for audio, run for real on tones: a codec, a transformer of its codes, a judge of both."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training_examples import fresh_programs, fresh_programs_in, program  # noqa: F401
from transformers import DacModel

from hf_maskdiff import MaskedDiffusionAudioPipeline, MomentScheduler
from hf_maskdiff.evaluation.audio_data import load_labelled_clips
from hf_maskdiff.evaluation.mel import FLOOR, log_mel
from hf_maskdiff.evaluation.word_classifier import WordClassifier

RATE, SAMPLES, WORDS = 1600, 640, ("low", "middle", "high")
CODEC_ARGUMENTS = ["--downsampling_ratios", "2", "4", "--encoder_hidden_size", "4", "--decoder_hidden_size", "16"]
CODEC_ARGUMENTS += ["--num_codebooks", "2", "--codebook_size", "16", "--codebook_dim", "4", "--crop_length", "256"]
CODEC_ARGUMENTS += ["--batch_size", "8", "--warmup_steps", "5", "--learning_rate", "5e-3", "--ema_decay", "0.9"]
CODEC_ARGUMENTS += ["--codebook_decay", "0.9", "--waveform_weight", "10"]
MODEL_ARGUMENTS = ["--hidden_size", "32", "--num_layers", "2", "--num_attention_heads", "2", "--batch_size", "16"]
MODEL_ARGUMENTS += ["--warmup_steps", "5", "--dropout", "0.1", "--ema_decay", "0.9"]


def write_tones(folder: Path) -> Path:
    """Clips of a second that are a tone for their class, of any phase, between silences."""
    folder.mkdir(parents=True)
    for split, num, seed in (("train", 48, 0), ("test", 15, 1)):
        rng = np.random.default_rng(seed)
        labels = np.arange(num) % len(WORDS)
        phase, time = rng.uniform(0, 6, (num, 1)), np.arange(SAMPLES) / RATE
        tones = np.sin(2 * np.pi * np.array([100, 200, 400])[labels, None] * time + phase) * (time > 0.05)
        audios = (16000 * tones + rng.normal(0, 10, tones.shape)).astype(np.int16)
        np.savez(folder / f"{split}.npz", audios=audios, labels=labels, class_names=WORDS, sampling_rate=RATE)
    return folder


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tones(tmp_path_factory.mktemp("tones") / "set")


@pytest.fixture(scope="module")
def codec_folder(tones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained once."""
    folder = tmp_path_factory.mktemp("codec")
    with fresh_programs_in(folder):
        arguments = ["--data_dir", str(tones), "--output_dir", str(folder), "--max_train_steps", "120"]
        program("train_audio_codec").main([*arguments, *CODEC_ARGUMENTS])
    return folder


# --- the codec -------------------------------------------------------------------------------------------------------


def test_the_codec_learns_and_loads_with_plain_transformers(tones: Path, codec_folder: Path) -> None:
    codec, module = DacModel.from_pretrained(codec_folder).eval(), program("train_audio_codec")
    audios = load_labelled_clips("test", tones).audios
    distance, ratio, perplexities = module.evaluate(codec, audios, torch.device("cpu"))
    real = audios.float() / 32768
    silence = module.spectral_distance(torch.zeros_like(real), real, RATE).item()
    assert distance < 0.7 * silence
    assert ratio > 0.5
    assert len(perplexities) == 2
    assert min(perplexities) > 3
    with torch.no_grad():
        made = codec.decode(audio_codes=codec.encode(real[:, None]).audio_codes).audio_values
    assert made.shape == real.shape
    error = 10 * np.log10(real.square().sum() / (made - real).square().sum())
    assert ratio == pytest.approx(error.item(), abs=0.05)


def test_a_codec_that_is_stopped_and_resumed_is_the_same(tones: Path, tmp_path: Path) -> None:
    main, states = program("train_audio_codec").main, []
    for name, counts in (("whole", ("6",)), ("broken", ("3", "6"))):
        for count in counts:
            arguments = ["--data_dir", str(tones), "--output_dir", str(tmp_path / name), *CODEC_ARGUMENTS]
            arguments += ["--max_train_steps", count, "--checkpointing_steps", "3", "--warmup_steps", "100"]
            with fresh_programs_in(tmp_path):
                main([*arguments, "--resume_from_checkpoint", "latest"])
        states.append(DacModel.from_pretrained(tmp_path / name).state_dict())
    for key, weight in states[0].items():
        assert torch.equal(weight, states[1][key]), key


def test_a_codec_goes_on_from_another_s_weights(tones: Path, codec_folder: Path, tmp_path: Path) -> None:
    arguments = ["--data_dir", str(tones), "--output_dir", str(tmp_path / "more"), *CODEC_ARGUMENTS]
    arguments += ["--start_from", str(codec_folder), "--max_train_steps", "1", "--learning_rate", "0"]
    with fresh_programs_in(tmp_path):
        program("train_audio_codec").main(arguments)
    before, after = (DacModel.from_pretrained(folder).state_dict() for folder in (codec_folder, tmp_path / "more"))
    codes = [key for key in before if "codebook" in key]
    assert len(codes) == 2
    for key, weight in before.items():
        if key in codes:  # a step of their running means, from where they were
            assert 0 < (after[key] - weight).abs().mean() < 0.3 * weight.abs().mean()
        else:
            torch.testing.assert_close(after[key], weight)
    rate = {"sampling_rate": 2 * RATE, "labels": [0], "class_names": ["a"], "audios": np.zeros((1, 640), np.int16)}
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", **rate)
    with (
        fresh_programs_in(tmp_path),
        pytest.raises(SystemExit, match="of the clips' sampling rate 3200, got one of 1600"),
    ):
        program("train_audio_codec").main([*arguments, "--data_dir", str(tmp_path)])


def test_a_clip_is_moved_in_the_silence_around_it(capsys: pytest.CaptureFixture[str]) -> None:
    module = program("train_vampnet")
    clips = torch.zeros(3, 12, dtype=torch.int16)
    clips[0, 2:6] = torch.tensor([5, 0, 7, 9])
    clips[1] = torch.arange(1, 13)  # fills its clip
    first, *moved = module.placements(clips, 30, 0)
    assert torch.equal(first, clips)
    assert len(moved) == 29
    found = set()
    for audios in moved:
        start = int((audios[0] != 0).int().argmax())
        found.add(start)
        assert audios[0, start : start + 4].tolist() == [5, 0, 7, 9]
        assert int((audios[0] != 0).sum()) == 3
        assert torch.equal(audios[1:], clips[1:])
    assert found == set(range(9))
    assert len(list(module.placements(clips, 1, 0))) == 1
    with pytest.raises(SystemExit):
        module.parse_args(["--codec", "x", "--output_dir", "y", "--placements", "0"])
    assert "must be at least 1, got 0" in capsys.readouterr().err


def test_crops_are_stretches_of_their_clips() -> None:
    audios = torch.arange(30, dtype=torch.int16).view(3, 10) * 1000
    found = program("train_audio_codec").crops(audios, torch.tensor([2, 0]), 4, torch.Generator().manual_seed(0))
    starts = (found[:, 0] * 32768 / 1000).round()
    torch.testing.assert_close(found * 32768 / 1000, starts[:, None] + torch.arange(4))
    assert 20 <= starts[0] <= 26
    assert 0 <= starts[1] <= 6


def test_odd_ratios_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program("train_audio_codec").parse_args(["--data_dir", "x", "--output_dir", "y", "--downsampling_ratios", "5"])
    assert "must be even" in capsys.readouterr().err


# --- the transformer, the classifier, the judge ----------------------------------------------------------------------


def test_a_whole_pipeline_of_words_and_its_judge(tones: Path, codec_folder: Path, tmp_path: Path) -> None:
    module, data = program("train_vampnet"), ["--data_dir", str(tones)]
    arguments = [*data, "--codec", str(codec_folder), *MODEL_ARGUMENTS, "--output_dir", str(tmp_path / "pipe")]
    trained = module.main([*arguments, "--max_train_steps", "60", "--placements", "2"])
    assert trained < np.log(16) - 0.3

    pipe = MaskedDiffusionAudioPipeline.from_pretrained(tmp_path / "pipe")
    assert isinstance(pipe.scheduler, MomentScheduler)
    assert pipe.scheduler.config.mask_token_id == pipe.transformer.config.codebook_size == 16
    clips = load_labelled_clips("test", tones)
    codes = module.encode(pipe, clips.audios, RATE)
    assert codes.shape == (15, 2, SAMPLES // 8)
    # A class says something of the codes: another one is a worse guess.
    losses = [
        module.evaluate(pipe.transformer, pipe.scheduler, codes, (clips.labels + shift) % 3, seed=0) for shift in (0, 1)
    ]
    assert losses[0] == pytest.approx(trained, abs=1e-4)
    assert losses[1] > losses[0] + 0.05

    with fresh_programs_in(tmp_path):
        train = program("train_word_classifier").main
        arguments = [*data, "--output_dir", str(tmp_path / "judge"), "--feature_size", "8", "--batch_size", "16"]
        accuracy = train([*arguments, "--max_train_steps", "60"])
    assert accuracy > 0.9
    command = ["--pipeline", str(tmp_path / "pipe"), "--classifier", str(tmp_path / "judge"), *data]
    found = program("judge_words").main([*command, "--steps", "2", "--guidance_scale", "2", "--batch_size", "8"])
    assert set(found) == {"codec", "2 steps"}
    assert found["codec"][0] <= accuracy  # how much lower depends on a codec of few steps, and so on versions
    assert 0 <= found["codec"][1] < found["2 steps"][1]


def test_codes_enter_as_the_vectors_of_the_codec(codec_folder: Path) -> None:
    module, codec = program("train_vampnet"), DacModel.from_pretrained(codec_folder)
    sizes = {"latent_dim": 4, "hidden_size": 8, "num_layers": 1, "num_attention_heads": 1}
    model = module.VampNetTransformer(num_codebooks=2, codebook_size=16, **sizes)
    masks = model.latent_embedding.weight[[16, 33]].clone()
    module.enter_as_vectors(model, codec)
    table, codebooks = model.latent_embedding.weight, [one.codebook.weight for one in codec.quantizer.quantizers]
    assert torch.equal(table[:16], codebooks[0])
    assert torch.equal(table[17:33], codebooks[1])
    assert torch.equal(table[[16, 33]], masks)


def test_the_classifier_reads_integers_and_floats_alike() -> None:
    torch.manual_seed(0)
    classifier = WordClassifier(RATE, num_classes=3, feature_size=4)
    clips = (torch.randn(5, 600) * 5000).to(torch.int16)
    classes, features = classifier.read(clips, batch_size=2)
    from_floats = classifier.read(clips.float() / 32768)
    assert torch.equal(from_floats[0], classes)
    torch.testing.assert_close(from_floats[1], features)
    assert features.shape == (5, 4)
    assert classifier.training
    assert sum(weight.numel() for weight in WordClassifier(8000).parameters()) < 130_000
    with pytest.raises(ValueError, match=r"at least 512 samples, got \(5, 511\)"):
        classifier(torch.zeros(5, 511))
    with pytest.raises(ValueError, match="`num_bands` must be a multiple of 8, got 12"):
        WordClassifier(RATE, num_bands=12)


# --- data ------------------------------------------------------------------------------------------------------------


def test_a_tone_is_loud_in_its_band_alone() -> None:
    time = torch.arange(4000) / 8000
    tones = torch.stack([torch.sin(2 * torch.pi * tone * time) for tone in (500, 2000)] + [torch.zeros(4000)])
    bands = log_mel(tones, 8000, 512, 32)
    assert bands.shape == (3, 32, 1 + 4000 // 128)
    loudest = bands[:2, :, 8:-8].amax(1)
    assert (loudest > np.log10(0.3)).all()
    mels = [2595 * np.log10(1 + tone / 700) for tone in (500, 2000, 4000)]
    expected = [round(mel / mels[2] * 33 - 1) for mel in mels[:2]]
    assert bands[:2, :, 16].argmax(1).tolist() == pytest.approx(expected, abs=1)
    assert (bands[2] == np.log10(FLOOR)).all()


def test_wrong_arrays_say_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`data_dir` must hold train\.npz"):
        load_labelled_clips("train", tmp_path)
    right = {"audios": np.zeros((2, 9), np.int16), "labels": [0, 1], "class_names": ["a", "b"], "sampling_rate": 8}
    np.savez(tmp_path / "test.npz", **right)
    clips = load_labelled_clips("test", tmp_path)
    assert (clips.class_names, clips.sampling_rate, clips.labels.tolist()) == (("a", "b"), 8, [0, 1])
    for changes, message in (
        ({"audios": np.zeros((2, 9), np.float32)}, "audios in .* must be int16"),
        ({"labels": [0, 2]}, "labels in .* must be 2 whole numbers from 0 to 1"),
        ({"labels": [0]}, r"got int64 of shape \(1,\)"),
    ):
        np.savez(tmp_path / "train.npz", **(right | changes))
        with pytest.raises(ValueError, match=message):
            load_labelled_clips("train", tmp_path)
    (tmp_path / "train.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="must hold the arrays audios, labels, class_names and sampling_rate"):
        load_labelled_clips("train", tmp_path)


@pytest.mark.parametrize("name", ["train_audio_codec", "train_vampnet", "train_word_classifier", "judge_words"])
def test_the_command_in_the_header_is_understood(name: str) -> None:
    module = program(name)
    commands = re.findall(r"^    ((?:accelerate launch|python) examples/(?:.*\\\n)*.*)$", module.__doc__, re.MULTILINE)
    words = shlex.split(commands[0].replace("\\\n", " "))
    assert module.parse_args(words[words.index(f"examples/{name}.py") + 1 :]).data_dir == "data/speech"
