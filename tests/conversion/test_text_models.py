"""LLaDA and Dream as pipeline folders: no code, their golden outputs, with and without partial caching."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import fresh
import pytest
import torch
from golden_data import COMMITTED, GOLDEN, Model, cases, known_ids, num_rows, read, real_prompt, settings_of
from huggingface_hub import ModelCard
from replay import as_recorded
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from hf_maskdiff import MaskedDiffusionTextPipeline
from hf_maskdiff.cli import main
from hf_maskdiff.conversion.convert import convert
from hf_maskdiff.conversion.text_models import dream_counts

# Everything where HF_MASKDIFF_GOLDEN names a folder, else the part that is kept with the tests.
FOLDER = GOLDEN or COMMITTED
MODELS = cases("llada/*/config.json", folder=FOLDER) + cases("dream/config.json", folder=FOLDER)
DREAM = FOLDER / "dream"


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def is_dream(folder: Path) -> bool:
    return config_of(folder)["model_type"] == "Dream"


def make_tokenizer(folder: Path, config: dict[str, Any]) -> Path:
    """As many words as a model has tokens; its end of text is the model's."""
    last = num_rows(config) - 1
    words = WordLevel({f"w{i}": i for i in range(last)} | {"<|endoftext|>": last}, unk_token="w0")
    end = f"w{config['eos_token_id']}"
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token=end).save_pretrained(folder)
    # Dream's tokenizer is of Qwen2's class: letters, no merges.
    (folder / "vocab.json").write_text(
        json.dumps({letter: i for i, letter in enumerate("abcdefgh")} | {"<|im_end|>": 9})
    )
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


@pytest.fixture(scope="module")
def tokenizer_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A function from a golden model to the folder of a tokenizer for it."""
    return cache(lambda folder: make_tokenizer(tmp_path_factory.mktemp("tokenizer"), config_of(folder)))


@pytest.fixture(scope="module")
def converted_text(
    tokenizer_of: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], Path]:
    """A function from a golden model to the pipeline folder that it is converted to."""
    return cache(
        lambda folder: convert(folder, tmp_path_factory.mktemp("text") / "out", tokenizer=tokenizer_of(folder))
    )


def copy_of(folder: Path, to: Path, tokenizer: Path | None = None) -> Path:
    """The checkpoint as it is published: configuration, weights, and a tokenizer where one is given."""
    ignored = shutil.ignore_patterns("trace_*", "expected*", "input*", "keys*", "manifest*")
    shutil.copytree(folder, to, ignore=ignored, copy_function=shutil.copyfile)
    to.chmod(0o755)
    if tokenizer is not None:
        for file in tokenizer.iterdir():
            shutil.copyfile(file, to / file.name)
    return to


ALONE = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
import torch
from safetensors.torch import load_file, save_file
from hf_maskdiff import ConfidenceScheduler, MaskedDiffusionTextPipeline, PartialCacheConfig

torch.set_num_threads(1)
folder, inputs, outputs = sys.argv[1:]
pipe, given = MaskedDiffusionTextPipeline.from_pretrained(folder), load_file(inputs)
pipe.set_progress_bar_config(disable=True)
with torch.no_grad():
    results = {"logits": pipe.denoiser(given["input_ids"])}
call = {"input_ids": given["prompt"], "max_new_tokens": 8, "num_inference_steps": 4}
results["plain"] = torch.stack(pipe(**call, generator=torch.Generator().manual_seed(0)).sequences)
pipe.enable_cache(PartialCacheConfig(num_substeps=1))
results["one group"] = torch.stack(pipe(**call, generator=torch.Generator().manual_seed(0)).sequences)
pipe.disable_cache()
pipe.enable_cache(PartialCacheConfig(num_substeps=2, full_pass_threshold=1.0))
results["two groups"] = torch.stack(pipe(**call, generator=torch.Generator().manual_seed(0)).sequences)
pipe.enable_cache(PartialCacheConfig(num_substeps=2))
with torch.no_grad():
    ids = given["input_ids"]
    results["full"] = pipe.denoiser(ids)
    results["partial"] = pipe.denoiser(ids, positions=torch.arange(ids.shape[1]).expand_as(ids))
save_file({key: value.contiguous() for key, value in results.items()}, outputs)
"""


