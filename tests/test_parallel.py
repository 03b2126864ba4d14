"""Sets of samples: the plan, the files, and that nothing depends on processes, batches, kills or placement."""

from __future__ import annotations

import argparse
import errno
import multiprocessing
import os
import random
import re
import resource
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import datasets
import fresh
import hub_server
import launched
import pyarrow.parquet as pq
import pytest
import torch
from diffusers.hooks.group_offloading import _is_group_offload_enabled
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_maskdiff import (
    MaskedDiffusionTextPipeline,
    MaskGITPipeline,
    MDLMPipeline,
    MDLMTransformer,
    MomentScheduler,
    parallel,
)
from hf_maskdiff.cli import main
from hf_maskdiff.generation import add_arguments, load_pipeline
from hf_maskdiff.parallel import (
    SampleSet,
    blocks_of,
    cost_of,
    cover,
    plan_batches,
    seed_of,
    start_processes,
    write_atomically,
)
from hf_maskdiff.sets import processes, publishing

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "generate_dataset.py"
FULL = OSError(errno.ENOSPC, "No space left on device")
CONFIGURATION = {"num_samples": 20, "shard_size": 16, "block_size": 8}
KINDS = ["images", "texts", "answers"]
NUM_KILLS = int(os.environ.get("HF_MASKDIFF_KILLS", "5"))


