"""The command line answers wrong arguments at once: before torch, or anything else that is heavy, is imported."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from configparser import ConfigParser
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
DIGITS, PLAYS = ROOT / "pipelines" / "maskgit-mnist", ROOT / "pipelines" / "mdlm-shakespeare"
GENERATE, EVALUATE = ROOT / "examples" / "generate_dataset.py", ROOT / "examples" / "evaluate.py"

# Runs many commands in one process, and says of each what it printed, how it ended, and what it imported besides the
# standard library and the command line itself.
DRIVER = """\
import contextlib, io, json, runpy, sys, time
present = set(sys.modules)
from hf_maskdiff_cli import main

def run(program, arguments):
    if program == "hf-maskdiff":
        return main(arguments)
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")

told = []
for program, *arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = run(program, arguments)
        except SystemExit as stopped:
            status = stopped.code
    packages = {name.partition(".")[0] for name in set(sys.modules) - present}
    heavy = sorted(packages - sys.stdlib_module_names - {"hf_maskdiff_cli"})
    told.append({"status": status, "out": out.getvalue(), "err": err.getvalue(), "heavy": heavy})
print(json.dumps({"told": told, "seconds": time.process_time()}))
"""


def answers(commands: Sequence[Sequence[object]]) -> dict[str, Any]:
    words = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run([sys.executable, "-c", DRIVER, words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def generate(*more: object, pipeline: object = DIGITS, output_dir: object = "new") -> list[object]:
    required = ["--pipeline", pipeline, "--num_samples", 2, "--output_dir", output_dir]
    return ["hf-maskdiff", "generate", *required, *more]


def evaluate(*arguments: object) -> list[object]:
    return ["hf-maskdiff", "evaluate", *arguments]


def convert(*arguments: object) -> list[object]:
    return ["hf-maskdiff", "convert", *arguments]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Things that are wrong in one place or another: empty and full folders, files, prompts, samples."""
    for name in ("empty", "full", "images", "texts", "several/seed-0/.generation", "listed", "amused", "drawn"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "full" / "thesis.tex").write_text("Chapter 1")
    (tmp_path / "file").write_text("content")
    (tmp_path / "prompts").write_text("a king\n \n")
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "listed" / "model_index.json").write_text("3")
    amused = {"_class_name": "AmusedPipeline", "tokenizer": ["transformers", "CLIPTokenizer"]}
    (tmp_path / "amused" / "model_index.json").write_text(json.dumps(amused))
    drawn = {"_class_name": "MaskedDiffusionTextToImagePipeline"}
    (tmp_path / "drawn" / "model_index.json").write_text(json.dumps(drawn))
    (tmp_path / "latin").write_bytes("ein König".encode("latin-1"))
    for number in range(3):
        Image.new("L", (8, 8), number).save(tmp_path / "images" / f"{number}.PNG")
        (tmp_path / "texts" / f"{number}.txt").write_text("the king speaks")
    return tmp_path


Case = tuple[list[object], int, str]  # a command, the status it ends with, and part of what it says


