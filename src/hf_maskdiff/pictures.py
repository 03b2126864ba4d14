"""PIL images of any mode with 8 bits a channel, as models of images read them."""

from __future__ import annotations

import torch
from PIL import Image, ImageChops, ImageOps

# How the plain modes are called that hold the same without alpha being multiplied in, or without a palette.
_PLAIN = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}


def upright(image: Image.Image) -> Image.Image:
    """As it should be shown: turned as its EXIF orientation says, 8 bits per channel, transparency kept."""
    return _in_bytes(ImageOps.exif_transpose(image), image.format)


def in_eight_bits(image: Image.Image, mode: str) -> Image.Image:
    """An image as "L" or "RGB". Pillow by itself cuts 16-bit values off at 255 rather than dividing them.

    Transparency is left out, as diffusers does. The EXIF orientation is not looked at.

    Raises:
        ValueError: numbers whose range nobody knows: mode "I" unless it is a 16-bit PNG, or "F" outside [0, 1].
    """
    return _in_bytes(image, image.format).convert(mode)


def is_grey(image: Image.Image) -> bool:
    """Whether it shows no colour: its channels are alike, but for what a JPEG file makes of grey."""
    if image.mode in ("1", "L", "La", "LA", "F") or image.mode.startswith("I"):
        return True
    red, green, blue = image.convert("RGB").split()
    pairs = ((red, green), (green, blue), (red, blue))
    return not any(any(ImageChops.difference(*pair).histogram()[17:]) for pair in pairs)


def opaque_white(image: Image.Image) -> Image.Image:
    """Where a mask is white, as "L": what is transparent is not, unless all of it is alike.

    Raises:
        ValueError: as `in_eight_bits`; or a mask whose transparency alone says something, which may mean either.
    """
    image = upright(image)
    if not image.has_transparency_data:
        return image.convert("L")
    image = image.convert("RGBA")
    least, most = image.getchannel("A").getextrema()
    if least == most:
        return image.convert("RGB").convert("L")
    shown = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("L")
    if not any(shown.histogram()[128:]):
        raise ValueError(
            "the mask is nowhere white, and says by transparency alone what it means. Pass `mask.getchannel('A')` to "
            "draw anew what is opaque, `ImageOps.invert(mask.getchannel('A'))` for what is transparent"
        )
    return shown


def _in_bytes(image: Image.Image, file_format: str | None) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PNG"):  # older Pillow opens it as "I"
        return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")  # it cuts to whole numbers
    if image.mode == "I":
        raise ValueError(
            f"an image of mode 'I' may hold numbers of any range, got some up to {image.getextrema()[1]}. Make it 8 or "
            "16 bits, for example `Image.fromarray(np.asarray(image).astype(np.uint16))`"
        )
    if image.mode == "F":
        values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.float32)
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise ValueError(
                f"an image of mode 'F' must hold values in [0, 1], got values from {float(values.min()):.3g} to "
                f"{float(values.max()):.3g}. Divide them by the largest that may be"
            )
        return image.point(lambda value: value * 255 + 0.5).convert("L")
    if image.mode == "P" and image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert(_PLAIN.get(image.mode, image.mode))