@pytest.fixture(scope="module")
def pipelines(make_pipeline: Callable[..., MaskGITPipeline], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a tiny pipeline of each class."""
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
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes))
    for parameter in llama.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    MaskedDiffusionTextPipeline(words, llama.eval(), scheduler).save_pretrained(folder / "answers")
    return folder


def arguments(pipeline: Path, folder: Path, num_samples: int = 20, *more: str) -> list[str]:
    required = ["--pipeline", str(pipeline), "--num_samples", str(num_samples), "--output_dir", str(folder)]
    required += ["--max_new_tokens", "8"] if pipeline.name == "answers" else []
    return [*required, "--num_inference_steps", "3", "--shard_size", "16", "--block_size", "8", *more]


def make(pipeline: Path, folder: Path, num_samples: int = 20, *more: str) -> Path:
    assert main(["generate", *arguments(pipeline, folder, num_samples, *more)]) == 0
    return folder


def launch(pipeline: Path, folder: Path, num_samples: int, *more: str, how: Sequence[str]) -> subprocess.Popen:
    """Two processes on this CPU by accelerate's launcher, as the README's command is in its test."""
    port = ("--main_process_port", launched.free_port())
    command = [sys.executable, "-m", "accelerate.commands.launch", *how, *port]
    command += [str(EXAMPLE), *arguments(pipeline, folder, num_samples, *more)]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, **options)


def fork(pipeline: Path, folder: Path, num_samples: int, *more: str, **how: Any) -> launched.Group:
    """The same two processes without the launcher."""
    return launched.start(EXAMPLE, arguments(pipeline, folder, num_samples, *more), folder.parent / "printed", **how)


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


@example(spans=[(0, 4), (2, 4), (6, 2)], stop=8)  # chance seldom leaves no gap and an overlap
@given(spans=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), max_size=8), stop=st.integers(1, 12))
def test_ranges_that_overlap_cover_each_sample_once(spans: list[tuple[int, int]], stop: int) -> None:
    ranges = [(begin, min(begin + size, stop)) for begin, size in spans if begin < stop]
    found = [i for (begin, end), skipped in cover(ranges, 0, stop) for i in range(begin + skipped, end)]
    assert found == (list(range(stop)) if {i for span in ranges for i in range(*span)} == set(range(stop)) else [])


def test_a_seed_is_a_function_of_base_seed_and_index() -> None:
    seeds = {seed_of(base, index) for base in range(20) for index in range(3000)}  # of many blocks
    assert len(seeds) == 60_000
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

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match=r"No space left on device; what is finished is kept.*file"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.rglob("*") if found.is_file()] == ["file"]


def test_what_a_set_cost_is_known_after_a_kill_within_the_log(pipelines: Path, tmp_path: Path) -> None:
    samples = SampleSet(make(pipelines / "images", tmp_path / "set", 20, "--batch_size", "8"), CONFIGURATION)
    passes, seconds = cost_of(samples.folder)
    assert passes == pytest.approx(3)
    assert seconds > 0
    log = samples.hidden / "cost-0.jsonl"
    log.write_text(log.read_text()[:-5])
    samples.log_cost(0, 4, 10.0, 4 * 5)
    assert cost_of(samples.folder)[0] == pytest.approx((16 * 3 + 4 * 5) / 20)


def test_damaged_files_are_made_again(pipelines: Path, tmp_path: Path) -> None:
    expected = shards(make(pipelines / "images", tmp_path / "set"))
    first, second = sorted((tmp_path / "set").glob("*.parquet"))
    first.write_bytes(first.read_bytes()[:100])
    second.unlink()
    assert shards(make(pipelines / "images", tmp_path / "set")) == expected


def test_two_runs_in_one_folder_make_one_set(pipelines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a launcher is killed, its workers are not, and the set is completed with other batches beside them."""
    expected = shards(make(pipelines / "images", tmp_path / "whole"))
    with monkeypatch.context() as context:
        context.setattr(SampleSet, "finish_shards", lambda _: True)
        make(pipelines / "images", tmp_path / "set", 20, "--batch_size", "8")
        context.setattr(SampleSet, "ranges", lambda _: [])
        make(pipelines / "images", tmp_path / "set", 20, "--batch_size", "16")
    parts = sorted(path.name for path in (tmp_path / "set" / parallel.HIDDEN).glob("part-*"))
    assert [name[5:24] for name in parts] == [
        "000000000-000000008",
        "000000000-000000016",
        "000000008-000000016",
        "000000016-000000020",
    ]
    assert shards(make(pipelines / "images", tmp_path / "set")) == expected
    assert not list((tmp_path / "set" / parallel.HIDDEN).glob("part-*"))


class Numbers:
    """Samples that take no model: what the generator of each draws."""

    features = datasets.Features({name: datasets.Value("int64") for name in ("index", "seed", "number")})
    passes = 0.0

    def sample(self, indices: range, seeds: Sequence[int]) -> dict[str, Sequence[Any]]:
        return {"number": [self.of(seed) for seed in seeds]}

    @staticmethod
    def of(seed: int) -> int:
        return int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(seed)))

    def encode(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return columns


def make_numbers(folder: Path, num_samples: int, base_seed: int = 0) -> list[Path]:
    """The files of a set of numbers, in order."""
    configuration = CONFIGURATION | {"num_samples": num_samples, "shard_size": 1024}
    state = start_processes()
    parallel.generate(Numbers(), folder, configuration, base_seed=base_seed, batch_size=400, state=state)
    return sorted(folder.glob("*.parquet"))


def test_no_two_samples_of_many_blocks_are_drawn_with_one_seed(tmp_path: Path) -> None:
    """Nor two of sets of neighbouring base seeds; and each is drawn with the seed that stands beside it."""
    numbers: list[int] = []
    for base_seed in (0, 1):
        tables = [pq.read_table(path) for path in make_numbers(tmp_path / str(base_seed), 3000, base_seed)]
        rows = [row for table in tables for row in table.to_pylist()]
        assert [row["index"] for row in rows] == list(range(3000))
        assert [row["seed"] for row in rows] == [seed_of(base_seed, i) for i in range(3000)]
        assert [row["number"] for row in rows] == [Numbers.of(row["seed"]) for row in rows]
        numbers += [row["number"] for row in rows]
    assert len(set(numbers)) == len(numbers) == 6000


def test_a_shard_is_named_by_its_first_sample_and_the_one_after_its_last(tmp_path: Path) -> None:
    files = make_numbers(tmp_path / "set", 2100)
    spans = [(0, 1024), (1024, 2048), (2048, 2100)]
    assert [path.name for path in files] == [f"train-{start:09d}-{stop:09d}.parquet" for start, stop in spans]
    assert [pq.read_table(path)["index"].to_pylist() for path in files] == [list(range(*span)) for span in spans]


# --- what a set holds -------------------------------------------------------------------------------------------------


def test_images_open_with_labels_and_seeds_and_are_the_pipeline_s(pipelines: Path, tmp_path: Path) -> None:
    folder = make(pipelines / "images", tmp_path / "set", 20, "--seed", "5", "--guidance_scale", "2.0")
    (folder / parallel.HIDDEN / "part-000000020-000000028.parquet").write_bytes(b"another set's, half a batch")
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"), split="train")
    assert list(found["index"]) == list(range(20))
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


def test_prompts_come_through_a_pipe_too(pipelines: Path, tmp_path: Path) -> None:
    """As from `--prompt_file <(command)`: what was read once cannot be read again."""
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as writer:
        writer.submit((tmp_path / "pipe").write_text, "w1 w2\nw3\n")
        folder = make(pipelines / "texts", tmp_path / "set", 3, "--prompt_file", str(tmp_path / "pipe"))
    assert pq.read_table(next(folder.glob("*.parquet")))["prompt"].to_pylist() == ["w1 w2", "w3", "w1 w2"]


def test_classes_are_those_that_are_asked_for(pipelines: Path, tmp_path: Path) -> None:
    folder = make(pipelines / "images", tmp_path / "set", 5, "--class_labels", "2", "0")
    assert pq.read_table(next(folder.glob("*.parquet")))["label"].to_pylist() == [2, 0, 2, 0, 2]


# --- identity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize(
    ("kind", "num_samples", "block_size"),
    [
        ("images", 5, "2"),
        ("images", 40, "8"),
        ("texts", 5, "8"),
        ("answers", 5, "2"),
        ("images", 1, "8"),
    ],
)
def test_two_processes_make_what_one_makes(
    pipelines: Path, tmp_path: Path, kind: str, num_samples: int, block_size: str
) -> None:
    more = ("--block_size", block_size)
    group = fork(pipelines / kind, tmp_path / "two", num_samples, *more, "--batch_size", block_size)
    assert group.wait() == [0, 0], group.printed()
    assert "".join(group.printed()).count("open it with") == 1
    assert shards(tmp_path / "two") == shards(make(pipelines / kind, tmp_path / "one", num_samples, *more))


