"""The examples, run as a newcomer runs them: they say what they did, their pictures hold what they promise."""

from __future__ import annotations

import ast
import importlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
import textwrap
import tokenize
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import fresh
import numpy as np
import pytest
import torch
from PIL import Image

from hf_maskdiff import (
    ChooseThenSampleScheduler,
    ConfidenceScheduler,
    MaskGITPipeline,
    MomentScheduler,
    UniformScheduler,
)

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(path for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text())
TRAINED = ROOT / "pipelines" / "maskgit-mnist"
SAMPLERS = ["uniform", "halton", "confidence", "maskgit", "moment", "hybrid"]
SIDE, GAP, MARGIN, TOP = 56, 6, 16, 40  # pixels of the pictures: 8 x 8 and 28 x 28 are both enlarged to 56 x 56


def start(name: str, *arguments: str | Path, folder: Path, run: Callable[..., Any] = fresh.run) -> str:
    """Runs an example in a folder that is not the repository, and returns what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = run(EXAMPLES / name, *arguments, environment=environment, folder=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def from_nothing(
    program: Path, *arguments: str, environment: dict[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    """By a new interpreter."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(program), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def images_of(picture: Image.Image, num_rows: int, num_columns: int) -> np.ndarray:
    """The enlarged images of a picture, `(rows, columns, SIDE, SIDE)`; they end at its right and lower margin."""
    array = np.asarray(picture.convert("L"))
    left = array.shape[1] - MARGIN - num_columns * (SIDE + GAP) + GAP
    cells = [
        [array[TOP + r * (SIDE + GAP) :, left + c * (SIDE + GAP) :][:SIDE, :SIDE] for c in range(num_columns)]
        for r in range(num_rows)
    ]
    assert array.shape[0] == TOP + num_rows * (SIDE + GAP) - GAP + MARGIN
    return np.array(cells)


