"""Models with adapters (LoRA by peft) in pipelines."""

from __future__ import annotations

from typing import Any

from torch import nn


def without_wrapper(model: Any) -> Any:
    """A `PeftModel`'s base, in whose layers its adapters are; any other model as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def require_no_adapters(model: nn.Module) -> None:
    """Raise `ValueError` for a model with adapters, which a pipeline's folder could not hold."""
    if any(hasattr(module, "lora_A") or hasattr(module, "base_layer") for module in model.modules()):
        raise ValueError(
            "a pipeline must be saved without adapters, got a model that has some. Merge them first "
            "(`peft_model.merge_and_unload()`), or save the adapter alone (`peft_model.save_pretrained(folder)`)."
        )