def test_both_processes_work_and_one_bar_counts_what_they_made(pipelines: Path, tmp_path: Path) -> None:
    group = fork(pipelines / "images", tmp_path / "set", 160, "--batch_size", "8", "--shard_size", "160")
    writers: set[str] = set()
    while group.is_alive():
        time.sleep(0.001)
        partial = (path.name for path in (tmp_path / "set" / parallel.HIDDEN).glob(".part-*.partial"))
        writers |= {name.split(".")[-2] for name in partial}
    assert group.wait() == [0, 0], group.printed()
    printed = "".join(group.printed())
    bars = [line for line in re.split(r"[\r\n]+", printed) if "%|" in line and "Loading" not in line]
    counts = [re.search(r"(\d+)/160 \[.*sample/s\]", line) for line in bars]
    assert all(counts), bars
    made = [int(count[1]) for count in counts]
    assert made == sorted(made)
    assert made[-1] == 160
    assert len(writers) == 2


def test_two_machines_make_what_one_makes(pipelines: Path, tmp_path: Path) -> None:
    """Each has one process, its first; they find each other over the loopback."""
    more = ("--block_size", "2", "--batch_size", "2")
    group = fork(pipelines / "texts", tmp_path / "two", 9, *more, machines=True)
    assert group.wait() == [0, 0], group.printed()
    printed = group.printed()
    assert ["sample/s" in text for text in printed] == [True, False], printed  # one bar, of both
    assert shards(tmp_path / "two") == shards(make(pipelines / "texts", tmp_path / "one", 9, *more))


