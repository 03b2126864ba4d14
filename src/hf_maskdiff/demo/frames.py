"""Pictures of a run, and how they are put into the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from math import ceil, sqrt

from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from .heat_map import grid_picture

_LARGE = 2**16  # pixels of a picture that may be sent with loss


def sheet(pictures: Sequence[Image.Image], gap: int) -> Image.Image:
    """Pictures of one size on a white sheet that is about as wide as high.

    Example:
        >>> sheet([Image.new("L", (28, 28))] * 4, gap=2).size
        (58, 58)
    """
    columns = ceil(sqrt(len(pictures)))
    rows = ceil(len(pictures) / columns)
    width, height = pictures[0].size
    paper = Image.new(
        pictures[0].mode, (columns * (width + gap) - gap, rows * (height + gap) - gap), _white(pictures[0].mode)
    )
    for number, picture in enumerate(pictures):
        paper.paste(picture, (number % columns * (width + gap), number // columns * (height + gap)))
    return paper


def _white(mode: str) -> int | tuple[int, ...]:
    return 255 if mode == "L" else (255,) * len(mode)


def history_sheet(history: Tensor, num_steps: int) -> Image.Image:
    """The heat maps of several images, laid out as `sheet` lays out the images.

    Args:
        history: int64 `(batch_size, height, width)`.
        num_steps: of the run.
    """
    side = 336 if len(history) == 1 else 224
    return sheet([grid_picture(one, num_steps, side) for one in history], gap=8)


def keep_pixels(drawn: Tensor, original: Tensor, editable: Tensor) -> Tensor:
    """Drawn images in which every pixel outside the editable codes is the original's.

    Args:
        drawn, original: `(batch_size, channels, height, width)`; the original may be one for all.
        editable: bool `(batch_size or 1, rows, columns)`, of codes.
    """
    change = interpolate(editable[:, None].float(), drawn.shape[-2:], mode="nearest").bool()
    return drawn.where(change.to(drawn.device), original.to(drawn.device, drawn.dtype))


def as_html(picture: Image.Image, says: str, pixelated: bool = False, with_loss: bool = False) -> str:
    """A picture as an HTML image that carries its bytes with it.

    Args:
        picture: to show, as wide as the panel.
        says: for those who cannot see it.
        pixelated: enlarge without smoothing.
        with_loss: send a large picture with loss: a photograph, say, and no heat map.
    """
    buffer, as_webp = io.BytesIO(), with_loss and picture.width * picture.height > _LARGE
    picture.save(buffer, "WEBP" if as_webp else "PNG", **({"quality": 90} if as_webp else {}))
    data = base64.b64encode(buffer.getvalue()).decode()
    style = "md-picture md-pixels" if pixelated else "md-picture"
    return f'<img class="{style}" alt="{escape(says)}" src="data:image/{"webp" if as_webp else "png"};base64,{data}">'