@pytest.fixture(scope="module")
def folder(make_pipeline: Callable[..., MaskGITPipeline], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples run; it holds `tiny`, a pipeline of three classes with names and the plainest sampler."""
    folder = tmp_path_factory.mktemp("examples")
    pipe = make_pipeline(UniformScheduler(mask_token_id=16, codebook_size=16))
    # A new codebook's entries are all but equal: images would hardly depend on their codes.
    pipe.vqvae.quantize.embedding.weight.data.normal_()
    pipe.save_pretrained(folder / "tiny")
    return folder


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[..., None]:
    """Runs an example within this process, where torch is already imported."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(folder)

    def run(path: Path, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        runpy.run_path(str(path), run_name="__main__")

    return run


# --- one picture -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture(folder: Path) -> tuple[Image.Image, str]:
    printed = start("generate_image.py", "--pipeline", "tiny", "--seed", "5", folder=folder, run=from_nothing)
    return Image.open(folder / "samples.png"), printed


def test_picture_has_a_row_for_each_sampler_and_a_column_for_each_class(picture: tuple[Image.Image, str]) -> None:
    images = images_of(picture[0], len(SAMPLERS), 3)
    assert picture[0].getpixel((0, 0)) == 255
    assert len({row.tobytes() for row in images}) == len(SAMPLERS)
    assert all(len({image.tobytes() for image in row}) == 3 for row in images)
    small = images[..., ::7, ::7]  # enlarged by repeating pixels
    assert np.array_equal(small.repeat(7, -1).repeat(7, -2), images)


def test_the_table_is_printed_too(picture: tuple[Image.Image, str]) -> None:
    header, *rows, last = picture[1].splitlines()
    assert header.split() == ["sampler", "steps", "passes", "seconds"]
    assert [row.split()[:3] for row in rows] == [[sampler, "4", "4"] for sampler in SAMPLERS]
    assert all(0 < float(row.split()[3]) < 60 for row in rows)
    assert "samples.png" in last


def test_the_images_are_the_pipeline_s(picture: tuple[Image.Image, str], folder: Path) -> None:
    """The first row is the plain sampler of the folder itself, an image a seed."""
    pipe = MaskGITPipeline.from_pretrained(folder / "tiny")
    generators = [torch.Generator().manual_seed(5 + i) for i in range(3)]
    expected = pipe(class_labels=["cat", "dog", "owl"], num_inference_steps=4, generator=generators).images
    for ours, image in zip(images_of(picture[0], len(SAMPLERS), 3)[0], expected, strict=True):
        assert np.array_equal(ours[::7, ::7], np.asarray(image))


def test_the_same_seed_gives_the_same_picture_and_another_one_another(
    picture: tuple[Image.Image, str], folder: Path, in_process: Callable[..., None]
) -> None:
    pictures = []
    for seed in ("5", "6"):
        output = f"new folder/{seed}.png"
        in_process(EXAMPLES / "generate_image.py", "--pipeline", "tiny", "--seed", seed, "--output", output)
        pictures.append(images_of(Image.open(folder / output), len(SAMPLERS), 3))
    assert np.array_equal(pictures[0], images_of(picture[0], len(SAMPLERS), 3))
    assert not np.array_equal(pictures[0], pictures[1])


def test_rows_are_samplers_by_steps(
    folder: Path, in_process: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--pipeline", "tiny", "--labels", "owl", "0", "--schedulers", "hybrid", "moment"]
    arguments += ["--steps", "1", "3", "40", "--guidance_scale", "2", "--output", "options.png"]
    in_process(EXAMPLES / "generate_image.py", *arguments)
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()[1:-1]]
    # An image has 16 tokens: of 40 steps 16 are run. Each costs two passes.
    counts = [("1", "2"), ("3", "6"), ("40", "32")]
    assert rows == [[sampler, steps, passes] for sampler in ("hybrid", "moment") for steps, passes in counts]
    images = images_of(Image.open(folder / "options.png"), 6, 2)
    # One step empties every row: then all samplers draw plainly, from the same noise.
    assert np.array_equal(images[0], images[3])
    assert not np.array_equal(images[1], images[4])


def test_long_names_fit_above_their_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    draw_sheet = importlib.import_module("generate_image").draw_sheet
    tile = Image.new("L", (8, 8))
    sheet = np.asarray(draw_sheet([("", "", [tile, tile])], ["an extraordinarily long name", "x"]))
    header = sheet[:TOP, sheet.shape[1] - MARGIN - 2 * SIDE - GAP - 4 :]
    inked = np.flatnonzero((header < 255).any(0))
    between = inked[(inked > 4 + SIDE) & (inked < 4 + SIDE + GAP)]
    assert len(inked)
    assert not len(between)
    assert inked.min() >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pipeline", "nowhere"], r"`pipeline` must be a pipeline folder.*'nowhere'.*--pipeline FOLDER"),
        (["--labels", "3"], r"`class_labels` must be in 0 \.\. 2, got 3\."),
        (["--labels", "-1"], r"`class_labels` must be in 0 \.\. 2, got -1\."),
        (["--labels", "cta"], r"got 'cta'\. Did you mean one of \['cat'"),
        (["--steps", "0"], r"`num_inference_steps` must be an integer of at least 1, got 0\."),
        (["--schedulers", "best"], r"invalid choice: 'best'"),
    ],
)
@pytest.mark.parametrize("name", ["generate_image.py", "animate_unmasking.py"])
def test_errors_are_clear(
    name: str,
    arguments: list[str],
    message: str,
    in_process: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as exit_info:
        in_process(EXAMPLES / name, "--pipeline", "tiny", "--output", "never.png", *arguments)
    assert exit_info.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not Path("never.png").exists()


# --- the animation ---------------------------------------------------------------------------------------------------


def check_animation(path: Path, num_columns: int, num_steps: int) -> None:
    """A frame for every step and one before the first: all grey there, hardly any at the end, ever less between."""
    with Image.open(path) as animation:
        assert animation.n_frames == num_steps + 1
        assert animation.info["loop"] == 0
        images, durations = [], []
        for n in range(animation.n_frames):
            animation.seek(n)
            images.append(images_of(animation, len(SAMPLERS), num_columns))
            durations.append(animation.info["duration"])
    assert durations[-1] > 2 * durations[0]
    grey = [np.isin(image, (127, 128)).mean(axis=(1, 2, 3)) for image in images]
    assert np.all(grey[0] == 1)
    assert np.all(grey[-1] < 0.2)
    assert np.all(np.diff(grey, axis=0) < 0)
    final = images[-1]
    assert len({row.tobytes() for row in final}) == len(SAMPLERS)
    assert path.stat().st_size < 1e6


def test_animation(folder: Path) -> None:
    printed = start("animate_unmasking.py", "--pipeline", "tiny", folder=folder)
    assert [line.split(":")[0] for line in printed.splitlines()[:-1]] == SAMPLERS
    assert "unmasking.gif: 9 frames" in printed
    check_animation(folder / "unmasking.gif", num_columns=3, num_steps=8)


def test_the_last_frame_of_the_animation_is_the_picture(folder: Path, in_process: Callable[..., None]) -> None:
    arguments = ["--pipeline", "tiny", "--steps", "5"]
    in_process(EXAMPLES / "generate_image.py", *arguments, "--output", "five.png")
    in_process(EXAMPLES / "animate_unmasking.py", *arguments, "--output", "five.gif")
    with Image.open(folder / "five.gif") as animation:
        animation.seek(animation.n_frames - 1)
        last = images_of(animation, len(SAMPLERS), 3)
    assert np.array_equal(last, images_of(Image.open(folder / "five.png"), len(SAMPLERS), 3))


# --- editing ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(folder: Path) -> np.ndarray:
    """Six images in the format of MNIST's files; returned is the first of each class."""
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8)
    labels = np.array([2, 0, 2, 0, 1, 1], dtype=np.uint8)
    (folder / "digits").mkdir()
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
        (folder / "digits" / f"t10k-{name}-ubyte").write_bytes(header + array.tobytes())
    return images[[1, 4, 0]]


