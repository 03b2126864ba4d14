"""Letters from fonts as a set of images in colour, and trainings that end by the clock."""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_training_examples import (  # noqa: F401
    MDLM_ARGUMENTS,
    VQ_ARGUMENTS,
    fresh_programs,
    idx_folder,
    program,
    text_folder,
)

from hf_maskdiff.evaluation.image_data import load_labelled_images

LETTERS = [chr(65 + i) for i in range(26)]


def write_arrays(folder: Path, **changes: object) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, number in (("train", 6), ("test", 4)):
        arrays = {
            "images": rng.integers(0, 256, (number, 8, 8, 3), dtype=np.uint8),
            "labels": np.arange(number, dtype=np.int32) % 2,
            "class_names": np.array(["left", "right"]),
        }
        np.savez(folder / f"{split}.npz", **{key: changes.get(key, value) for key, value in arrays.items()})
    return folder


# --- arrays ----------------------------------------------------------------------------------------------------------


def test_arrays_are_read_as_they_are(tmp_path: Path) -> None:
    folder = write_arrays(tmp_path)
    for split in ("train", "test"):
        images, labels, names = load_labelled_images(split, data_dir=folder, image_size=8, num_channels=3)
        written = np.load(folder / f"{split}.npz")
        np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), written["images"])
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert labels.tolist() == written["labels"].tolist()
        assert names == ("left", "right")
    grey = np.zeros((6, 8, 8), np.uint8)
    np.savez(folder / "train.npz", images=grey, labels=np.zeros(6, int), class_names=np.array(["all"]))
    assert load_labelled_images("train", data_dir=folder).images.shape == (6, 1, 8, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((6, 8, 8, 3))}, "must be uint8 of shape .* got float64"),
        ({"images": np.zeros((6, 3, 8, 8), np.uint8)}, r"3 channels at the end, got uint8 of shape \(6, 3, 8, 8\)"),
        ({"labels": np.arange(6)}, "must be 6 whole numbers from 0 to 1"),
        ({"labels": np.array([0, 1, 0, -1, 0, 1])}, "must be 6 whole numbers from 0 to 1"),
        ({"labels": np.array([0, 1, 0])}, r"got int64 of shape \(3,\)"),
        ({"labels": np.zeros(6)}, "got float64"),
        ({"class_names": np.array(["a", None], dtype=object)}, "must hold the arrays images, labels and class_names"),
    ],
)
def test_arrays_that_are_none(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_labelled_images("train", data_dir=write_arrays(tmp_path, **changes))


def test_files_that_hold_no_arrays(tmp_path: Path) -> None:
    folder = write_arrays(tmp_path)
    with pytest.raises(ValueError, match="arrays are read as they are: 3 channels, 8 pixels a side"):
        load_labelled_images("train", data_dir=folder, image_size=16)
    (folder / "test.npz").unlink()
    with pytest.raises(ValueError, match=r"must hold test\.npz beside train\.npz"):
        load_labelled_images("test", data_dir=folder)
    np.save(tmp_path / "bare.npy", np.zeros(3))
    whole, bare = (folder / "train.npz").read_bytes(), (tmp_path / "bare.npy").read_bytes()
    for content in (b"", b"PK\3\4 cut short", b"no archive at all", whole[:-40], bare):
        (folder / "train.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"train\.npz must hold the arrays"):
            load_labelled_images("train", data_dir=folder)


# --- letters ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two families of fonts, one of them under two names, and a file that is no font."""
    matplotlib = pytest.importorskip("matplotlib")
    source, folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf", tmp_path_factory.mktemp("fonts")
    for name in ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "STIXGeneral"):
        shutil.copy(source / f"{name}.ttf", folder)
    shutil.copy(source / "DejaVuSans.ttf", folder / "ZAgain.ttf")
    (folder / "broken.ttf").write_bytes(b"no font")
    return folder


def test_letters_of_fonts(fonts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = program("render_letters")
    monkeypatch.setattr(letters, "is_test", lambda family: family.startswith("stix"))
    command = ["--shapes", str(tmp_path / "shapes.npz"), "--paintings", "2"]
    letters.main([*command, "--font_dir", str(fonts), "--output_dir", str(tmp_path / "first")])
    file = np.load(tmp_path / "shapes.npz")
    assert file["families"].tolist() == ["dejavu", "dejavu", "dejavu", "stixgeneral"]
    shapes = file["shapes"]
    for shape in shapes.reshape(-1, 48, 48):
        rows, columns = np.nonzero(shape.max(1))[0], np.nonzero(shape.max(0))[0]
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == 36
        assert abs(rows[0] + rows[-1] - 47) <= 1
        assert abs(columns[0] + columns[-1] - 47) <= 1
    assert len(np.unique(shapes)) <= 8
    width = (shapes[0].max(1) > 0).sum(-1)
    assert width[LETTERS.index("W")] > 30 > 15 > width[LETTERS.index("I")]

    # Another computer paints the same images from the shapes alone.
    letters.main([*command, "--output_dir", str(tmp_path / "second")])
    for split, number in (("train", 2 * 3 * 26), ("test", 2 * 26)):
        first, second = (load_labelled_images(split, data_dir=tmp_path / name) for name in ("first", "second"))
        assert torch.equal(first.images, second.images)
        assert first.images.shape == (number, 3, 48, 48)
        assert first.labels.bincount().tolist() == [number // 26] * 26
        assert first.class_names == tuple(LETTERS)


def test_every_image_has_the_colours_of_a_scheme() -> None:
    letters = program("render_letters")
    shape = torch.zeros(1, 48, 48, dtype=torch.uint8)
    shape[:, 12:36, 12:36] = 255
    images = letters.paint(shape.repeat(2100, 1, 1), torch.Generator().manual_seed(0)).float()
    corners = torch.stack([images[:, 0, 0], images[:, -1, 0], images[:, 24, 24]], 1)
    far = (corners[:, None] - letters.SCHEMES).abs().amax((-1, -2))
    assert far.amin(1).max() <= 0.5
    assert far.argmin(1).bincount(minlength=8).min() > 200
    ink = ((images - corners[:, None, None, 2]).abs().amax(-1) < 30).flatten(1).sum(1) / 24**2
    assert 0.6 < ink.min() < 0.85  # up to 15 % smaller, on both sides
    assert 0.9 < ink.max() < 1.1


def test_pictures_are_no_letters() -> None:
    letters, rng = program("render_letters"), np.random.default_rng(0)
    usual = rng.integers(0, 2, (26, 48, 48), dtype=np.uint8) * 255
    fonts = np.stack([usual, usual, usual, usual[::-1], usual])
    assert letters.legible(fonts).tolist() == [True, True, True, False, True]
    other = usual.copy()
    other[:, :, :24] = 255 - other[:, :, :24]
    assert letters.distinct(np.stack([usual, other, usual, other])).tolist() == [True, True, False, False]


# --- the clock -------------------------------------------------------------------------------------------------------


def clock_of(**settings: float | None) -> object:
    arguments = {"warmup_steps": 10, "max_train_steps": 110, "max_seconds": None} | settings
    return program("training_utils").Clock(argparse.Namespace(**arguments))


def test_the_learning_rate_rises_and_falls_as_a_cosine() -> None:
    from diffusers.optimization import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    usual = get_cosine_schedule_with_warmup(optimizer, 10, 110).lr_lambdas[0]
    clock = clock_of()
    for step in range(111):
        assert clock.learning_rate(step) == pytest.approx(usual(step), abs=1e-9), step


def test_the_learning_rate_follows_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock, alone = clock_of(max_seconds=40.0), SimpleNamespace(num_processes=1)
    now[0] += 500  # what comes before the first step does not count
    assert not clock.is_over(alone)
    assert clock.learning_rate(10) == 1
    now[0] += 20
    assert clock.learning_rate(10) == 1  # it changes with the batch
    assert not clock.is_over(alone)
    assert clock.learning_rate(10) == pytest.approx(0.5)
    assert clock.learning_rate(100) < 0.05
    now[0] += 19
    assert not clock.is_over(alone)
    now[0] += 2
    assert clock.is_over(alone)
    assert clock.learning_rate(10) == 0
    with pytest.raises(ValueError, match="`max_seconds` must be above 0, got 0"):
        clock_of(max_seconds=0)


def test_a_training_ends_in_time(idx_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    arguments = ["--data_dir", str(idx_folder), "--output_dir", str(tmp_path / "out"), *VQ_ARGUMENTS]
    started = time.monotonic()
    arguments += ["--max_train_steps", "1000000", "--max_seconds", "1"]
    program("train_vq").main(arguments)
    assert time.monotonic() - started < 60
    assert (tmp_path / "out" / "diffusion_pytorch_model.safetensors").exists()
    # It can go on from its last step, with as many seconds again.
    checkpoints = program("training_utils").checkpoints
    first = int(checkpoints(tmp_path / "out")[-1].name.rpartition("-")[2])
    program("train_vq").main([*arguments, "--resume_from_checkpoint", "latest"])
    assert int(checkpoints(tmp_path / "out")[-1].name.rpartition("-")[2]) > first > 0


def test_a_language_model_that_the_clock_ends_is_saved(text_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    arguments = ["--data_dir", str(text_folder), "--output_dir", str(tmp_path / "out"), *MDLM_ARGUMENTS]
    loss = program("train_mdlm").main([*arguments, "--max_train_steps", "1000000", "--max_seconds", "1"])
    assert 0 < loss < 10
    assert (tmp_path / "out" / "model_index.json").exists()
    assert program("training_utils").checkpoints(tmp_path / "out")