def refused_by_generate(folder: Path) -> list[Case]:
    full, prompts = folder / "full", folder / "prompts"
    return [
        (["hf-maskdiff", "generate"], 2, "are required: --pipeline, --num_samples, --output_dir"),
        (generate("--dtype", "int8"), 2, "argument --dtype: invalid choice: 'int8'"),
        (generate("--device_map", "cpu", "--group_offload"), 2, "not allowed with argument --device_map"),
        (generate("--batch_size", 0), 1, "`batch_size` must be at least 1, got 0. Pass a positive number."),
        (generate("--prompt_file", prompts, pipeline=PLAYS), 1, "one prompt on each line, got nothing in line 2 of"),
        (generate("--prompt_file", folder / "none", pipeline=PLAYS), 1, "No such file or directory: "),
        (generate(output_dir=full), 1, f"new, empty, or hold a set that shall be completed, got '{full}'"),
        (generate(output_dir=folder / "file"), 1, "`output_dir` must be new, empty, or hold a set"),
        (generate("--scheduler_config", "top_k"), 1, "`scheduler_config` must be key=value pairs"),
        (generate("--scheduler_config", "=4"), 1, "`scheduler_config` must be key=value pairs"),
        (generate("--scheduler", "/no/where"), 1, "or a folder that exists or a repository of the Hub, with a preset"),
        (
            generate("--scheduler", "MomentSheduler"),
            1,
            "got 'MomentSheduler': there is none of that name. Did you mean",
        ),
        (generate("--scheduler", "MomentSheduler"), 1, "Did you mean 'MomentScheduler'?"),
        (generate("--scheduler", "haltonscheduler"), 1, "Did you mean 'HaltonScheduler'?"),
        (generate("--scheduler", "MaskedDiffusionScheduler"), 1, "must be one of AncestralScheduler, Annealed"),
        (generate("--scheduler", DIGITS.parent / "maskgit-mist/scheduler"), 1, "with a preset, got "),
        (generate(pipeline=DIGITS.parent / "maskgit-mist"), 1, f"Did you mean '{DIGITS}'?"),
        (generate(pipeline=DIGITS / "transformer"), 1, f"2DModel alone. Did you mean '{DIGITS}'?"),
        (generate(pipeline=folder / "empty"), 1, "must be a folder with a model_index.json or, for a text model"),
        (generate(pipeline=folder / "file"), 1, "must be a folder with a model_index.json or, for a text model"),
        (generate("--class_labels", 3, pipeline=folder / "amused"), 1, "of the class AmusedPipeline. Open that one in"),
        (generate("--prompt_file", folder / "latin", pipeline=PLAYS), 1, "`prompt_file` must be text in UTF-8, got "),
        (generate(pipeline="/no/where"), 1, "`pipeline` must be a folder that exists, or a repository of the Hub, got"),
        (generate("--max_new_tokens", 3), 1, "`max_new_tokens` must be left out for a pipeline of images, got 3"),
        (generate("--class_labels", 3, pipeline=PLAYS), 1, "`class_labels` must be left out for a pipeline of texts"),
        (generate(pipeline=folder / "drawn"), 1, "`prompt_file` must be given for a pipeline of images from text"),
        (generate("--class_labels", 3, pipeline=folder / "drawn"), 1, "left out for a pipeline of images from text"),
    ]


def refused_by_evaluate(folder: Path) -> list[Case]:
    images, texts, file = folder / "images", folder / "texts", folder / "file"
    made = ["--num_samples", 2, "--output_dir", folder / "new"]
    return [
        (evaluate(), 1, "pass either folders of samples or --pipeline, got [] and None"),
        (evaluate(images, "--inception_layer", 5), 2, "argument --inception_layer: invalid choice: 5"),
        (evaluate(images, "--eval_batch_size", 0), 1, "`eval_batch_size` must be at least 1, got 0"),
        (evaluate(images, "--num_samples", 3), 1, "--num_samples is for --pipeline, got 3 with folders"),
        (evaluate(images, "--save_statistics", "mu"), 1, "must name a file that ends in .npz, got 'mu'"),
        (evaluate(images, images), 1, "a set counts once"),
        (evaluate(images, texts), 1, "sets in one table must be all images or all texts"),
        (evaluate(images, "--output_dir", images / "report"), 1, "--output_dir must not lie among the samples"),
        (evaluate(images, "--output_dir", file), 1, "--output_dir must be a folder, got the file"),
        (evaluate(images, "--judge", "gpt2"), 1, "--judge is not for images, got 'gpt2'. Leave it out."),
        (evaluate(images, "--reference", "no.npz"), 1, "must be an .npz with `mu` and `sigma`, got 'no.npz'"),
        (evaluate(images, "--reference", "a.npz", "--max_reference", 5), 1, "--max_reference is not for statistics"),
        (evaluate(images, "--reference", texts), 1, "the reference of images must be images, got texts in"),
        (evaluate(folder / "several" / "seed-0", "--reference", "/no/where"), 1, "samples must be a folder, or a data"),
        (evaluate(images, "--network", "/no/where"), 1, "--network must be a folder that exists, or a repository"),
        (evaluate(images, "--inception_weights", "a.pth"), 1, "the Inception weights must be a file, got 'a.pth'"),
        (evaluate(texts, "--image_size", 8), 1, "--image_size is not for texts, got 8"),
        (evaluate(texts, "--reference", texts), 1, "a reference of texts serves MAUVE, which needs --judge"),
        (evaluate(texts, "--ngram", images), 1, "texts are compared with texts, got images in"),
        (evaluate(images, "--network", "inceptoin"), 1, "got 'inceptoin'. Did you mean 'inception'?"),
        (evaluate(folder / "image"), 1, f"Did you mean '{folder / 'images'}'?"),
        (evaluate("--pipeline", folder / "amused", *made), 1, "of the class AmusedPipeline. Open that one in Python"),
        (evaluate("--pipeline", DIGITS, *made, "--scheduler", "MomentSheduler"), 1, "Did you mean 'MomentScheduler'?"),
        (evaluate(folder / "empty"), 1, "which holds none. Check the path."),
        (evaluate(file), 1, "samples must lie in a folder, got the file"),
        (evaluate(folder / "none"), 1, "samples must be a folder, or a data set of the Hub"),
        (evaluate(folder / "several"), 1, "one set is one folder"),
        (evaluate("--pipeline", DIGITS), 1, "--pipeline needs --num_samples and --output_dir"),
        (evaluate("--pipeline", DIGITS, *made, "--num_threads", 0), 1, "`num_threads` must be at least 1, got 0"),
        (evaluate("--pipeline", PLAYS, *made, "--image_size", 8), 1, "--image_size is not for texts, got 8"),
        (evaluate("--pipeline", PLAYS, *made, "--prompt_file", folder / "prompts"), 1, "got nothing in line 2 of"),
    ]


