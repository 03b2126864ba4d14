"""What an image pipeline asks of a model, and how each kind of model answers."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from diffusers import UVit2DModel
from diffusers.utils.torch_utils import unwrap_module

from hf_maskdiff.denoisers.uvit2d_denoiser import UVit2DDenoiser


def image_denoiser(model: Any) -> Any:
    """The denoiser for a pipeline's model, which may be compiled.

    A model of this package is its own: it takes codes and, by keyword, what its pipeline tells it of the image, further
    `return_dict`, and where caching is on `positions` and `cache`; it returns logits `(batch_size, L, codebook_size)`
    and has `PartialCacheMixin`. A `UVit2DModel` of diffusers gets one that speaks like that.
    """
    return _image_denoiser.dispatch(type(unwrap_module(model)))(model)


@singledispatch
def _image_denoiser(model: Any) -> Any:
    return model


@_image_denoiser.register(UVit2DModel)
def _(model: Any) -> Any:
    return UVit2DDenoiser(model)
