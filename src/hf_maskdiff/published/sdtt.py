"""The configurations of SDTT's checkpoints (repository jdeschena/sdtt): their models are MDLMs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Sizes as they are named there, under `model`, and as `MDLMTransformer` names them.
_SIZES = {
    "hidden_size": "hidden_dim",
    "cond_dim": "cond_dim",
    "n_blocks": "n_blocks",
    "n_heads": "n_heads",
    "length": "model_length",
    "dropout": "dropout",
}
# What must be so for a model to compute what an MDLM does: of the other backbones some have weights of the same names.
_SUPPORTED = {"type": "ddit-orig", "tie_word_embeddings": False}
_TABLE = "vocab_embed.embedding"


def is_sdtt(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of SDTT's training: all of its settings, and no type of a model."""
    parts = ("model", "parameterization")
    return "model_type" not in config and all(isinstance(config.get(part), Mapping) for part in parts)


def mdlm_settings(config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The arguments of `MDLMTransformer` for a checkpoint of SDTT.

    Args:
        config: its config.json.
        shapes: of its weights, by the names of `MDLMTransformer`: the number of tokens is written nowhere else.

    Raises:
        ValueError: a size that is not there, or a model of another kind.
    """
    model = config["model"]
    missing = [name for name in _SIZES if name not in model]
    if missing:
        raise ValueError(
            f"`config.json` of SDTT must name its sizes under `model`, {missing} are not there. Take config.json and "
            "weights from one revision."
        )
    other = {name: model[name] for name, value in _SUPPORTED.items() if model.get(name, value) != value}
    if other:
        raise ValueError(f"a model of SDTT must be an MDLM, {_SUPPORTED}, got {other} in config.json. It is another.")
    if len(shapes.get(_TABLE, ())) != 2:
        raise ValueError(f"a checkpoint of SDTT must hold the table {_TABLE!r}, it is not there. Fetch it again.")
    time_conditioning = config.get("time_conditioning", False)
    if not isinstance(time_conditioning, bool):
        raise ValueError(
            f"`time_conditioning` in config.json must be true or false, got {time_conditioning!r}. Fetch it again."
        )
    sizes = {ours: model[theirs] for theirs, ours in _SIZES.items()}
    return {"vocab_size": shapes[_TABLE][0], "time_conditioning": time_conditioning, **sizes}