CONFIG = """\
compute_environment: LOCAL_MACHINE
debug: false
distributed_type: {kind}
downcast_bf16: 'no'
dynamo_config: {{dynamo_backend: INDUCTOR}}
gpu_ids: all
machine_rank: 0
main_training_function: main
mixed_precision: bf16
num_machines: 1
num_processes: 2
rdzv_backend: static
same_network: true
use_cpu: {use_cpu}
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize(("kind", "use_cpu"), [("MULTI_GPU", "false"), ("MULTI_CPU", "true")])
def test_the_file_that_accelerate_config_writes(pipelines: Path, tmp_path: Path, kind: str, use_cpu: str) -> None:
    """It says which processes; precision and compilation are arguments. (For MULTI_CPU accelerate starts one.)"""
    (tmp_path / "config.yaml").write_text(CONFIG.format(kind=kind, use_cpu=use_cpu))
    how = ("--config_file", str(tmp_path / "config.yaml"))
    process = launch(pipelines / "images", tmp_path / "set", 20, "--batch_size", "8", how=how)
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed
    assert shards(tmp_path / "set") == shards(make(pipelines / "images", tmp_path / "one", 20))


def test_a_config_without_gpus_is_heard_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[bool] = []
    monkeypatch.setattr(processes, "PartialState", lambda cpu, timeout: started.append(cpu))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for use_cpu in ("True", "False"):
        monkeypatch.setenv("ACCELERATE_USE_CPU", use_cpu)
        start_processes()
    assert started == [True, False]


PROGRAM_IN_A_GROUP = """
import atexit, sys
import torch
atexit.register(lambda: print(torch.distributed.is_initialized()))  # the last to be called
sys.path.insert(0, EXAMPLES)
START
assert torch.distributed.is_initialized()
"""


@pytest.mark.parametrize(
    "start",
    [
        "from hf_maskdiff.parallel import start_processes; start_processes(); start_processes()",
        "from argparse import Namespace; from training_utils import make_accelerator; "
        "make_accelerator(Namespace(mixed_precision='no'))",
    ],
)
def test_a_process_leaves_its_group_before_python_ends(start: str) -> None:
    """Else gloo's threads abort some processes of a launch after their work is done."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    examples = str(Path(__file__).parents[1] / "examples")
    program = PROGRAM_IN_A_GROUP.replace("START", start).replace("EXAMPLES", repr(examples))
    done = fresh.run(program, environment=os.environ | group)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


# --- stops ------------------------------------------------------------------------------------------------------------