def test_edits_are_the_pipeline_s(folder: Path, digits: np.ndarray) -> None:
    printed = start("edit_image.py", "--pipeline", "tiny", "--data_dir", "digits", "--steps", "4", folder=folder)
    header, *table, last = printed.splitlines()
    assert header.split() == ["edit", "sampler", "steps", "changed"]
    assert [line.split()[-2] for line in table] == ["4", "4", "1", "2", "3", "4"]
    assert "edits.png: 10 rows of 3 images" in last
    rows = images_of(Image.open(folder / "edits.png"), 10, 3)[:, :, ::7, ::7]
    assert np.array_equal(rows[0], digits)

    pipe = MaskGITPipeline.from_pretrained(folder / "tiny")
    images = [Image.fromarray(digit) for digit in digits]
    mask_image = np.zeros((8, 8))
    mask_image[:, 4:] = 1
    edits: list[dict[str, Any]] = [
        {"mask_image": np.zeros((8, 8))},
        {"class_labels": [0, 1, 2], "mask_image": mask_image},
        {"class_labels": [1, 2, 0], "strength": 0.5},
    ]
    pipe.scheduler = MomentScheduler.from_config(pipe.scheduler.config, choice_temperature=6.0)
    for row, arguments in zip((1, 3, 7), edits, strict=True):
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
        expected = pipe(image=images, num_inference_steps=4, generator=generators, **arguments).images
        assert np.array_equal(rows[row], np.array([np.asarray(image) for image in expected]))
    # What will be drawn anew is grey.
    assert (rows[2][:, :, 4:] == 128).all()
    assert (rows[4][:, 4:] == 128).all()
    assert (rows[2][:, :, :4] != 128).any()


def test_editing_errors_are_clear(
    folder: Path, digits: np.ndarray, in_process: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["--strengths", "2"], r"`strength` must be in \(0, 1\], got 2\.0"),
        (["--data_dir", "nowhere"], r"`data_dir` must be a folder, got 'nowhere'"),
    ):
        with pytest.raises(SystemExit) as exit_info:
            in_process(EXAMPLES / "edit_image.py", "--pipeline", "tiny", "--data_dir", "digits", *arguments)
        assert exit_info.value.code == 2
        assert re.search(message, capsys.readouterr().err)


# --- the pipeline that was trained -----------------------------------------------------------------------------------


@pytest.mark.skipif(not TRAINED.exists(), reason=f"{TRAINED.relative_to(ROOT)} is not there")
def test_the_trained_pipeline_is_the_default(folder: Path) -> None:
    printed = start("generate_image.py", "--output", "digits.png", folder=folder)
    assert "6 rows of 10 images" in printed
    images = images_of(Image.open(folder / "digits.png"), len(SAMPLERS), 10)
    assert len({row.tobytes() for row in images}) == len(SAMPLERS)
    assert np.all(images[..., :2, :].mean(axis=(1, 2, 3)) < 40)  # digits: white in the middle of black
    assert np.all(images[..., 14:42, 14:42].mean(axis=(1, 2, 3)) > 60)
    start("animate_unmasking.py", folder=folder)
    check_animation(folder / "unmasking.gif", num_columns=10, num_steps=8)


