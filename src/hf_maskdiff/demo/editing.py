"""From a painting to the part of an image that is drawn anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageChops
from torch import Tensor

_SHORTEST_SIDE = 448  # pixels of what is painted on


@dataclass(frozen=True)
class Edit:
    """An image, and which of its codes are drawn anew.

    Args:
        pixels: as the pipeline reads them, `(1, channels, height, width)` in [0, 1].
        codes: of the image, int64 `(1, rows, columns)`.
        editable: bool, of the same shape.
    """

    pixels: Tensor
    codes: Tensor
    editable: Tensor


def painted_part(value: Mapping[str, Any] | None) -> tuple[Image.Image, Image.Image]:
    """The image that somebody painted on, and where: white, in "L", of the image's size.

    Args:
        value: of Gradio's image editor: `background` and `layers`, PIL images; only their opaque part counts.

    Raises:
        ValueError: there is no image, or nothing is painted.
    """
    image = None if value is None else value.get("background")
    if value is None or image is None or (image.mode == "RGBA" and not image.getchannel("A").getbbox()):
        raise ValueError(
            "an image must be there to paint on, got none. Upload one, or press “Paint on A's image” after a run."
        )
    painted = Image.new("L", image.size)
    for layer in value.get("layers") or []:
        opaque = layer.convert("RGBA").getchannel("A").resize(image.size)
        painted = ImageChops.lighter(painted, opaque.point(lambda value: 255 * (value > 0)))
    if painted.getbbox() is None:
        raise ValueError(
            "a part of the image must be painted over, got an empty painting. Choose the brush and paint where the "
            "image shall be drawn anew."
        )
    return image, painted


def edit_of(pipe: Any, image: Image.Image, painted: Image.Image) -> Edit:
    """What a pipeline makes of an image and of the white part of a mask.

    Raises:
        ValueError: see `preprocess_image` and `preprocess_mask` of the pipeline.
    """
    pixels = pipe.preprocess_image(reduced(image, pipe.transformer.config.sample_size * pipe.vae_scale_factor))
    return Edit(pixels, pipe.encode_image(pixels), pipe.preprocess_mask(painted).to(pipe.device))


def reduced(image: Image.Image, side: int) -> Image.Image:
    """A square whose side is a multiple of the model's as the means of its blocks: so what `to_paint_on` has enlarged
    comes back as it was. Other images are left to the pipeline.
    """
    times, rest = divmod(image.width, side)
    return image.reduce(times) if image.width == image.height and times and not rest else image


def to_paint_on(picture: Image.Image) -> dict[str, Any]:
    """The value with which Gradio's image editor shows a picture, large enough to paint on."""
    times = max(1, -(-_SHORTEST_SIDE // min(picture.size)))
    large = picture.convert("RGB").resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    return {"background": large, "layers": [], "composite": large}
