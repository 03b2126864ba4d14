"""What text decoding is timed against: the originals' loops, token by token and pass by pass."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from golden_data import cases, read
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from hf_maskdiff.published.families import LLADA_KEYS, llama_config

GOLDEN2 = Path(os.environ["HF_MASKDIFF_GOLDEN2"]) if "HF_MASKDIFF_GOLDEN2" in os.environ else None
Settings = dict[str, Any]


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))


def loops() -> ModuleType:
    return importlib.import_module("reference_loops")


@cache
def model_of(folder: Path) -> PreTrainedModel:
    """A recorded model under transformers' own class of the same arithmetic."""
    published, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    if published["model_type"] == "llada":
        model: PreTrainedModel = LlamaForCausalLM(llama_config(published))
        for pattern, target in LLADA_KEYS.items():
            weights = {re.sub(pattern, target, name): weight for name, weight in weights.items()}
    else:
        names = set(inspect.signature(Qwen3Config).parameters) | {"rope_theta"}
        settings = {name: value for name, value in published.items() if name in names and name != "rope_scaling"}
        rope = {"rope_type": "default", "rope_theta": settings.pop("rope_theta")}
        model = Qwen3ForCausalLM(Qwen3Config(**settings, rope_parameters=rope))
    model.load_state_dict(weights)
    return model.eval()


def settings_of(metadata: dict[str, str]) -> Settings:
    """Of a run: numbers and truths as such, names as texts."""

    def value(text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text

    return {name: value(text) for name, text in metadata.items()}


def is_timed(path: Path) -> bool:
    """Whether a run is of the kind that is timed: equal prompts where the loop needs them, no mask left at the end."""
    trace, metadata = read(path)
    settings, lengths = settings_of(metadata), {len(trace[name]) for name in trace if name.startswith("input_")}
    if path.name.startswith("trace_mdlm"):
        timed = {"max_new_tokens", "block_size", "steps", "temperature", "scheduler", "seed", "sampler"}
        timed |= {"n_calls", "n_positions", *(f"{token}_token_id" for token in ("pad", "eos", "bos", "mask"))}
        return settings.keys() <= timed and settings["scheduler"] == "linear" and "infill" not in path.name
    if path.parent.name == "fastdllm_llada":
        return len(lengths) == 1 and settings["temperature"] == 0 and "fewsteps" not in path.name
    return settings["unmask_strategy"] == "all" and not settings.get("temperature")


def replays(path: Path, loop: Callable[..., Tensor], settings: Settings, prompt: Any, **arguments: Any) -> None:
    """From the seed of a stored run come its tokens, with as many calls and positions."""
    model = importlib.import_module("reference_model").ReferenceModel(model_of(path.parent))
    torch.manual_seed(settings["seed"])
    with torch.no_grad():
        tokens = loop(model, prompt, **arguments)
    assert torch.equal(tokens, read(path)[0]["final"])
    assert model.calls == settings["n_calls"]
    assert model.positions == settings["n_positions"]


@pytest.mark.parametrize("path", cases("fast_dllm/trace_*", folder=GOLDEN2))
def test_fast_dllm(path: Path) -> None:
    trace, settings = read(path)[0], settings_of(read(path)[1])
    caches = {"generate": None, "generate_with_prefix_cache": "prefix", "generate_with_dual_cache": "dual"}
    kept = ("block_length", "steps", "mask_id", "threshold", "temperature")
    arguments = {name: settings[name] for name in kept} | {"new_tokens": settings["gen_length"]}
    arguments |= {"cache": caches[settings["function"]], "random_order": settings["remasking"] == "random"}
    replays(path, loops().fast_dllm, settings, trace["prompt"], **arguments)


@pytest.mark.parametrize("path", cases("dllm_bd3lm/fastdllm_llada/trace_*", is_timed, GOLDEN2))
def test_fast_dllm_of_dllm(path: Path) -> None:
    trace, settings = read(path)[0], settings_of(read(path)[1])
    prompts = [trace[name] for name in sorted(trace) if name.startswith("input_")]
    arguments = {"new_tokens": settings["max_new_tokens"], "block_length": settings["block_size"]}
    arguments |= {"mask_id": settings["mask_token_id"], "steps": settings["steps"], "cache": settings.get("use_cache")}
    arguments |= {name: settings.get(name) for name in ("threshold", "factor")}
    replays(path, loops().dllm_fast_dllm, settings, torch.stack(prompts), **arguments)


@pytest.mark.parametrize("path", cases("dllm_bd3lm/trace_mdlm_*", is_timed, GOLDEN2))
def test_mdlm_of_dllm(path: Path) -> None:
    trace, settings = read(path)[0], settings_of(read(path)[1])
    prompts = [trace[name] for name in sorted(trace) if name.startswith("input_")]
    arguments = {"new_tokens": settings["max_new_tokens"], "block_length": settings["block_size"]}
    arguments |= {"mask_id": settings["mask_token_id"], "eos_id": settings["eos_token_id"]}
    arguments |= {name: settings[name] for name in ("steps", "temperature")}
    replays(path, loops().dllm_mdlm, settings, prompts, **arguments)


@pytest.mark.parametrize("path", cases("klass/trace_klass*", is_timed, GOLDEN2))
def test_klass(path: Path) -> None:
    trace, settings = read(path)[0], settings_of(read(path)[1])
    kept = ("block_length", "steps", "mask_id", "conf_threshold", "kl_threshold")
    arguments = {name: settings[name] for name in kept} | {"new_tokens": settings["gen_length"]}
    arguments["history"] = settings["kl_history_length"]
    replays(path, loops().klass, settings, trace["prompt"], **arguments)


@pytest.mark.parametrize("path", cases("dkv_cache/trace_decode_R*", folder=GOLDEN2))
def test_dkv_cache(path: Path) -> None:
    trace, settings = read(path)[0], settings_of(read(path)[1])
    arguments = {name: settings[name] for name in ("block_length", "steps", "mask_id", "temperature")}
    arguments |= {"new_tokens": settings["gen_length"], "refresh_every": settings["cache_reloading_step"]}
    arguments["random_order"] = settings["remasking"] == "random"
    replays(path, loops().dkv_decode, settings, trace["prompt"], **arguments)


@pytest.mark.skipif(
    torch.__version__ < (2, 13), reason="torch.multinomial draws other tokens from a seed before torch 2.13"
)
@pytest.mark.parametrize("path", cases("sdar/trace_*", folder=GOLDEN2))
def test_sdar(path: Path) -> None:
    trace, settings = read(path)[0], settings_of(read(path)[1])
    kept = ("block_length", "denoising_steps", "mask_id", "temperature")
    arguments = {name: settings[name] for name in kept} | {"new_tokens": settings["gen_length"]}
    arguments |= {name: settings[name] for name in ("top_k", "top_p") if name in settings}
    arguments |= {"threshold": settings["confidence_threshold"]} if "confidence_threshold" in settings else {}
    arguments |= {"strategy": settings["remasking_strategy"], "stop_ids": settings["stopping_criteria_idx"]}
    replays(path, loops().sdar, settings, trace["prompt"], **arguments)


def test_the_loops_are_short() -> None:
    module = loops()
    for name in ("fast_dllm", "dllm_fast_dllm", "dllm_mdlm", "klass", "dkv_decode", "sdar"):
        assert len(inspect.getsource(getattr(module, name)).splitlines()) <= 60
