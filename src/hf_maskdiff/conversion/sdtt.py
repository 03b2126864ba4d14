"""SDTT's checkpoints (jdeschena/sdtt, arXiv 2410.21035): MDLMs that were distilled to need fewer steps."""

from __future__ import annotations

from pathlib import Path

from hf_maskdiff.conversion.cards import Description
from hf_maskdiff.conversion.sources import read_settings
from hf_maskdiff.published.sdtt import is_sdtt

DESCRIPTION = Description(
    upstream="jdeschena/sdtt",
    licence="unknown",
    notes=(
        "The scheduler is the ancestral sampler, which its authors use too: pass `num_inference_steps=32`, or as few "
        "as the checkpoint was distilled for. The original leaves a share of 1e-5 masked until a last step, which "
        "takes the most probable token; here the last step draws like the others. The weights are the last ones of the "
        "training, not their average: these are what its authors publish."
    ),
    terms=(
        "The licence is unknown: its publishers state none, neither for the weights nor for the code. Ask them before "
        "you pass it on."
    ),
)


def is_sdtt_at(path: Path) -> bool:
    """Whether a folder holds one of these models."""
    config = path / "config.json"
    return config.is_file() and is_sdtt(read_settings(config))