@pytest.mark.parametrize("config", MODELS)
def test_a_fresh_process_gives_the_golden_outputs(
    config: Path, tokenizer_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = config.parent
    source = copy_of(folder, tmp_path / "source", tokenizer_of(folder))
    assert main(["convert", str(source), str(tmp_path / "out")]) == 0
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"transformer/model.safetensors", "scheduler/scheduler_config.json", "model_index.json"} <= files
    assert not [file for file in files if file.endswith((".bin", ".pt")) or (file.endswith(".py") and "/" in file)]
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, "## Sampling" in card.text) == ("apache-2.0" if is_dream(folder) else "mit", True)
    assert "num_inference_steps=" in card.text.split("## Sampling")[1]

    given, expected = Model(folder).inputs, Model(folder).expected
    mask = config_of(folder)["mask_token_id"]
    prompts = {"input_ids": given["input_ids"], "prompt": known_ids(given["input_ids"], mask, 4)}
    save_file(prompts, tmp_path / "in.safetensors")
    arguments = (tmp_path / "out", tmp_path / "in.safetensors", tmp_path / "made")
    done = fresh.run(ALONE, *arguments, environment=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    results, wanted = load_file(tmp_path / "made"), expected["logits_shifted" if is_dream(folder) else "logits"]
    torch.testing.assert_close(results["logits"], wanted, atol=5e-5, rtol=5e-5)
    for cached in ("full", "partial"):  # the pass that fills the cache, and one that computes every position anew
        torch.testing.assert_close(results[cached], wanted, atol=5e-5, rtol=5e-5)
    assert torch.equal(results["plain"], results["one group"])
    assert results["two groups"].shape == results["plain"].shape
    scheduler = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["mask_token_id"] == mask
    for sequences in (results["plain"], results["two groups"]):
        assert torch.equal(sequences[:, :4], prompts["prompt"])
        assert not (sequences == mask).any()


def is_greedy(path: Path) -> bool:
    """Whether a run draws nothing: neither tokens nor their order."""
    settings = settings_of(path)
    draws = any(float(settings.get(key, 0)) for key in ("temperature", "alg_temp"))
    return not draws and settings.get("remasking") != "random" and settings.get("alg") != "origin"


@pytest.mark.parametrize(
    "path",
    cases("llada/*/trace_*", is_greedy, folder=FOLDER) + cases("dream/trace_*", is_greedy, folder=FOLDER),
)
def test_converted_folders_replay_greedy_runs(
    path: Path, converted_text: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLaDA with its preset as it is written; Dream's with temperature 0 and its own counts as a table."""
    pipe = MaskedDiffusionTextPipeline.from_pretrained(converted_text(path.parent))
    pipe.set_progress_bar_config(disable=True)
    recorded, settings = read(path)
    steps = int(settings["steps"])
    call: dict[str, Any] = {"num_inference_steps": steps}
    if is_dream(path.parent):
        length = int(settings["max_new_tokens"])
        measures = {"entropy": "entropy", "maskgit_plus": "confidence", "topk_margin": "margin"}
        table = dream_counts(length, steps, float(settings["eps"]))
        call["num_inference_steps"] = len(table)  # steps that reveal nothing are not in it
        changes = {
            "masking_schedule": table,
            "rounding": "floor_masked",
            "measure": measures[settings["alg"]],
            "temperature": 1.0,
            "top_p": None,
            "token_temperature": 0,
        }
        pipe.scheduler = pipe.scheduler.from_config(pipe.scheduler.config, **changes)
    else:
        length, block = int(settings["gen_length"]), int(settings["block_length"])
        call = {"num_inference_steps": steps * block // length, "block_length": block}
        call["guidance_scale"] = 1 + float(settings["cfg_scale"])

    def replay() -> None:
        for row, (ids, known) in enumerate(zip(recorded["prompt"], real_prompt(recorded), strict=True)):
            output = pipe(input_ids=ids[known][None], max_new_tokens=length, stop_at_eos=False, **call)
            assert output.sequences[0][-length:].tolist() == recorded["final"][row, -length:].tolist()

    as_recorded(replay, monkeypatch)


def test_what_is_stored_in_bfloat16_stays_so(tokenizer_of: Callable[[Path], Path], tmp_path: Path) -> None:
    source = copy_of(DREAM, tmp_path / "source", tokenizer_of(DREAM))
    weights = load_file(source / "model.safetensors")
    save_file({k: v.bfloat16() for k, v in weights.items()}, source / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16", "dtype": "bfloat16"}))
    convert(source, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "transformer" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    pipe = MaskedDiffusionTextPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(pipe.tokenizer, Qwen2Tokenizer)


def test_one_clear_error_and_nothing_written(
    tokenizer_of: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(source: Path) -> str:
        assert main(["convert", str(source), str(tmp_path / "out")]) == 1
        assert not [path for path in tmp_path.iterdir() if path.name.lstrip(".").startswith("out")]
        return capsys.readouterr().err

    source = copy_of(DREAM, tmp_path / "a")
    assert "There must be a tokenizer beside the model" in refused(source)
    assert main(["convert", str(source), str(tmp_path / "out"), "--tokenizer", "/no/where"]) == 1
    assert "`tokenizer` must be a folder or the name of a tokenizer" in capsys.readouterr().err

    source = copy_of(DREAM, tmp_path / "b", tokenizer_of(DREAM))
    weights = load_file(source / "model.safetensors")
    lost = weights.pop(next(key for key in weights if "q_proj.weight" in key))
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    assert "missing_keys" in refused(source)
    assert lost.ndim == 2

    source = copy_of(DREAM, tmp_path / "c", tokenizer_of(DREAM))
    whole = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "must hold whole safetensors" in refused(source)

    llada = max(FOLDER.glob("llada/*/config.json")).parent
    source = copy_of(llada, tmp_path / "d", tokenizer_of(llada))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"alibi": True}))
    assert "a LLaDA must compute what Llama does" in refused(source)

    source = copy_of(DREAM, tmp_path / "e", tokenizer_of(DREAM))
    complete = load_file(source / "model.safetensors")
    save_file({**complete, "model.extra.weight": torch.ones(2)}, source / "model.safetensors", {"format": "pt"})
    assert "'unexpected_keys': ['model.extra.weight']" in refused(source)
    save_file({**complete, "model.norm.weight": torch.ones(3)}, source / "model.safetensors", {"format": "pt"})
    assert "mismatched_keys" in refused(source)


class Payload:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@pytest.mark.parametrize("config", MODELS)
def test_neither_pickles_nor_code_of_a_repository_are_run(
    config: Path, tokenizer_of: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer, pwned = tokenizer_of(config.parent), tmp_path / "pwned"
    source = copy_of(config.parent, tmp_path / "source", tokenizer)
    (source / "evil.py").write_text(f"open({str(pwned)!r}, 'w')\nclass Evil: pass\n")
    for file, classes in (("config.json", ("AutoConfig", "AutoModel")), ("tokenizer_config.json", ("AutoTokenizer",))):
        settings = json.loads((source / file).read_text())
        settings["auto_map"] = {auto: ["evil.Evil", None] if "Token" in auto else "evil.Evil" for auto in classes}
        (source / file).write_text(json.dumps(settings | {"tokenizer_class": "Evil"}))
    main(["convert", str(source), str(tmp_path / "out")])  # its tokenizer may be refused, but nobody is asked
    assert "Do you wish to run" not in capsys.readouterr().out
    assert not pwned.exists()

    for path in source.glob("model*"):
        path.unlink()
    torch.save({"model.norm.weight": Payload(f"touch {pwned}")}, source / "pytorch_model.bin")
    assert main(["convert", str(source), str(tmp_path / "new"), "--tokenizer", str(tokenizer)]) == 1
    assert "no file named model.safetensors" in capsys.readouterr().err
    assert not pwned.exists()
    assert not (tmp_path / "new").exists()


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from hf_maskdiff.cli import main
import diffusers.pipelines.pipeline_utils
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""


def test_a_full_disk(tokenizer_of: Callable[[Path], Path], tmp_path: Path) -> None:
    source = copy_of(DREAM, tmp_path / "source", tokenizer_of(DREAM))
    limit = (source / "model.safetensors").stat().st_size // 2
    done = fresh.run(FULL, str(limit), "convert", source, tmp_path / "out")
    assert done.returncode == 1, done.stderr
    assert "hf-maskdiff convert: " in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
