"""Which position was revealed when, in colours: dark blue came first, yellow last, and grey was given."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .history import GIVEN, MASKED

Colour = tuple[int, int, int]

# From dark to light, so that the order is seen without colours too.
_RAMP: tuple[Colour, ...] = ((38, 24, 92), (36, 84, 148), (24, 138, 141), (92, 186, 106), (244, 222, 66))
_GIVEN: Colour = (205, 207, 212)
_MASKED: Colour = (255, 255, 255)
_SMALLEST_TEXT = 16  # pixels of a cell in which a number can still be read


def colour_of(step: int, num_steps: int) -> Colour:
    """The colour of a step, 1 .. `num_steps`, or of `GIVEN` or `MASKED`.

    Example:
        >>> colour_of(1, 8), colour_of(8, 8)
        ((38, 24, 92), (244, 222, 66))
    """
    if step in (GIVEN, MASKED):
        return _GIVEN if step == GIVEN else _MASKED
    place = (step - 1) / max(num_steps - 1, 1) * (len(_RAMP) - 1)
    left = min(int(place), len(_RAMP) - 2)
    share = place - left
    red, green, blue = (
        round(low + (high - low) * share) for low, high in zip(_RAMP[left], _RAMP[left + 1], strict=True)
    )
    return red, green, blue


def text_colour_on(colour: Colour) -> str:
    """Black or white, whichever is read more easily on a colour: by the contrast of their luminances."""
    linear = [(part / 255) ** 2.2 for part in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#111111" if luminance > 0.19 else "#ffffff"


def as_css(colour: Colour) -> str:
    """The colour as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def grid_picture(history: Tensor, num_steps: int, side: int = 336) -> Image.Image:
    """A picture of one image's history: a cell for each code, with the number of its step where that can be read.

    Args:
        history: int64 `(height, width)`, as `hf_maskdiff.demo.history` writes it.
        num_steps: of the run; the last one is the lightest.
        side: pixels, at least; each cell is a whole number of pixels.

    Returns:
        An RGB image.
    """
    rows = history.tolist()
    height, width = len(rows), len(rows[0])
    cell = -(-side // max(height, width))
    picture = Image.new("RGB", (width * cell, height * cell), _MASKED)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=cell * 0.42)
    for y, row in enumerate(rows):
        for x, step in enumerate(row):
            left, top = x * cell, y * cell
            colour = colour_of(step, num_steps)
            draw.rectangle((left, top, left + cell - 2, top + cell - 2), fill=colour, outline=None)
            if step > GIVEN and cell >= _SMALLEST_TEXT:
                draw.text((left + cell / 2, top + cell / 2), str(step), text_colour_on(colour), font, anchor="mm")
    return picture


def legend(num_steps: int) -> str:
    """HTML that says which colour is which step."""
    stops = ", ".join(as_css(colour) for colour in _RAMP)
    return (
        '<div class="md-legend"><span>step 1</span>'
        f'<span class="md-ramp" style="background:linear-gradient(90deg, {stops})"></span>'
        f"<span>step {num_steps}</span>"
        f'<span class="md-given" style="background:{as_css(_GIVEN)}"></span><span>given</span></div>'
    )