def refused_by_convert(folder: Path) -> list[Case]:
    full, file, new = folder / "full", folder / "file", folder / "new"
    return [
        (convert("them/model"), 2, "the following arguments are required: output"),
        (convert(file, new, "--num_attention_heads", "x"), 2, "invalid int value: 'x'"),
        (convert(file, full), 1, f"`output` must be a new or empty folder, got '{full}'. Pass another one."),
        (convert("/no/where", new), 1, "`source` must be a file, a folder, a repository on the Hub or a file in one"),
        (convert("./model.pth", new), 1, "`source` must be a file, a folder, a repository on the Hub or a file in one"),
        (convert(file, new, "--revision", "main"), 1, "`revision` must be left out for a path on this machine"),
        (convert(folder / "empty", new), 1, "`source` must hold a checkpoint (.pth, .pt, .ckpt, .bin, or flax"),
        (convert(folder / "model.safetensors", new), 1, "must be the folder of 'model.safetensors'"),
    ]


def demo(*arguments: object) -> list[object]:
    return ["hf-maskdiff", "demo", *arguments]


def refused_by_demo(folder: Path) -> list[Case]:
    mist = DIGITS.parent / "maskgit-mist"
    return [
        (demo("--port", "x"), 2, "argument --port: invalid int value: 'x'"),
        (demo("--dtype", "int8"), 2, "argument --dtype: invalid choice: 'int8'"),
        (demo("--port", 0), 1, "`port` must be in 1 .. 65535, got 0. Leave it out for a free one."),
        (demo("--port", 70000), 1, "`port` must be in 1 .. 65535, got 70000."),
        (demo("--pipeline", DIGITS, mist), 1, f"Did you mean '{DIGITS}'?"),
        (demo("--pipeline", folder / "empty"), 1, "must be a folder with a model_index.json or, for a text model"),
        (demo("--pipeline", folder / "amused"), 1, "of the class AmusedPipeline. Open that one in Python"),
    ]


def refused_by_all(folder: Path) -> list[Case]:
    by_examples: list[Case] = [
        (
            [GENERATE, *generate("--batch_size", 0)[2:]],
            2,
            "generate_dataset.py: error: `batch_size` must be at least 1",
        ),
        ([EVALUATE, folder / "empty"], 2, "evaluate.py: error: a folder of samples must hold images"),
    ]
    by_none: Case = (["hf-maskdiff"], 2, "the following arguments are required: command")
    by_commands = [*refused_by_generate(folder), *refused_by_evaluate(folder), *refused_by_convert(folder)]
    by_commands += refused_by_demo(folder)
    return [by_none, *by_commands, *by_examples]


