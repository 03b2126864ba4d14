"""A model that is split, over processes or by layers, gives the tokens of the whole one with every cache."""

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
from block_models import save_sdar, spread
from small_models import save_a2d
from test_masked_diffusion_text import make_pipeline

from hf_maskdiff import (
    BlockCacheConfig,
    DelayedCacheConfig,
    DualCacheConfig,
    MaskedDiffusionTextPipeline,
    MDLMPipeline,
    PartialCacheConfig,
    PrefixCacheConfig,
)
from hf_maskdiff.caching import CacheConfig

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, sys
import torch
from hf_maskdiff import MaskedDiffusionTextPipeline
sys.path.insert(0, PLACE)
from test_split_models import made_with_all

rank = int(__import__("os").environ["RANK"])
split = [MaskedDiffusionTextPipeline.from_pretrained(folder, tp_plan="auto") for folder in sys.argv[1:]]
sizes = [pipe.transformer.model.layers[0].mlp.up_proj.weight.to_local().shape for pipe in split]
found = [made_with_all(pipe) for pipe in split]
free = [split[0]("w7", 4, 8).sequences[0].tolist() for _ in range(2)]
message = ""
try:
    split[0]("w7", 4, 8, generator=torch.Generator().manual_seed(rank))
except ValueError as error:
    message = str(error)
print("FOUND" + json.dumps([found, free, message, sizes]) + "END", flush=True)
torch.distributed.destroy_process_group()
"""

PARTIAL = PartialCacheConfig(num_substeps=2, full_pass_threshold=1)
CALLS: dict[str, CacheConfig | None] = {
    "plain": None,
    "partial": PARTIAL,
    "prefix": PrefixCacheConfig(),
    "dual": DualCacheConfig(),
    "dual, afresh": DualCacheConfig(refresh_every=2),
    "delayed": DelayedCacheConfig(refresh_every=3),
    "dual + partial": DualCacheConfig(partial=PARTIAL),
}
CALLS_OF_BLOCKS: dict[str, CacheConfig | None] = {
    "plain": None,
    "block": BlockCacheConfig(),
    "block + partial": BlockCacheConfig(PARTIAL),
}


def made(pipe: MaskedDiffusionTextPipeline, config: CacheConfig | None, num_inference_steps: int) -> list[list[int]]:
    """Guided, in blocks, rows of two lengths."""
    pipe.set_progress_bar_config(disable=True)
    pipe.disable_cache()
    if config is not None:
        pipe.enable_cache(config)
    seeds = [torch.Generator().manual_seed(seed) for seed in range(2)]
    call = {"block_length": 4, "guidance_scale": 1.5, "generator": seeds, "num_inference_steps": num_inference_steps}
    return [ids.tolist() for ids in pipe(["w7 w8", "w9 w10 w11"], max_new_tokens=8, **call).sequences]


def made_with_all(pipe: MaskedDiffusionTextPipeline) -> dict[str, list[list[int]]]:
    """What is written with every cache that fits the model."""
    calls = CALLS if pipe.denoiser.rule is None else CALLS_OF_BLOCKS
    return {name: made(pipe, config, 2 if "partial" in name else 4) for name, config in calls.items()}


def require_caches_in_use(found: dict[str, list[list[int]]]) -> None:
    """Caches that approximate change the tokens, so that one that is never used would be noticed."""
    for name in found.keys() & {"prefix", "dual", "delayed"}:
        assert found[name] != found["plain"], name


def sees_blocks(folder: Path) -> MaskedDiffusionTextPipeline:
    return spread(MaskedDiffusionTextPipeline.from_pretrained(save_sdar(folder, num_key_value_heads=2)))


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
    sees_blocks(tmp_path / "sdar").save_pretrained(tmp_path / "sees blocks")
    folders = [tmp_path / name for name in ("llama", "a2d-mdlm", "sees blocks")]
    whole = [MaskedDiffusionTextPipeline.from_pretrained(folder) for folder in folders]
    expected = [made_with_all(pipe) for pipe in whole]
    require_caches_in_use(expected[0])
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


LAYERS = [f"model.{name}" for name in ("embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb")] + ["lm_head"]


@pytest.mark.parametrize(
    "on_disk", [pytest.param(["model.layers.1"], marks=pytest.mark.exhaustive), LAYERS], ids=["a layer", "all"]
)
@pytest.mark.parametrize("kind", ["llama", pytest.param("qwen2", marks=pytest.mark.exhaustive), "sdar"])
def test_layers_on_several_devices_give_the_tokens_of_one(kind: str, on_disk: list[str], tmp_path: Path) -> None:
    """A disk stands for a second device: weights come when their layer is called, and so does what caches keep."""
    pipe = sees_blocks(tmp_path / "sdar") if kind == "sdar" else make_pipeline(kind, shift_logits=kind[-1] == "2")
    expected = made_with_all(pipe)
    if kind == "llama":
        require_caches_in_use(expected)
    pipe.save_pretrained(tmp_path / "pipeline")
    where = {name: "disk" if name in on_disk else "cpu" for name in LAYERS}
    split = type(pipe.transformer).from_pretrained(
        tmp_path / "pipeline" / "transformer",
        device_map=where,
        offload_folder=tmp_path / "disk",
        trust_remote_code=False,
    )
    assert split.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    if not hasattr(split, "_hf_hook"):
        pytest.skip("this version of transformers has no layers brought in where all of them lie on a disk")
    assert (
        made_with_all(MaskedDiffusionTextPipeline.from_pretrained(tmp_path / "pipeline", transformer=split)) == expected
    )


def test_a_model_that_cannot_be_split_is_refused(tmp_path: Path, mdlm_folder: Path) -> None:
    with pytest.raises(ValueError, match="tp_plan split models of transformers, got a MDLMTransformer"):
        MDLMPipeline.from_pretrained(mdlm_folder, tp_plan="auto")


@pytest.fixture
def mdlm_folder(tmp_path: Path) -> Path:
    index = {"_class_name": "MDLMPipeline", "transformer": ["hf_maskdiff", "MDLMTransformer"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    return tmp_path
