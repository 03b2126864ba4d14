"""A model that is split over processes gives the tokens of the whole one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import save_a2d
from test_masked_diffusion_text import make_pipeline

from hf_maskdiff import MaskedDiffusionTextPipeline, MDLMPipeline, PartialCacheConfig

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, sys
import torch
from hf_maskdiff import MaskedDiffusionTextPipeline
sys.path.insert(0, PLACE)
from test_split_models import CALLS, made

rank = int(__import__("os").environ["RANK"])
split = [MaskedDiffusionTextPipeline.from_pretrained(folder, tp_plan="auto") for folder in sys.argv[1:]]
sizes = [pipe.transformer.model.layers[0].mlp.up_proj.weight.to_local().shape for pipe in split]
found = [made(pipe, name) for pipe in split for name in CALLS]
free = [split[0]("w7", 4, 8).sequences[0].tolist() for _ in range(2)]
message = ""
try:
    split[0]("w7", 4, 8, generator=torch.Generator().manual_seed(rank))
except ValueError as error:
    message = str(error)
print("FOUND" + json.dumps([found, free, message, sizes]) + "END", flush=True)
torch.distributed.destroy_process_group()
"""

CALLS: dict[str, Any] = {
    "plain": None,
    "partial": PartialCacheConfig(num_substeps=2),
}


def made(pipe: MaskedDiffusionTextPipeline, name: str) -> list[list[int]]:
    """Guided, in blocks, rows of two lengths."""
    pipe.set_progress_bar_config(disable=True)
    pipe.disable_cache()
    if CALLS[name] is not None:
        pipe.enable_cache(CALLS[name])
    seeds = [torch.Generator().manual_seed(seed) for seed in range(2)]
    call = {"block_length": 4, "guidance_scale": 1.5, "generator": seeds}
    return [ids.tolist() for ids in pipe(["w7 w8", "w9 w10 w11"], 2, 8, **call).sequences]


def torchrun(program: str, folder: Path, *arguments: object) -> list[Any]:
    """What two processes print, as JSON between FOUND and END."""
    (folder / "program.py").write_text(program.replace("PLACE", repr(str(Path(__file__).parent))))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    command += [str(folder / "program.py"), *map(str, arguments)]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(part.split("END")[0]) for part in done.stdout.split("FOUND")[1:]]


@pytest.mark.exhaustive  # two processes import everything: 20 seconds
def test_two_processes_give_the_tokens_of_one(tmp_path: Path) -> None:
    make_pipeline().save_pretrained(tmp_path / "llama")
    save_a2d(tmp_path / "a2d-mdlm", num_key_value_heads=2)
    folders = [tmp_path / "llama", tmp_path / "a2d-mdlm"]
    whole = [MaskedDiffusionTextPipeline.from_pretrained(folder) for folder in folders]
    expected = [made(pipe, name) for pipe in whole for name in CALLS]
    results = torchrun(PROGRAM, tmp_path, *folders)
    assert len(results) == 2
    for found, _, message, sizes in results:
        assert found == expected
        assert [size[0] for size in sizes] == [pipe.transformer.config.intermediate_size // 2 for pipe in whole]
        assert "must all make the same call" in message
        assert "process 1" in message
    free = results[0][1]
    assert results[1][1] == free  # without a generator all draw the same,
    assert free[0] != free[1]  # which is new in every call


def test_a_model_that_cannot_be_split_is_refused(tmp_path: Path, mdlm_folder: Path) -> None:
    with pytest.raises(ValueError, match="tp_plan split models of transformers, got a MDLMTransformer"):
        MDLMPipeline.from_pretrained(mdlm_folder, tp_plan="auto")


@pytest.fixture
def mdlm_folder(tmp_path: Path) -> Path:
    index = {"_class_name": "MDLMPipeline", "transformer": ["hf_maskdiff", "MDLMTransformer"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    return tmp_path