def test_wrong_arguments_are_answered_before_anything_heavy_is_imported(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    cases = refused_by_all(folder)
    found = answers([command for command, _, _ in cases])
    for (command, status, said), answer in zip(cases, found["told"], strict=True):
        assert (answer["status"], answer["heavy"], answer["out"]) == (status, [], ""), (command, answer)
        assert said in answer["err"], (command, answer)
        assert "Traceback" not in answer["err"]
    assert found["seconds"] < 3  # all of them together
    assert sorted(folder.rglob("*")) == before


def test_help_is_there_at_once() -> None:
    programs = [["hf-maskdiff"], ["hf-maskdiff", "convert"], ["hf-maskdiff", "generate"], ["hf-maskdiff", "evaluate"]]
    programs += [["hf-maskdiff", "demo"], ["hf-maskdiff", "score"], ["hf-maskdiff", "lm_eval"], ["hf-maskdiff", "tune"]]
    found = answers([[*program, "--help"] for program in [*programs, [GENERATE], [EVALUATE]]])
    assert all((answer["status"], answer["heavy"], answer["err"]) == (0, [], "") for answer in found["told"])
    first, *others = [answer["out"] for answer in found["told"]]
    assert all(command in first for command in ("convert", "generate", "evaluate", "demo", "score", "lm_eval", "tune"))
    said = (
        "--revision",
        "--num_substeps",
        "--judge",
        "--port",
        "--estimator",
        "lm_eval",
        "--max_passes",
        "--num_substeps",
        "--judge",
    )
    for option, text in zip(said, others, strict=True):
        assert option in text
    assert found["seconds"] < 3


def console_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The program in a new process, as the script does it that an installer makes of setup.cfg."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    name, _, target = setup["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, function = target.partition(":")
    program = f"import sys; from {module} import {function}; sys.argv[0] = {name!r}; sys.exit({function}())"
    return subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)


