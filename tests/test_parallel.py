"""Sets of samples: the plan, the files, and that nothing depends on processes, batches, kills or placement."""

from __future__ import annotations

import argparse
import contextlib
import errno
import multiprocessing
import os
import random
import resource
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import datasets
import hub_server
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from hf_maskdiff import MaskGITPipeline, MDLMPipeline, MDLMTransformer, MomentScheduler, parallel
from hf_maskdiff.cli import main
from hf_maskdiff.generation import add_arguments, load_pipeline
from hf_maskdiff.parallel import SampleSet, blocks_of, plan_batches, seed_of, start_processes, write_atomically

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "generate_dataset.py"
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def pipelines(make_pipeline: Callable[..., MaskGITPipeline], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two tiny pipelines, `images` and `texts`."""
    folder = tmp_path_factory.mktemp("pipelines")
    pipe = make_pipeline()
    pipe.vqvae.quantize.embedding.weight.data.normal_()
    pipe.save_pretrained(folder / "images")
    vocabulary = {f"w{i}": i for i in range(30)} | {"[EOS]": 30, "[MASK]": 31}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[EOS]")
    model = MDLMTransformer(
        vocab_size=32, model_length=12, hidden_dim=32, cond_dim=8, n_blocks=2, n_heads=2, dropout=0.0
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    scheduler = MomentScheduler(mask_token_id=31, codebook_size=31, masking_schedule="linear")
    MDLMPipeline(words, model.eval(), scheduler).save_pretrained(folder / "texts")
    return folder


def arguments(pipeline: Path, folder: Path, num_samples: int = 20, *more: str) -> list[str]:
    required = ["--pipeline", str(pipeline), "--num_samples", str(num_samples), "--output_dir", str(folder)]
    return [*required, "--num_inference_steps", "3", "--shard_size", "16", *more]


def make(pipeline: Path, folder: Path, num_samples: int = 20, *more: str) -> Path:
    assert main(["generate", *arguments(pipeline, folder, num_samples, *more)]) == 0
    return folder


def launch(pipeline: Path, folder: Path, num_samples: int, *more: str) -> subprocess.Popen:
    """Two real processes on this CPU; see the header of the example."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += [str(EXAMPLE), *arguments(pipeline, folder, num_samples, *more)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def tokens(folder: Path) -> list[list[int]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path)["tokens"].to_pylist()]


# --- the plan ---------------------------------------------------------------------------------------------------------


@given(
    num_samples=st.integers(1, 60),
    block_size=st.integers(1, 5),
    blocks_of_shard=st.integers(1, 5),
    batch_size=st.integers(1, 20),
    kept=st.sets(st.integers(0, 20)),
    earlier_batch_size=st.integers(1, 20),
)
def test_every_sample_that_is_missing_is_planned_once(
    num_samples: int, block_size: int, blocks_of_shard: int, batch_size: int, kept: set[int], earlier_batch_size: int
) -> None:
    shard_size = block_size * blocks_of_shard
    earlier = plan_batches(num_samples, shard_size, block_size, earlier_batch_size)
    done = [(batch.start, batch.stop) for k, batch in enumerate(earlier) if k in kept]
    batches = plan_batches(num_samples, shard_size, block_size, batch_size, done)
    covered = sorted(i for batch in [*batches, *(range(*span) for span in done)] for i in batch)
    assert covered == list(range(num_samples))
    for batch in batches:
        assert batch.start // shard_size == (batch.stop - 1) // shard_size
        assert 0 < len(batch) <= -(-batch_size // block_size) * block_size
        blocks = blocks_of(batch, block_size)
        assert all(len(block) == block_size and block.start % block_size == 0 for block in blocks)
        assert {i for block in blocks for i in block if i < num_samples} == set(batch)


def test_a_seed_is_a_function_of_base_seed_and_index() -> None:
    seeds = {seed_of(base, index) for base in range(20) for index in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(3, 4) == seed_of(3, 4) != seed_of(4, 3)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    (tmp_path / parallel.HIDDEN).mkdir()
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise FULL

    monkeypatch.setattr(parallel.os, failing, fail)
    with pytest.raises(OSError, match=r"No space left on device; what is finished is kept.*file"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.rglob("*") if found.is_file()] == ["file"]


def test_damaged_files_are_made_again(pipelines: Path, tmp_path: Path) -> None:
    expected = shards(make(pipelines / "images", tmp_path / "set"))
    first, second = sorted((tmp_path / "set").glob("*.parquet"))
    first.write_bytes(first.read_bytes()[:100])
    second.unlink()
    assert shards(make(pipelines / "images", tmp_path / "set")) == expected


# --- what a set holds -------------------------------------------------------------------------------------------------


def test_images_open_with_labels_and_seeds_and_are_the_pipeline_s(pipelines: Path, tmp_path: Path) -> None:
    folder = make(pipelines / "images", tmp_path / "set", 20, "--seed", "5", "--guidance_scale", "2.0")
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"), split="train")
    assert (
        found["index"] == list(range(20))
        if isinstance(found["index"], list)
        else list(found["index"]) == list(range(20))
    )
    assert list(found["label"]) == [i % 3 for i in range(20)]
    assert list(found["seed"]) == [seed_of(5, i) for i in range(20)]
    pipe = MaskGITPipeline.from_pretrained(pipelines / "images")
    for i in (0, 7, 19):
        row, generator = found[i], torch.Generator().manual_seed(seed_of(5, i))
        given = {"num_inference_steps": 3, "guidance_scale": 2.0, "generator": [generator]}
        codes = pipe([i % 3], output_type="latent", **given).images
        assert row["tokens"] == codes.flatten().tolist()
        difference = torch.tensor(list(row["image"].tobytes())) - torch.tensor(list(row_image(pipe, codes).tobytes()))
        assert difference.abs().max() <= 1


def row_image(pipe: MaskGITPipeline, codes: torch.Tensor) -> Any:
    return pipe.image_processor.postprocess(pipe.decode_latents(codes), "pil")[0]


def test_texts_open_with_prompts_in_turn(pipelines: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts").write_text("w1 w2\nw3 [MASK:4] w5\nw7\n")
    folder = make(pipelines / "texts", tmp_path / "set", 10, "--prompt_file", str(tmp_path / "prompts"))
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"), split="train")
    assert list(found["prompt"])[:4] == ["w1 w2", "w3 [MASK:4] w5", "w7", "w1 w2"]
    assert all(row["tokens"][0] == {"w1": 1, "w3": 3, "w7": 7}[row["prompt"][:2]] for row in found)
    assert [len(row["tokens"]) for row in found][:3] == [12, 6, 12]
    assert all(31 not in row["tokens"] for row in found)
    assert len({row["text"] for row in found}) == 10


def test_classes_are_those_that_are_asked_for(pipelines: Path, tmp_path: Path) -> None:
    folder = make(pipelines / "images", tmp_path / "set", 5, "--class_labels", "2", "0")
    assert pq.read_table(next(folder.glob("*.parquet")))["label"].to_pylist() == [2, 0, 2, 0, 2]


# --- identity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_batch_size_does_not_matter(pipelines: Path, tmp_path: Path, kind: str) -> None:
    sets = [shards(make(pipelines / kind, tmp_path / size, 70, "--batch_size", size)) for size in ("1", "7", "64")]
    assert len(sets[0]) == 5
    assert sets[0] == sets[1] == sets[2]


def test_neither_do_the_number_of_samples_and_the_size_of_a_shard(pipelines: Path, tmp_path: Path) -> None:
    few = tokens(make(pipelines / "images", tmp_path / "few", 5))
    many = tokens(make(pipelines / "images", tmp_path / "many", 20, "--shard_size", "8"))
    other = tokens(make(pipelines / "images", tmp_path / "other", 5, "--seed", "1"))
    assert few == many[:5] != other


@pytest.mark.parametrize(
    ("scheduler", "more"),
    [("EntropyBoundedScheduler", ()), ("HybridScheduler", ("--num_substeps", "2"))],
)
def test_samplers_whose_steps_depend_on_the_batch_and_partial_caching(
    pipelines: Path, tmp_path: Path, scheduler: str, more: tuple[str, ...]
) -> None:
    more = ("--scheduler", scheduler, *more)
    sets = [shards(make(pipelines / "texts", tmp_path / size, 20, "--batch_size", size, *more)) for size in ("1", "64")]
    assert sets[0] == sets[1]
    assert sets[0] != shards(make(pipelines / "texts", tmp_path / "plain", 20))


@pytest.mark.parametrize(("kind", "num_samples"), [("images", 40), ("texts", 5), ("images", 1)])
def test_two_processes_make_what_one_makes(pipelines: Path, tmp_path: Path, kind: str, num_samples: int) -> None:
    process = launch(pipelines / kind, tmp_path / "two", num_samples, "--batch_size", "8")
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed
    assert printed.count("open it with") == 1
    assert shards(tmp_path / "two") == shards(make(pipelines / kind, tmp_path / "one", num_samples))


# --- stops ------------------------------------------------------------------------------------------------------------


def test_killed_at_random_moments_and_completed(pipelines: Path, tmp_path: Path) -> None:
    expected = shards(make(pipelines / "images", tmp_path / "whole", 400))
    chance, kills, context = random.Random(0), 0, multiprocessing.get_context("fork")
    for _ in range(3):
        more = ("--batch_size", "8")
        process = context.Process(target=make, args=(pipelines / "images", tmp_path / "killed", 400, *more))
        process.start()
        process.join(chance.uniform(0.1, 0.5))
        kills += process.is_alive()
        process.kill()
        process.join()
    assert kills
    whole = {name: expected[name] for name in shards(tmp_path / "killed")}
    assert shards(tmp_path / "killed") == whole
    assert shards(make(pipelines / "images", tmp_path / "killed", 400)) == expected
    assert os.listdir(tmp_path / "killed" / parallel.HIDDEN) == ["configuration.json"]


def kill(process: subprocess.Popen) -> None:
    """The launcher and its workers, each of which has a session of its own: the others of a killed one wait for it."""
    for member in [*psutil.Process(process.pid).children(recursive=True), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


@pytest.mark.slow
def test_two_processes_killed_twenty_times(pipelines: Path, tmp_path: Path) -> None:
    """Each is killed between 1 and 4 seconds after it has begun to write, until the set is complete."""
    num_samples, chance, kills = 40_000, random.Random(1), 0
    while kills < 20:
        parts = tmp_path / "killed" / parallel.HIDDEN
        before = set(parts.rglob("*"))
        process = launch(pipelines / "images", tmp_path / "killed", num_samples, "--batch_size", "8")
        end = time.monotonic() + 120
        while set(parts.rglob("*")) <= before and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 2))
        if process.poll() is not None:
            break
        kills += 1
        kill(process)
        process.communicate(timeout=60)
    print(f"{kills} kills")
    assert kills >= 10
    completed = shards(make(pipelines / "images", tmp_path / "killed", num_samples))
    assert completed == shards(make(pipelines / "images", tmp_path / "whole", num_samples))


def test_what_is_done_is_not_made_again(
    pipelines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A disk that fills up after three batches; then what is left, by other batches."""
    made: list[int] = []
    call, write = MaskGITPipeline.__call__, SampleSet.write_part

    def count(pipe: MaskGITPipeline, *args: Any, **kwargs: Any) -> Any:
        made.append(1)
        return call(pipe, *args, **kwargs)

    def fill_up(samples: SampleSet, batch: range, *rest: Any) -> None:
        if batch.start == 24:
            raise FULL
        write(samples, batch, *rest)

    monkeypatch.setattr(MaskGITPipeline, "__call__", count)
    expected = shards(make(pipelines / "images", tmp_path / "whole", 40))
    assert len(made) == 5
    with monkeypatch.context() as context:
        context.setattr(SampleSet, "write_part", fill_up)
        assert main(["generate", *arguments(pipelines / "images", tmp_path / "set", 40, "--batch_size", "8")]) == 1
    assert "No space left on device" in capsys.readouterr().err
    made.clear()
    assert shards(make(pipelines / "images", tmp_path / "set", 40, "--batch_size", "16")) == expected
    assert len(made) == 2
    made.clear()
    assert shards(make(pipelines / "images", tmp_path / "set", 40)) == expected
    assert made == []


def _with_small_files(*args: Any) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
    with open(args[0], "w", buffering=1) as sys.stderr:
        os._exit(main(["generate", *args[1:]]))


def test_a_real_limit_stops_the_program_and_loses_nothing(pipelines: Path, tmp_path: Path) -> None:
    """The system refuses to write more than so many bytes to a file: parts fit, a shard does not."""
    wanted = arguments(pipelines / "images", tmp_path / "set", 64, "--batch_size", "8", "--shard_size", "64")
    process = multiprocessing.get_context("fork").Process(target=_with_small_files, args=(tmp_path / "err", *wanted))
    process.start()
    process.join()
    assert process.exitcode == 1
    assert "File too large; what is finished is kept. Make room" in (tmp_path / "err").read_text()
    assert shards(tmp_path / "set") == {}
    assert len(list((tmp_path / "set" / parallel.HIDDEN).glob("part-*"))) == 8
    assert not list((tmp_path / "set").rglob("*.partial"))
    whole = make(pipelines / "images", tmp_path / "whole", 64, "--shard_size", "64")
    assert shards(make(pipelines / "images", tmp_path / "set", 64, "--shard_size", "64")) == shards(whole)


# --- the door ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["num_samples", "batch_size", "shard_size", "num_substeps", "decode_chunk_size"])
def test_no_samples_and_other_impossible_numbers(
    pipelines: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    assert main(["generate", *arguments(pipelines / "images", tmp_path / "set", 5, f"--{name}", "0")]) == 1
    assert f"`{name}` must be at least 1, got 0" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("more", "key"),
    [
        (("--seed", "1"), "seed"),
        (("--num_samples", "6"), "num_samples"),
        (("--scheduler", "UniformScheduler"), "scheduler"),
        (("--class_labels", "1"), "class_labels"),
    ],
)
def test_a_set_of_another_configuration_is_not_touched(
    pipelines: Path, tmp_path: Path, capsys: pytest.CaptureFixture, more: tuple[str, ...], key: str
) -> None:
    before = shards(make(pipelines / "images", tmp_path, 5))
    assert main(["generate", *arguments(pipelines / "images", tmp_path, 5, *more)]) == 1
    assert f"where `{key}` is" in capsys.readouterr().err
    assert shards(tmp_path) == before


def test_a_folder_of_other_things_is_refused(pipelines: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "thesis.tex").write_text("Chapter 1")
    for folder in (tmp_path, tmp_path / "thesis.tex"):
        assert main(["generate", *arguments(pipelines / "images", folder, 5)]) == 1
        assert "`output_dir` must be new, empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_example_says_the_same(pipelines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["generate_dataset.py", *arguments(pipelines / "images", tmp_path / "set", 0)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert stopped.value.code == 2


# --- placement --------------------------------------------------------------------------------------------------------

PLACEMENTS = [("--device_map", "balanced"), ("--device_map", "cpu"), ("--model_cpu_offload",), ("--group_offload",)]


@pytest.mark.parametrize("kind", ["images", "texts"])
@pytest.mark.parametrize("num_substeps", ["1", "2"])
def test_the_same_tokens_wherever_the_weights_are(
    pipelines: Path, tmp_path: Path, kind: str, num_substeps: str
) -> None:
    more = ("--num_substeps", num_substeps)
    expected = tokens(make(pipelines / kind, tmp_path / "plain", 8, *more))
    for k, placement in enumerate(PLACEMENTS):
        assert tokens(make(pipelines / kind, tmp_path / str(k), 8, *more, *placement)) == expected, placement


@pytest.mark.parametrize("kind", ["images", "texts"])
@pytest.mark.parametrize("num_substeps", ["1", "2"])
def test_compiled_and_in_half_precision(
    pipelines: Path, tmp_path: Path, kind: str, num_substeps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled to graphs that are run as they are; by inductor it is the same call."""
    graphs, compile = [], torch.compile

    def note(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: compile(*args, **kwargs, backend=note))
    torch.compiler.reset()
    more = ("--num_substeps", num_substeps)
    expected = tokens(make(pipelines / kind, tmp_path / "plain", 8, *more))
    assert tokens(make(pipelines / kind, tmp_path / "compiled", 8, *more, "--compile")) == expected
    torch.compiler.reset()
    assert graphs
    half = tokens(make(pipelines / kind, tmp_path / "half", 8, *more, "--dtype", "bfloat16"))
    same = [ours == theirs for a, b in zip(half, expected, strict=True) for ours, theirs in zip(a, b, strict=True)]
    assert sum(same) > 0.6 * len(same)  # rounded logits move some


def test_the_dtype_is_that_of_the_weights(pipelines: Path, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for kind, dtype in product(("images", "texts"), ("float32", "bfloat16")):
        args = parser.parse_args(arguments(pipelines / kind, tmp_path, 8, "--dtype", dtype))
        assert load_pipeline(args, start_processes()).transformer.dtype == getattr(torch, dtype)


# --- the Hub ----------------------------------------------------------------------------------------------------------


def test_a_pushed_set_has_a_card_and_its_shards(pipelines: Path, tmp_path: Path, hub: hub_server.LoopbackHub) -> None:
    folder = make(pipelines / "images", tmp_path / "set", 20, "--push_to_hub", "me/digits", "--private")
    files = hub.main["me/digits"]
    assert hub.repositories["me/digits"].private
    assert {name for name in files if not name.startswith(".")} == {"README.md", *shards(folder)}
    assert all(files[name] == content for name, content in shards(folder).items())
    assert '"num_samples": 20' in files["README.md"].decode()
    assert "POST /api/datasets/me/digits/commit/main" in hub.requests
