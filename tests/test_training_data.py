"""What users' folders of training data hold: colours, images without classes; and what a trained folder is good for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, VQModel
from PIL import Image
from test_training_examples import (  # noqa: F401
    MASKGIT_ARGUMENTS,
    MDLM_ARGUMENTS,
    VQ_ARGUMENTS,
    fresh_programs,
    program,
    text_folder,
)
from transformers import AutoTokenizer, pipeline

from hf_maskdiff import MDLMPipeline, MomentScheduler
from hf_maskdiff.evaluation.image_data import load_labelled_images

GREY = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def write(folder: Path, *pictures: np.ndarray | Image.Image, splits: tuple[str, ...] = ("train", "test")) -> Path:
    """The same images in two classes of each split."""
    for split in splits:
        for label in ("cat", "dog"):
            place = folder / split / label
            place.mkdir(parents=True)
            for number, picture in enumerate(pictures):
                image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
                image.save(place / f"{number}.png")
    return folder


# --- colours ----------------------------------------------------------------------------------------------------------


def test_colour_is_seen(tmp_path: Path) -> None:
    for name, pictures, channels in (
        ("grey", [GREY, GREY], 1),
        ("grey in three channels", [np.stack([GREY] * 3, -1)], 1),
        ("colour", [COLOUR, COLOUR], 3),
        ("one in colour", [GREY, COLOUR], 3),
        ("palette", [Image.fromarray(COLOUR).quantize(32)], 3),
        ("16 bits", [Image.fromarray(GREY.astype(np.uint16) * 257)], 1),
    ):
        folder = write(tmp_path / name, *pictures)
        images = load_labelled_images("train", data_dir=folder).images
        assert images.shape == (2 * len(pictures), channels, 8, 8), name
        assert load_labelled_images("train", data_dir=folder, num_channels=3).images.shape[1] == 3
    mixed = load_labelled_images("train", data_dir=tmp_path / "one in colour").images
    assert torch.equal(mixed[0], torch.from_numpy(GREY).expand(3, 8, 8))
    assert torch.equal(mixed[1], torch.from_numpy(COLOUR).permute(2, 0, 1))


def test_a_jpeg_of_grey_is_grey(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", GREY)
    for path in folder.rglob("*.png"):
        Image.open(path).convert("RGB").save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    assert load_labelled_images("test", data_dir=folder, num_channels=1).images.shape == (2, 1, 8, 8)


def test_colour_is_not_thrown_away(tmp_path: Path) -> None:
    folder = write(tmp_path, GREY, COLOUR)
    message = r"`num_channels` must be 3 for images in colour, got 1, and number 1 of the test split is one\. Leave it"
    with pytest.raises(ValueError, match=message):
        load_labelled_images("test", data_dir=folder, num_channels=1)
    with pytest.raises(ValueError, match=r"`num_channels` must be 1 \(grey\), 3 \(colour\) or None, got 2\. Leave"):
        load_labelled_images("test", data_dir=folder, num_channels=2)


def test_the_tokenizer_of_colours(tmp_path: Path) -> None:
    """Without a word about channels; a test split that happens to be grey is read in three."""
    data = write(tmp_path / "data", *[COLOUR] * 8, splits=("train",))
    write(data, GREY, splits=("test",))
    arguments = ["--data_dir", str(data), *VQ_ARGUMENTS, "--max_train_steps", "2"]
    program("train_vq").main([*arguments, "--output_dir", str(tmp_path / "vq")])
    config = VQModel.from_pretrained(tmp_path / "vq").config
    assert (config.in_channels, config.out_channels) == (3, 3)
    with pytest.raises(SystemExit, match=r"^error: `num_channels` must be 3 for images in colour, got 1"):
        program("train_vq").main([*arguments, "--output_dir", str(tmp_path / "no"), "--num_channels", "1"])


# --- images beside each other -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [".", "train", "test"])
@pytest.mark.parametrize("name", ["train_vq", "train_maskgit", "train_digit_classifier"])
def test_a_flat_folder_is_one_line(name: str, place: str, tmp_path: Path) -> None:
    folder = tmp_path / "data" / place
    folder.mkdir(parents=True)
    for letter in "ab":
        Image.fromarray(GREY).save(folder / f"{letter}.png")
    arguments = ["--data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]
    if name == "train_maskgit":
        VQModel(in_channels=1, out_channels=1).save_pretrained(tmp_path / "vq")
        arguments += ["--tokenizer", str(tmp_path / "vq"), *MASKGIT_ARGUMENTS]
    with pytest.raises(SystemExit) as stopped:
        program(name).main(arguments)
    text = str(stopped.value)
    assert "\n" not in text
    assert text.startswith("error: `data_dir` must hold a sub-folder of images for each class, got 2 beside each other")
    assert "'a.png'" in text
    assert str(folder / "cat" / "a.png") in text


def test_a_folder_without_texts_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: `data_dir` must be a folder with \.txt files, got "):
        program("train_mdlm").main(["--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")])


# --- a language model -------------------------------------------------------------------------------------------------


def test_a_trained_language_model_is_a_pipeline(text_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    arguments = ["--data_dir", str(text_folder), *MDLM_ARGUMENTS, "--max_train_steps", "4"]
    program("train_mdlm").main([*arguments, "--checkpointing_steps", "2", "--output_dir", str(tmp_path / "out")])
    pipe = MDLMPipeline.from_pretrained(tmp_path / "out")
    assert type(pipe.scheduler) is MomentScheduler
    assert (tmp_path / "out" / "README.md").is_file()
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "out")) is MDLMPipeline
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == pipe.transformer.config.vocab_size
    write = pipeline("masked-diffusion-text-generation", model=str(tmp_path / "out"), device="cpu")
    assert len(write("abc", num_inference_steps=4)[0]["generated_text"]) >= 3
