"""Models with adapters (LoRA by peft) in pipelines."""

from __future__ import annotations

from typing import Any

from diffusers.loaders import AmusedLoraLoaderMixin
from torch import Tensor, nn


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


class TextToImageLoraMixin(AmusedLoraLoaderMixin):
    """Loads LoRAs into the transformer and the text encoder of a pipeline, as diffusers' other pipelines do.

    ```python
    pipe.load_lora_weights("me/a-style", adapter_name="style")
    pipe.set_adapters("style", 0.8)
    ```

    diffusers' own mixin for aMUSEd has no loader of both; it looks for a unet.
    """

    transformer: Any
    text_encoder: Any

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | dict[str, Tensor],
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load what `save_lora_weights` has written, or a script of diffusers that trains LoRAs for aMUSEd.

        Args:
            pretrained_model_name_or_path_or_dict: folder, repository, or weights by name, which begins with
                "transformer." or "text_encoder.".
            adapter_name: how `set_adapters` names it.
            hotswap: put the weights in place of those of the adapter that has this name.
            kwargs: where the weights are: `weight_name`, `subfolder`, `revision` and others of diffusers.

        Raises:
            ValueError: no weights for any part of the pipeline.
        """
        state_dict, alphas, metadata = self.lora_state_dict(
            pretrained_model_name_or_path_or_dict, return_lora_metadata=True, **kwargs
        )
        parts = {part for part in (self.transformer_name, self.text_encoder_name) if _has_part(state_dict, part)}
        if not parts:
            raise ValueError(
                f"a LoRA must have weights of {self.transformer_name!r} or {self.text_encoder_name!r}, got names such "
                f"as {sorted(state_dict)[:3]}. Pass one that was made for this kind of model."
            )
        common = {"adapter_name": adapter_name, "metadata": metadata, "_pipeline": self, "hotswap": hotswap}
        if self.transformer_name in parts:
            self.load_lora_into_transformer(state_dict, alphas, self.transformer, **common)
        if self.text_encoder_name in parts:
            self.load_lora_into_text_encoder(state_dict, alphas, self.text_encoder, **common)

    def fuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """See `LoraBaseMixin.fuse_lora`; by default into the transformer."""
        super().fuse_lora([self.transformer_name] if components is None else components, **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """See `LoraBaseMixin.unfuse_lora`; by default from the transformer."""
        super().unfuse_lora([self.transformer_name] if components is None else components, **kwargs)


def _has_part(state_dict: dict[str, Tensor], part: str) -> bool:
    return any(name.startswith(f"{part}.") for name in state_dict)
