"""The shipped model of coloured letters: it draws what it is asked for, and its tokenizer serves other fonts."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from test_letters import LETTERS, fonts  # noqa: F401
from test_training_examples import fresh_programs, program  # noqa: F401

from hf_maskdiff import MaskGITPipeline
from hf_maskdiff.evaluation.digit_classifier import DigitClassifier
from hf_maskdiff.evaluation.image_data import load_labelled_images

ROOT = Path(__file__).parents[1]
LETTERS_MODEL = ROOT / "pipelines" / "maskgit-letters"


@pytest.fixture(scope="module")
def pipe() -> MaskGITPipeline:
    pipe = MaskGITPipeline.from_pretrained(LETTERS_MODEL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def judge() -> DigitClassifier:
    return DigitClassifier.from_pretrained(LETTERS_MODEL / "digit_classifier").eval()


def test_it_draws_the_letters_that_it_is_asked_for(pipe: MaskGITPipeline, judge: DigitClassifier) -> None:
    assert pipe.get_label_ids(LETTERS) == list(range(26))
    assert pipe.card_example == 'pipe(class_labels=["A"]).images[0].save("image.png")'
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(LETTERS))]
    images = pipe(class_labels=LETTERS, generator=generators, output_type="pt").images
    assert images.shape == (len(LETTERS), 3, 48, 48)
    read = [LETTERS[i] for i in judge.read(images)[0]]
    assert sum(a == b for a, b in zip(LETTERS, read, strict=True)) >= 20
    # A background is of one scheme: its colours above and below are those of a pair.
    schemes = program("render_letters").SCHEMES / 255
    top, bottom = images[:, :, :3, :3].mean((2, 3)), images[:, :, -3:, :3].mean((2, 3))
    far = (torch.stack([top, bottom], 1)[:, None] - schemes[:, :2]).abs().amax((-1, -2))
    assert far.amin(1).median() < 0.1
    assert len(far.argmin(1).unique()) >= 4


@torch.no_grad()
def test_its_tokenizer_gives_letters_of_other_fonts_back(
    pipe: MaskGITPipeline,
    judge: DigitClassifier,
    fonts: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    letters = program("render_letters")
    arguments = ["--font_dir", str(fonts), "--shapes", str(tmp_path / "shapes.npz"), "--paintings", "1"]
    letters.main([*arguments, "--output_dir", str(tmp_path)])
    images, labels, _ = load_labelled_images("test", data_dir=tmp_path)  # STIX, a family of the test split
    assert len(images) == len(LETTERS)
    again = pipe.vqvae(images / 255).sample.clip(0, 1)
    assert ((again - images / 255) ** 2).mean() < 0.01
    assert (judge.read(images)[0] == labels).double().mean() > 0.9
    assert (judge.read(again)[0] == labels).double().mean() > 0.9


def test_samplers_are_compared_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All measures of a sampler, in groups too, and of real images, on images that are none."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 48, 48, 3), dtype=np.uint8)
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=pixels, labels=np.arange(8) % 2, class_names=np.array(LETTERS))
    names = ["real", "tokenizer", "hybrid-0.5 6", "hybrid-0.5 6, 2 groups"]
    run = ["--beds", "letters", "--letter_dir", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--number", "4"]
    bench = importlib.import_module("samplers_at_equal_passes")
    found = bench.main([*run, "--num_seeds", "1", "--steps", "0", "4", "--samplers", *names])
    cells = {cell["sampler"]: cell for cell in found["letters"]["cells"]}
    assert set(cells) == set(names)
    assert cells["tokenizer"]["frechet"] != cells["real"]["frechet"] > 0
    assert [cells[name]["calls"] for name in names[2:]] == [4, 8]  # partial passes count too
    assert cells[names[2]]["frechet"] != cells[names[3]]["frechet"] > 0
    assert all(0 <= cell["accuracy"] <= 1 for cell in cells.values())