def test_the_console_script_fails_within_three_seconds(folder: Path) -> None:
    before = getrusage(RUSAGE_CHILDREN)  # of the processor: what else runs does not count
    done = console_script("generate", "--pipeline", DIGITS, "--num_samples", 2, "--output_dir", folder / "full")
    after = getrusage(RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("hf-maskdiff generate: `output_dir` must be new, empty, or hold a set")
    assert done.stderr.count("\n") == 1


def test_the_console_script_works(tmp_path: Path) -> None:
    command = ("generate", "--pipeline", DIGITS, "--num_samples", 2, "--output_dir", tmp_path / "set")
    done = console_script(*command, "--num_inference_steps", 2)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'set'}: open it with `datasets.load_dataset(" in done.stdout
    assert [path.name for path in (tmp_path / "set").glob("*.parquet")] == ["train-000000000-000000002.parquet"]


@pytest.mark.parametrize("module", ["hf_maskdiff", "hf_maskdiff_cli"])
def test_both_packages_are_the_program(
    module: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["-m", "convert", str(folder / "file"), str(folder / "full")])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(module, run_name="__main__")
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("hf-maskdiff convert: `output` must be a new or empty folder")


def test_the_library_refuses_what_the_command_line_refuses(folder: Path) -> None:
    """The rules are not the program's alone: the functions that do the work apply them, too."""
    from hf_maskdiff.conversion.convert import convert
    from hf_maskdiff.evaluation.samples import load_samples
    from hf_maskdiff.parallel import SampleSet

    with pytest.raises(ValueError, match="`output` must be a new or empty folder"):
        convert(folder / "file", folder / "full")
    with pytest.raises(ValueError, match="`source` must be a file, a folder"):
        convert("/no/where", folder / "new")
    with pytest.raises(ValueError, match="`source` must hold a checkpoint"):
        convert(folder / "empty", folder / "new")
    with pytest.raises(ValueError, match="which holds none"):
        load_samples(folder / "empty")
    with pytest.raises(ValueError, match="`output_dir` must be new, empty"):
        SampleSet(folder / "full", {"num_samples": 1, "shard_size": 1, "block_size": 1}).open()


def test_an_index_that_is_none_is_left_to_those_who_open_it(folder: Path) -> None:
    from hf_maskdiff_cli.samples import kind_of_saved_pipeline

    assert [kind_of_saved_pipeline(str(where)) for where in (DIGITS, PLAYS)] == ["images", "texts"]
    assert [kind_of_saved_pipeline(str(folder / name)) for name in ("listed", "empty", "none")] == [None] * 3


# --- names, and errors that only show at work -------------------------------------------------------------------------


def test_the_names_that_the_command_line_knows_are_those_of_the_package() -> None:
    import hf_maskdiff
    from hf_maskdiff import pipelines, schedulers
    from hf_maskdiff_cli.names import PIPELINES, SCHEDULERS

    classes = [getattr(schedulers, name) for name in schedulers.__all__]
    concrete = [c for c in classes if issubclass(c, schedulers.MaskedDiffusionScheduler) and not c.__abstractmethods__]
    assert [c.__name__ for c in concrete] == list(SCHEDULERS)
    exported = [getattr(pipelines, name) for name in pipelines.__all__]
    diffusers_pipelines = [c for c in exported if isinstance(c, type) and issubclass(c, hf_maskdiff.DiffusionPipeline)]
    assert {c.__name__ for c in diffusers_pipelines} == set(PIPELINES)


def told(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    """What a command that fails says: one line, after the bars of what was loaded."""
    from hf_maskdiff_cli import main

    capsys.readouterr()
    assert main([*map(str, command)][1:]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    *_, last = said.splitlines()
    assert last.startswith(f"hf-maskdiff {command[1]}: ")
    return last


@pytest.mark.parametrize("device", ["cuda", "cuda:99", "gpu", "meta", "mps:7", "privateuseone"])
def test_a_device_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str], device: str) -> None:
    import torch

    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    for command in (
        evaluate(folder / "images", "--network", DIGITS / "digit_classifier", "--device", device),
        evaluate("--pipeline", DIGITS, "--num_samples", 2, "--output_dir", folder / "new", "--device", device),
    ):
        said = told(capsys, *command)
        assert "--device must be a device of this machine, such as cpu" in said
        assert f"got '{device}': " in said
    assert not (folder / "new").exists()


def test_things_that_cannot_be_loaded_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(ROOT)
    new = folder / "new"
    said = told(capsys, *generate(pipeline="maskgit-mist", output_dir=new))
    assert "got 'maskgit-mist': " in said
    assert "Did you mean 'pipelines/maskgit-mnist'?" in said
    shutil.copytree(DIGITS, folder / "damaged")
    weights = folder / "damaged" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"got '{folder / 'damaged'}': " in told(capsys, *generate(pipeline=folder / "damaged", output_dir=new))
    assert f"got '{folder / 'listed'}': " in told(capsys, *generate(pipeline=folder / "listed", output_dir=new))
    (folder / "other").mkdir()
    (folder / "other" / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    for scheduler, reason in (
        (folder / "other", "it holds a DDPMScheduler, which is for other models"),
        (DIGITS, f"Did you mean '{DIGITS / 'scheduler'}'?"),
        ("me/preset", "'me/preset' is not on this machine, and the Hub was not reached: "),
    ):
        assert reason in told(capsys, *generate("--scheduler", scheduler, output_dir=new))
    assert not new.exists()


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("choise_temperature=4", "Did you mean 'choice_temperature'?"),
        ("choice_temperature=hot", "`choice_temperature` must be a number of at least 0"),
        ('choice_temperature=["a", "b"]', "`choice_temperature` must be a number of at least 0 or a pair (start, end)"),
        ("top_k=1.5", "`top_k` must be an integer of at least 1, got 1.5"),
        ("mask_token_id=3", "must leave `mask_token_id` as it is for the model, 128, got 3"),
        ("codebook_size=5000", "must leave `codebook_size` as it is for the model, 128, got 5000"),
    ],
)
def test_settings_that_do_not_fit(folder: Path, capsys: pytest.CaptureFixture[str], setting: str, reason: str) -> None:
    assert reason in told(capsys, *generate("--scheduler_config", setting, output_dir=folder / "new"))
    assert not (folder / "new").exists()


def test_references_and_networks_that_are_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    for number in range(70):
        Image.new("L", (28, 28), number).save(folder / "images" / f"{number}.png")
    (folder / "empty.npz").write_bytes(b"")
    (folder / "zip.npz").write_bytes(b"PK\x03\x04 and no more")
    np.savez(folder / "flat.npz", mu=np.zeros(64), sigma=np.zeros(64))
    np.savez(folder / "nan.npz", mu=np.full(64, np.nan), sigma=np.eye(64))
    for name in ("empty", "zip", "flat", "nan"):
        reference = ("--network", DIGITS / "digit_classifier", "--reference", folder / f"{name}.npz")
        said = told(capsys, *evaluate(folder / "images", *reference))
        assert f"must be an .npz with `mu` and `sigma`, got '{folder / name}.npz'" in said
    for network in (DIGITS, DIGITS / "transformer", PLAYS / "transformer"):
        said = told(capsys, *evaluate(folder / "images", "--network", network))
        assert f"or the folder or repository of a classifier of images, grey or RGB, got '{network}': " in said


def test_no_room_a_stop_and_what_was_not_foreseen(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from hf_maskdiff.generation import ImageSource
    from hf_maskdiff_cli import main

    command = generate(output_dir=folder / "new")

    def failing_with(error: BaseException) -> None:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(ImageSource, "sample", fail)

    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
    ):
        failing_with(error)
        assert "Pass a smaller --block_size or --batch_size, --dtype bfloat16" in told(capsys, *command)
    failing_with(RuntimeError("of the\n  depth"))
    said = told(capsys, *command)
    assert "generate: RuntimeError: of the depth (Not foreseen. " in said
    assert said.endswith("prints after HF_MASKDIFF_TRACEBACK=1.)")
    with monkeypatch.context() as context:
        context.setenv("HF_MASKDIFF_TRACEBACK", "1")
        with pytest.raises(RuntimeError, match="depth"):
            main([*map(str, command)][1:])
    failing_with(KeyboardInterrupt())
    assert main([*map(str, command)][1:]) == 130
    assert capsys.readouterr().err.endswith("hf-maskdiff generate: stopped; what is finished is kept\n")


def test_a_real_lack_of_memory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What this torch says where a tensor does not fit into the CPU's memory is understood."""
    import torch

    from hf_maskdiff.devices import telling_of_memory

    with (
        pytest.raises(MemoryError, match=r"must hold model and batch, got: .* Pass less\."),
        telling_of_memory("Pass less."),
    ):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="other"), telling_of_memory("Pass less."):
        raise RuntimeError("other")


def test_suggestions_are_made_where_they_are_likely() -> None:
    from hf_maskdiff_cli.names import SCHEDULERS, did_you_mean, did_you_mean_folder

    assert did_you_mean("MomentSheduler", SCHEDULERS) == "Did you mean 'MomentScheduler'?"
    assert did_you_mean("moment", SCHEDULERS) == "Did you mean 'MomentScheduler'?"
    assert did_you_mean("gpt2", SCHEDULERS) == did_you_mean("x", []) == ""
    assert did_you_mean_folder("/no/where") == did_you_mean_folder(str(DIGITS)) == ""
    assert did_you_mean_folder(str(ROOT / "maskgit-mist")) == f"Did you mean '{DIGITS}'?"


# --- the demo page ----------------------------------------------------------------------------------------------------


def options_of_demo(*words: object) -> Any:
    from hf_maskdiff_cli.program import parser

    return parser().parse_args(["demo", *map(str, words)])


def test_without_gradio_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from hf_maskdiff_cli import demo, main

    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    assert main(["demo", "--pipeline", str(DIGITS)]) == 1
    said = 'the demo page needs gradio, which is not installed. Run `pip install "hf-maskdiff[demo]"`.'
    assert capsys.readouterr().err == f"hf-maskdiff demo: {said}\n"


def test_the_demo_shows_the_pipelines_of_the_folder_it_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_maskdiff_cli.demo import pipelines_here

    monkeypatch.chdir(tmp_path)
    shipped = sorted(str(path.parent) for path in ROOT.glob("pipelines/*/model_index.json"))
    assert str(DIGITS) in shipped
    assert pipelines_here() == shipped  # those of the source
    for name in ("b", "a", "empty"):
        (tmp_path / "pipelines" / name).mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "pipelines" / name / "model_index.json").write_text("{}")
    assert pipelines_here() == ["pipelines/a", "pipelines/b"]


def test_without_any_pipeline_the_demo_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_maskdiff_cli import demo

    monkeypatch.setattr(demo, "pipelines_here", list)
    with pytest.raises(ValueError, match=r"`pipeline` must be given where there is no folder pipelines/ with some"):
        demo.check_arguments(options_of_demo())


def test_the_checked_arguments_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from hf_maskdiff_cli import demo

    served: list[Any] = []
    monkeypatch.setattr(demo, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "hf_maskdiff.demo.serve", SimpleNamespace(serve=served.append))  # type: ignore
    demo.run(options_of_demo("--pipeline", DIGITS, "--port", 7999, "--host", "0.0.0.0"))
    (args,) = served
    assert (args.pipeline, args.port, args.host, args.device) == ([str(DIGITS)], 7999, "0.0.0.0", None)