# --- a sampler of one's own ------------------------------------------------------------------------------------------


@pytest.fixture
def own_scheduler(monkeypatch: pytest.MonkeyPatch) -> type[ChooseThenSampleScheduler]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("custom_scheduler").ReadingOrderScheduler


def own_result(pipe: MaskGITPipeline, **arguments: object) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    return pipe(
        class_labels=2, num_images_per_prompt=4, generator=generators, output_type="latent", **arguments
    ).images.flatten(1)


def test_custom_scheduler_runs(folder: Path, own_scheduler: type[ChooseThenSampleScheduler]) -> None:
    start("custom_scheduler.py", "--pipeline", "tiny", folder=folder)
    pipe = MaskGITPipeline.from_pretrained(folder / "tiny")
    pipe.scheduler = own_scheduler.from_config(pipe.scheduler.config)
    expected = pipe(class_labels=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert np.array_equal(np.asarray(Image.open(folder / "reading_order.png")), np.asarray(expected))


def test_custom_scheduler_follows_its_order(folder: Path, own_scheduler: type[ChooseThenSampleScheduler]) -> None:
    """Without a price for places it is the confidence order, at a high price the reading order."""
    pipe = MaskGITPipeline.from_pretrained(folder / "tiny")
    config = pipe.scheduler.config
    pipe.scheduler = own_scheduler.from_config(config, nats_per_place=0.0)
    confident = own_result(pipe)
    pipe.scheduler = ConfidenceScheduler.from_config(config, choice_temperature=None)
    assert torch.equal(own_result(pipe), confident)

    pipe.scheduler = own_scheduler.from_config(config, nats_per_place=1e3)
    masked = []

    def keep(pipe: MaskGITPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        masked.append(tensors["latents"].flatten(1) == 16)
        return tensors

    assert not torch.equal(own_result(pipe, callback_on_step_end=keep), confident)
    for after in masked:
        assert torch.equal(after, after.sort(dim=1).values)  # known first, masked last
    assert masked[3].any()


def test_custom_remasking_takes_tokens_back_and_keeps_what_is_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start("custom_remasking.py", "--pipeline", "tiny", folder=folder)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    pipe = MaskGITPipeline.from_pretrained(folder / "tiny")
    pipe.scheduler = importlib.import_module("custom_remasking").SecondThoughtsScheduler.from_config(
        pipe.scheduler.config
    )
    expected = pipe(class_labels=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert np.array_equal(np.asarray(Image.open(folder / "second_thoughts.png")), np.asarray(expected))
    latents = pipe(class_labels=2, output_type="latent", generator=torch.Generator().manual_seed(0)).images
    latents[:, 1:] = pipe.scheduler.config.mask_token_id
    known, seen = latents != pipe.scheduler.config.mask_token_id, []

    def keep(pipe: MaskGITPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(tensors["latents"])
        return tensors

    # One position a step, so that there are steps with ten revealed positions, of which a tenth goes back.
    own_result(pipe, latents=latents.expand(4, -1, -1), num_inference_steps=12, callback_on_step_end=keep)
    assert all(torch.equal(codes[:, known[0]], latents.expand(4, -1, -1)[:, known[0]]) for codes in seen)
    mask = pipe.scheduler.config.mask_token_id
    assert any(((after == mask) & (before != mask)).any() for before, after in pairwise(seen))


def test_custom_scheduler_is_saved_with_the_pipeline(
    folder: Path, own_scheduler: type[ChooseThenSampleScheduler]
) -> None:
    pipe = MaskGITPipeline.from_pretrained(folder / "tiny")
    pipe.scheduler = own_scheduler.from_config(pipe.scheduler.config, nats_per_place=0.7)
    pipe.save_pretrained(folder / "own")
    index = json.loads((folder / "own" / "model_index.json").read_text())
    assert index["scheduler"] == ["custom_scheduler", "ReadingOrderScheduler"]
    loaded = MaskGITPipeline.from_pretrained(folder / "own")
    assert type(loaded.scheduler) is own_scheduler
    assert loaded.scheduler.config.nats_per_place == 0.7
    assert torch.equal(own_result(loaded), own_result(pipe))


@pytest.mark.parametrize("name", ["custom_scheduler.py", "custom_remasking.py"])
def test_a_scheduler_of_one_s_own_is_short(name: str) -> None:
    """At most 30 lines that hold code; the header does not count."""
    source = (EXAMPLES / name).read_text()
    header = ast.parse(source).body[0]
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {n for token in tokens if token.type not in silent for n in range(token.start[0], token.end[0] + 1)}
    code = lines - set(range(header.lineno, header.end_lineno + 1))
    assert 10 < len(code) <= 30


# --- all programs ----------------------------------------------------------------------------------------------------


def test_there_are_programs() -> None:
    names = {path.name for path in PROGRAMS}
    assert {"generate_image.py", "animate_unmasking.py", "custom_scheduler.py", "train_vq.py"} <= names


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_the_header_s_commands_name_options_that_exist(
    path: Path, in_process: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    header = ast.get_docstring(ast.parse(path.read_text()))
    commands = re.findall(
        rf"^    (?:accelerate launch|python) examples/{path.name}((?:.*\\\n)*.*)$", header, re.MULTILINE
    )
    assert commands
    with pytest.raises(SystemExit) as exit_info:
        in_process(path, "--help")
    assert exit_info.value.code == 0
    # The help repeats the header; what follows it are the options themselves.
    options = capsys.readouterr().out.rpartition("options:")[2]
    for option in re.findall(r"--\w+", " ".join(commands)):
        assert re.search(rf"^  (-\w, )?{option}\b", options, re.MULTILINE), option


# --- texts -----------------------------------------------------------------------------------------------------------


def texts_of(printed: str) -> dict[str, tuple[str, str]]:
    """Sampler -> what is said of it, and its text."""
    blocks = re.split(r"^([\w-]+): (\d+ steps, \d+ passes), [\d.]+ s\n", printed, flags=re.MULTILINE)
    assert blocks[0] == ""
    return {
        name: (said, textwrap.dedent(text)) for name, said, text in zip(*(blocks[i::3] for i in (1, 2, 3)), strict=True)
    }


def test_a_text_from_each_sampler(folder: Path) -> None:
    texts = texts_of(start("generate_text.py", "--steps", "6", folder=folder))
    own_pace = ["ancestral", "first-hitting", "entropy-bounded"]
    assert list(texts) == [*own_pace, *SAMPLERS]
    assert len({text for _, text in texts.values()}) == len(texts)
    for name, (said, text) in texts.items():
        assert text.startswith("First Citizen:\n")
        assert len(text) > 80
        assert "MASK" not in text
        assert said == "6 steps, 6 passes" or name in own_pace


def test_filled_in_long_and_streamed_texts(in_process: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        in_process(EXAMPLES / "generate_text.py", "--schedulers", "halton", *arguments)
        return capsys.readouterr().out

    _, text = texts_of(run("--prompt", "To be, or [MASK:9] question.", "--steps", "20"))["halton"]
    assert re.fullmatch(r"To be, or .+ question\.\n", text, re.DOTALL)
    short, long = ("--prompt", "ROMEO:", "--steps", "2"), ("--max_new_tokens", "100", "--stride", "32")
    plain = texts_of(run(*short))["halton"]
    said, text = texts_of(run(*short, *long))["halton"]
    assert said == "2 steps, 6 passes"  # three blocks
    assert len(text) > len(plain[1]) + 40
    first, last, *rest = run(*short, "--stream").splitlines()
    assert first.count("_") > 20
    assert first.startswith("   1 'ROMEO:")
    assert "_" not in last
    assert texts_of("\n".join(rest) + "\n")["halton"] == plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pipeline", "nowhere"], r"`pipeline` must be a pipeline folder.*'nowhere'.*--pipeline FOLDER"),
        (["--prompt", ""], r"`prompt` must hold at least one token"),
        (["--prompt", "a [MASK:0]"], r"a mask span must read \[MASK\] or \[MASK:n\]"),
        (["--max_new_tokens", "100"], r"must fit the model's length 64.*`stride`"),
    ],
)
def test_errors_of_texts_are_clear(
    arguments: list[str],
    message: str,
    in_process: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as exit_info:
        in_process(EXAMPLES / "generate_text.py", *arguments)
    assert exit_info.value.code == 2
    assert re.search(message, capsys.readouterr().err)
