"""Published samplers of text that come without a model of their own: what their authors' calls decide, as presets.

`num_inference_steps` are those of a block.
"""

from __future__ import annotations

from hf_maskdiff.conversion.upstream import Preset
from hf_maskdiff.schedulers import (
    ConfidenceScheduler,
    EditingScheduler,
    KLASSScheduler,
    ReMDMScheduler,
    ThresholdScheduler,
)


def fast_dllm(mask_token_id: int = 126336, codebook_size: int | None = None) -> Preset:
    """`generate` of Fast-dLLM with `threshold=0.9`: all tokens of a block that are sure, at least one; greedy."""
    scheduler = ThresholdScheduler(
        mask_token_id=mask_token_id, codebook_size=codebook_size, rounding="even", threshold=0.9, token_temperature=0
    )
    return Preset(scheduler, 32)


def sdar(mask_token_id: int = 151669, codebook_size: int | None = None) -> Preset:
    """`block_diffusion_generate` of SDAR: drawn tokens more probable than 0.85, at least an even share of the block."""
    scheduler = ThresholdScheduler(
        mask_token_id=mask_token_id,
        codebook_size=codebook_size,
        rounding="even",
        threshold=0.85,
        follow_schedule=True,
        measure="drawn",
        block_length=4,
    )
    return Preset(scheduler, 4)


def llada2(mask_token_id: int = 156895, codebook_size: int | None = None) -> Preset:
    """diffusers' `BlockRefinementScheduler`: confidence above 0.95, at least an even share of the block; greedy."""
    scheduler = ThresholdScheduler(
        mask_token_id=mask_token_id,
        codebook_size=codebook_size,
        rounding="even",
        threshold=0.95,
        follow_schedule=True,
        token_temperature=0,
    )
    return Preset(scheduler, 32)


def llada2_editing(mask_token_id: int = 156895, codebook_size: int | None = None) -> Preset:
    """LLaDA2's quality mode: confidence above 0.7, and revealed tokens are replaced above 0.5; greedy."""
    return Preset(EditingScheduler(mask_token_id=mask_token_id, codebook_size=codebook_size), 32)


def remdm(mask_token_id: int = 50257, codebook_size: int | None = None) -> Preset:
    """ReMDM's cap on OpenWebText, as its script has it: `eta=0.008`, nucleus 0.9, as many steps as tokens."""
    scheduler = ReMDMScheduler(mask_token_id=mask_token_id, codebook_size=codebook_size, eta=0.008, top_p=0.9)
    return Preset(scheduler, 1024)


def pc_sampler(mask_token_id: int = 126336, codebook_size: int | None = None) -> Preset:
    """PC-Sampler on LLaDA, for mathematics and code: a token a pass, earlier ones sooner; a prior is to be added."""
    scheduler = ConfidenceScheduler(
        mask_token_id=mask_token_id,
        codebook_size=codebook_size,
        masking_schedule="linear",
        rounding="even",
        token_temperature=0,
        position_decay=0.25,
    )
    return Preset(scheduler, 256)


def klass(mask_token_id: int = 126336, codebook_size: int | None = None) -> Preset:
    """KLASS on LLaDA with its defaults: confidence above 0.9, two divergences in a row below 0.01 nats; greedy."""
    scheduler = KLASSScheduler(
        mask_token_id=mask_token_id, codebook_size=codebook_size, rounding="even", token_temperature=0
    )
    return Preset(scheduler, 64)