def test_killed_at_random_moments_and_completed(pipelines: Path, tmp_path: Path) -> None:
    num_samples, chance, context = 800, random.Random(0), multiprocessing.get_context("fork")
    expected = shards(make(pipelines / "images", tmp_path / "whole", num_samples))
    for _ in range(3):
        more = ("--batch_size", "8")
        process = context.Process(target=make, args=(pipelines / "images", tmp_path / "killed", num_samples, *more))
        before = files(tmp_path / "killed")
        process.start()
        wait_for_a_file(tmp_path / "killed", before, process.is_alive)
        process.join(chance.uniform(0, 0.3))
        assert process.is_alive(), "it was done before it could be killed"
        process.kill()
        process.join()
        assert shards(tmp_path / "killed").items() <= expected.items()
    assert shards(make(pipelines / "images", tmp_path / "killed", num_samples)) == expected
    assert not [path for path in files(tmp_path / "killed") if "part" in path.name]


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def wait_for_a_file(folder: Path, before: set[Path], is_alive: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not [path for path in files(folder) - before if "part-" in path.name] and is_alive():
        assert time.monotonic() < end, "nothing was written"
        time.sleep(0.01)


def test_two_processes_killed_again_and_again(pipelines: Path, tmp_path: Path) -> None:
    """Each soon after its first batch."""
    num_samples, chance, started = 200 * NUM_KILLS, random.Random(1), time.monotonic()
    expected = shards(make(pipelines / "images", tmp_path / "whole", num_samples))
    cut = 0
    for k in range(NUM_KILLS):
        before = files(tmp_path / "killed")
        group = fork(pipelines / "images", tmp_path / "killed", num_samples, "--batch_size", "8")
        wait_for_a_file(tmp_path / "killed", before, group.is_alive)
        time.sleep(chance.uniform(0, 0.2))
        if not group.is_alive():  # on a fast machine the set may be whole before the last kills
            assert k >= NUM_KILLS // 2, f"launch {k} was done before it could be killed"
            break
        group.kill()
        cut += any(path.suffix == ".partial" for path in files(tmp_path / "killed"))
        assert shards(tmp_path / "killed").items() <= expected.items()
        whole = [path for path in files(tmp_path / "killed") if path.suffix == ".parquet"]
        made = sum(pq.read_metadata(path).num_rows for path in whole)  # raises where one is corrupt
    assert shards(make(pipelines / "images", tmp_path / "killed", num_samples)) == expected
    assert not [path for path in files(tmp_path / "killed") if "part" in path.name]
    seconds = time.monotonic() - started
    print(f"{NUM_KILLS} kills, {cut} within a file, {made} of {num_samples} samples before the last run")
    print(f"{seconds:.0f} s in all")


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


def _limit_files(limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def _with_small_files(*args: Any) -> None:
    _limit_files(6000)
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


@pytest.mark.parametrize(("limit", "parts"), [(6000, 8), (1000, 0)])
def test_two_processes_that_cannot_write_stop_both(pipelines: Path, tmp_path: Path, limit: int, parts: int) -> None:
    """Where a shard does not fit one of them notices, where a part does not both do; neither waits for the other."""
    more = ("--batch_size", "8", "--shard_size", "64")
    group = fork(pipelines / "images", tmp_path / "set", 64, *more, first=lambda: _limit_files(limit))
    assert group.wait() == [2, 2], group.printed()
    said = "generate_dataset.py: error: [Errno 27] File too large; what is finished is kept. Make room"
    assert all(said in printed for printed in group.printed()), group.printed()
    assert len(list((tmp_path / "set" / parallel.HIDDEN).glob("part-*"))) == parts
    assert shards(make(pipelines / "images", tmp_path / "set", 64, *more)) == shards(
        make(pipelines / "images", tmp_path / "whole", 64, *more)
    )


# --- the door ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["num_samples", "batch_size", "shard_size", "num_substeps", "decode_chunk_size"])
def test_no_samples_and_other_impossible_numbers(
    pipelines: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    assert main(["generate", *arguments(pipelines / "images", tmp_path / "set", 5, f"--{name}", "0")]) == 1
    assert f"`{name}` must be at least 1, got 0" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("images", ("--prompt_file", "FILE"), "`prompt_file` must be left out for a pipeline of images"),
        ("images", ("--max_new_tokens", "5"), "`max_new_tokens` must be left out for a pipeline of images, got 5"),
        ("texts", ("--class_labels", "1"), r"`class_labels` must be left out for a pipeline of texts, got [1]"),
        ("images", ("--class_labels", "3"), "`class_labels` must be in 0 .. 2, got 3"),
        ("texts", ("--prompt_file", "EMPTY"), "`prompt_file` must hold one prompt on each line, got an empty file"),
        ("texts", ("--prompt_file", "BLANK"), "`prompt_file` must hold one prompt on each line, got nothing in line 2"),
        ("texts", ("--prompt_file", "MISSING"), "No such file or directory: "),
        ("images", ("--device_map", "auto"), "`device_map` must be one that diffusers knows, got 'auto': "),
        ("images", ("--num_inference_steps", "0"), "`num_inference_steps` must be an integer of at least 1, got 0"),
    ],
)
def test_arguments_that_do_not_fit(
    pipelines: Path, tmp_path: Path, capsys: pytest.CaptureFixture, kind: str, more: tuple[str, ...], message: str
) -> None:
    """They are refused, not ignored, and the folder is not spoilt by them."""
    for name, content in (("FILE", "w1\n"), ("EMPTY", ""), ("BLANK", "w1\n \nw2\n")):
        (tmp_path / name).write_text(content)
    given = [str(tmp_path / one) if one.isupper() else one for one in more]
    assert main(["generate", *arguments(pipelines / kind, tmp_path / "set", 5, *given)]) == 1
    assert message in capsys.readouterr().err
    assert len(tokens(make(pipelines / kind, tmp_path / "set", 5))) == 5


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


def test_the_example_says_the_same(
    pipelines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["generate_dataset.py", *arguments(pipelines / "images", tmp_path / "set", 0)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert stopped.value.code == 2
    refused = "generate_dataset.py: error: `num_samples` must be at least 1, got 0. Pass a positive number.\n"
    assert capsys.readouterr().err == refused


def test_two_processes_refuse_to_make_nothing(pipelines: Path, tmp_path: Path) -> None:
    group = fork(pipelines / "images", tmp_path / "set", 0)
    assert group.wait() == [2, 2]
    said = "generate_dataset.py: error: `num_samples` must be at least 1, got 0"
    assert all(said in printed for printed in group.printed())
    assert not (tmp_path / "set").exists()


# --- placement --------------------------------------------------------------------------------------------------------

PLACEMENTS = [("--device_map", "balanced"), ("--device_map", "cpu"), ("--model_cpu_offload",), ("--group_offload",)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_substeps", ["1", "2"])
def test_the_same_tokens_wherever_the_weights_are(
    pipelines: Path, tmp_path: Path, kind: str, num_substeps: str
) -> None:
    more = ("--num_substeps", num_substeps)
    expected = tokens(make(pipelines / kind, tmp_path / "plain", 8, *more))
    for k, placement in enumerate(PLACEMENTS):
        assert tokens(make(pipelines / kind, tmp_path / str(k), 8, *more, *placement)) == expected, placement


@pytest.mark.parametrize("kind", KINDS)
def test_placement_is_not_ignored(pipelines: Path, tmp_path: Path, kind: str) -> None:
    def load(*placement: str) -> Any:
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        return load_pipeline(parser.parse_args(arguments(pipelines / kind, tmp_path, 8, *placement)), start_processes())

    assert load().hf_device_map is None
    assert load("--device_map", "cpu").hf_device_map is not None
    assert not hasattr(load().transformer, "_hf_hook")
    assert hasattr(load("--model_cpu_offload").transformer, "_hf_hook")
    assert not _is_group_offload_enabled(load().transformer)
    assert _is_group_offload_enabled(load("--group_offload").transformer)


@pytest.mark.parametrize(
    ("kind", "num_substeps"),
    [("images", "1"), ("texts", "2"), pytest.param("answers", "1", marks=pytest.mark.exhaustive)],
)
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
    for kind, dtype in product(KINDS, ("float32", "bfloat16")):
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


def test_a_set_that_cannot_be_pushed_is_kept(
    pipelines: Path,
    tmp_path: Path,
    hub: hub_server.LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """Who may not write learns it before a sample is made; a network that fails later costs no sample."""
    for repository in ("you/digits", "no name"):
        given = arguments(pipelines / "images", tmp_path / "set", 5, "--push_to_hub", repository)
        assert main(["generate", *given]) == 1
        assert f"`push_to_hub` must name a data set of the Hub that you may write to, got {repository!r}" in (
            capsys.readouterr().err
        )
        assert not (tmp_path / "set").exists()
    given = arguments(pipelines / "images", tmp_path / "set", 5, "--push_to_hub", "me/digits")
    with monkeypatch.context() as context:
        context.setattr(publishing, "upload_folder", lambda **_: 1 / 0)
        assert main(["generate", *given]) == 1
    assert "run the same command again: what is finished is kept" in capsys.readouterr().err
    made = shards(tmp_path / "set")
    assert len(made) == 1
    assert main(["generate", *given]) == 0
    assert hub.main["me/digits"].items() >= made.items()


def test_the_card_is_whole_or_not_there_and_one_s_own_is_kept(
    pipelines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder, replace = make(pipelines / "images", tmp_path / "set", 5), os.replace

    def fail(partial: Path, path: Path) -> None:
        if path.name == "README.md":
            raise FULL
        replace(partial, path)

    (folder / "README.md").unlink()
    with monkeypatch.context() as context:
        context.setattr(os, "replace", fail)
        assert main(["generate", *arguments(pipelines / "images", folder, 5)]) == 1
    assert "No space left on device; what is finished is kept" in capsys.readouterr().err
    assert not (folder / "README.md").exists()
    assert "masked-diffusion" in (make(pipelines / "images", folder, 5) / "README.md").read_text()
    (folder / "README.md").write_text("Mine")
    assert (make(pipelines / "images", folder, 5) / "README.md").read_text() == "Mine"
