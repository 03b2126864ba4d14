"""Numbers that others have published for the runs of `reproduce.py`, where they stand, and if they were seen there.

A number that was not seen in its source, as the source could not be opened when it was written down, is marked: look it
up before you compare with it. A run without a number here has no published counterpart that is known by its settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A published number.

    Args:
        measure: name of the measure in the run's file of results.
        value: as a file of results has it: a share where a paper has percent.
        source: who says it, and for which settings.
        was_seen: whether it was read in the source.
    """

    measure: str
    value: float
    source: str
    was_seen: bool


_MAGE = "README of LTH14/mage: temperature 6, 20 steps, validation images, torch-fidelity"
_LLADA = "EVAL.md of ML-GSAI/LLaDA, by lm-eval"
_REMDM = "ReMDM (arXiv 2503.00307), for MDLM with top-p 0.9 in float64"

PUBLISHED: Mapping[str, Sequence[Published]] = {
    "mage-maskgit-20": [
        Published("Frechet distance", 11.1, _MAGE, True),
        Published("Inception score", 81.2, _MAGE, True),
    ],
    "mdlm-ancestral-1024": [
        Published("perplexity", 51.3, _REMDM, False),
        Published("entropy", 5.46, _REMDM, False),
        Published("MAUVE", 0.042, _REMDM, False),
    ],
    "mdlm-ancestral-128": [
        Published("perplexity", 61.5, _REMDM, False),
        Published("entropy", 5.52, _REMDM, False),
        Published("MAUVE", 0.015, _REMDM, False),
    ],
    "llada-piqa": [Published("piqa, acc", 0.744, f"{_LLADA}, with cfg 0.5 and 128 masks", False)],
    "llada-gsm8k": [
        Published("gsm8k, exact_match (flexible-extract)", 0.703, f"{_LLADA}, 1024 tokens, one a pass", True)
    ],
}
# Claims without a number that a run could be held against.
CLAIMS: Mapping[str, str] = {
    "sdtt": "arXiv 2410.21035: perplexity below GPT-2's with nucleus sampling in 32 steps, 32 to 64 times fewer "
    "steps than its teacher (abstract and authors' page seen, tables not)",
    "halton": "arXiv 2503.17076: a lower FID than by confidence (abstract seen, tables not); the README states none",
    "paper": "arXiv 2510.04525: the moment sampler is asymptotically MaskGIT's, and partial caching and the hybrid "
    "order are more efficient (abstract seen, tables not)",
}
