"""The golden folders: what is in them is read off their names, configurations, manifests and tensors.

What a test knows of golden data it knows from here or from the files themselves, so that any set in the same format
passes. Without such a folder the tests that are made from its files are one skipped test each, which says why.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

COMMITTED = Path(__file__).parent / "golden"
MEANINGS = {
    "HF_MASKDIFF_GOLDEN": "what the original implementations compute for small models",
    "HF_MASKDIFF_GOLDEN2": "what the original implementations of later samplers, caches and models compute",
    "HF_MASKDIFF_DATA": "the data sets",
}


def not_set(variable: str) -> str:
    return f"{variable} is not set: it names the folder of {MEANINGS[variable]}"


GOLDEN, GOLDEN2 = (
    Path(os.environ[name]) if name in os.environ else None for name in ("HF_MASKDIFF_GOLDEN", "HF_MASKDIFF_GOLDEN2")
)


def cases(
    pattern: str,
    wanted: Callable[[Path], bool] = lambda path: True,
    folder: Path | None = GOLDEN,
    variable: str = "HF_MASKDIFF_GOLDEN",
) -> list[Any]:
    """Arguments of `parametrize`: each path in the golden folder that fits, else one case that is skipped."""
    if folder is None:
        return [pytest.param(None, id="none", marks=pytest.mark.skip(not_set(variable)))]
    found = [path for path in sorted(folder.glob(pattern)) if wanted(path)]
    if not found:
        return [pytest.param(None, id="none", marks=pytest.mark.skip(f"the golden folder has no such {pattern}"))]
    return [pytest.param(path, id=path.relative_to(folder).as_posix().removesuffix(path.suffix)) for path in found]


def later_cases(pattern: str, wanted: Callable[[Path], bool] = lambda path: True) -> list[Any]:
    """`cases` of the later golden folder."""
    return cases(pattern, wanted, GOLDEN2, "HF_MASKDIFF_GOLDEN2")


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata, of a run: its settings."""
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def settings_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def holds(*names: str) -> Callable[[Path], bool]:
    """Whether a file has these tensors."""

    def look(path: Path) -> bool:
        with safe_open(path, "pt") as file:
            return {*names} <= {*file.keys()}

    return look


@dataclass(frozen=True)
class Model:
    """A model of a golden folder, whose files' names begin with `prefix`."""

    folder: Path
    prefix: str = ""

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / f"{self.prefix}config.json").read_text())

    @property
    def inputs(self) -> dict[str, Tensor]:
        return load_file(self.folder / f"{self.prefix}input.safetensors")

    @property
    def expected(self) -> dict[str, Tensor]:
        return load_file(self.folder / f"{self.prefix}expected.safetensors")

    @property
    def checkpoint(self) -> Path:
        """The one file of `torch.save` whose name fits none of the other models better."""
        others = [other.prefix for other in models(self.folder) if len(other.prefix) > len(self.prefix)]
        files = [path for path in self.folder.glob(f"{self.prefix}*") if path.suffix in (".pth", ".pt", ".ckpt")]
        (path,) = (path for path in files if not path.name.startswith(tuple(others)))
        return path


def models(folder: Path) -> list[Model]:
    return [Model(folder, path.name.removesuffix("config.json")) for path in sorted(folder.glob("*config.json"))]


def class_models(folder: Path) -> list[Model]:
    """Those of an image folder that are told a class."""
    return [model for model in models(folder) if "nclass" in model.config]


def image_tokenizer(folder: Path) -> Model:
    """The image tokenizer that has a file of its own."""
    (found,) = (model for model in models(folder) if {"ch_mult", "model"} & model.config.keys())
    return found


def sampled_model(folder: Path) -> Model:
    """That of an image folder's runs: it has the tokenizer's codes, and where several have, the manifest names it."""
    config = image_tokenizer(folder).config
    codes = config["codebook_size"] if "codebook_size" in config else config["model"]["params"]["n_embed"]
    fitting = [model for model in class_models(folder) if model.config["codebook_size"] == codes]
    named = re.findall(r"model '([^']+)'", (folder / "manifest.json").read_text())
    return min(fitting, key=lambda model: model.prefix.removesuffix(".") not in named)


def conversion(folder: Path) -> tuple[Path, dict[str, Any]]:
    """What `convert` is given of an image folder: the source, and what no tensor tells."""
    if folder.name == "maskgit_jax":
        return folder, {}
    if folder.name == "amused":
        return folder / "pipeline", {}
    if folder.name == "mage":
        config = Model(folder).config
        return folder, {"num_attention_heads": [config["num_heads"], config["decoder_num_heads"]]}
    model = sampled_model(folder)
    arguments = {"tokenizer": image_tokenizer(folder).checkpoint, "num_attention_heads": [model.config["heads"]]}
    return model.checkpoint, arguments


# --- tokens -----------------------------------------------------------------------------------------------------------


def known_ids(ids: Tensor, mask_token_id: int, count: int) -> Tensor:
    """The first tokens that are no masks, as a prompt: int64 `(1, count)`."""
    known = ids[ids != mask_token_id][None, :count]
    assert known.shape == (1, count)
    return known


def rows_left(states: Tensor, mask_token_id: int) -> Tensor:
    """Masks in each row of states `(T, batch_size, ...)`, int64 `(T, batch_size)`."""
    return (states == mask_token_id).flatten(2).sum(-1)


def real_prompt(trace: dict[str, Tensor]) -> Tensor:
    """Which tokens of a text run's prompts are real, bool `(batch_size, prompt_length)`."""
    return trace.get("attention_mask", torch.ones_like(trace["prompt"])).bool()


def num_rows(config: dict[str, Any]) -> int:
    """Tokens that a text model has embeddings of, of which some may be there to make the number even."""
    return config.get("embedding_size") or config["vocab_size"]
