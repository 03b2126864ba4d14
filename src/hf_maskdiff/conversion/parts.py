"""What must hold of a pipeline's parts before any of them is written."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from hf_maskdiff.published import check_ids


def check_parts(pipe: DiffusionPipeline) -> None:
    """Weights must be numbers, and tokenizer and scheduler speak of rows of the model.

    Raises:
        ValueError: naming what does not.
    """
    rows = _rows(pipe.transformer)
    if hasattr(pipe, "tokenizer"):
        of_text = getattr(pipe, "text_encoder", pipe.transformer)  # whichever reads the tokenizer's tokens
        check_ids(pipe.tokenizer, _rows(of_text))
    check_scheduler_ids(pipe.scheduler.config, rows)
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            for key, tensor in part.state_dict().items():
                require_finite(tensor, f"{name}.{key}")


def _rows(transformer: Any) -> int:
    """Of a denoiser's table of tokens, the mask's among them."""
    stated = getattr(transformer.config, "vocab_size", None)
    if stated is not None:
        return stated
    return getattr(transformer, "mask_token_id", transformer.config.codebook_size) + 1


def check_scheduler_ids(settings: Any, rows: int) -> None:
    """Raise `ValueError` if the model has no rows for a sampler's mask or codes."""
    mask, codes = settings["mask_token_id"], settings.get("codebook_size")
    if type(mask) is not int or not 0 <= mask < rows:
        raise ValueError(
            f"the scheduler's `mask_token_id` must be a row of the model, 0 .. {rows - 1}, got {mask!r}. Take both "
            "from one checkpoint."
        )
    if codes is not None and (type(codes) is not int or not 1 <= codes <= rows):
        raise ValueError(
            f"the scheduler's `codebook_size` must be at most the model's {rows} rows, got {codes!r}. Take both from "
            "one checkpoint."
        )


def require_finite(tensor: Tensor, name: str) -> None:
    """`ValueError` for weights with NaN or infinity. It makes no copy: smallest and largest number tell."""
    if not tensor.is_floating_point() or not tensor.numel():
        return
    parts = tensor.split(max(1, len(tensor) // 64)) if tensor.ndim and tensor.element_size() == 1 else [tensor]
    for part in parts:  # of types of one byte a copy is needed, since there is no arithmetic for them
        low, high = (part.float() if part.element_size() == 1 else part).aminmax()
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            found = "NaN" if bool(torch.isnan(low)) else "infinity"
            raise ValueError(
                f"the weights must be finite numbers, got {found} in {name!r}. Fetch the checkpoint again, or take one "
                "from before its training failed."
            )
