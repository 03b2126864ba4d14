"""Runs of a pipeline of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from .editing import Edit
from .frames import as_html, history_sheet, keep_pixels, sheet
from .opening import Opened
from .requests import guidance_of, remarks_on_guidance, seed_of, steps_of, whole
from .runs import Run
from .samplers import Choice

MOST_IMAGES = 9
_PIXELATED = 64  # images up to this side are enlarged without smoothing


@dataclass(frozen=True)
class ImageRequest:
    """What both samplers draw.

    Args:
        label: class id, or None for an image of no class.
        num_images: of the class.
        seed: of the first image; the others count up.
        steps: of each sampler that has them.
        guidance_scale: as of the pipeline.
        edit: what of an image is drawn anew; None draws whole images.
    """

    label: int | None
    num_images: int
    seed: int
    steps: int
    guidance_scale: float
    edit: Edit | None = None

    @classmethod
    def of(
        cls, label: Any, num_images: Any, seed: Any, steps: Any, guidance_scale: Any, edit: Edit | None = None
    ) -> ImageRequest:
        """Of what the page's controls hold.

        Raises:
            ValueError: a number out of range.
        """
        images = whole("Images", num_images, 1, MOST_IMAGES)
        return cls(label, images, seed_of(seed), steps_of(steps), guidance_of(guidance_scale), edit)

    def what(self) -> dict[str, Any]:
        """Arguments of the call that say what to draw."""
        return {"class_labels": self.label}

    def start(self, opened: Opened) -> Tensor:
        """Codes to start from, int64 `(num_images, height, width)`."""
        mask, pipe = opened.mask_token_id, opened.pipe
        if self.edit is None:
            side = pipe.transformer.config.sample_size
            return torch.full((self.num_images, side, side), mask, device=pipe.device)
        return self.edit.codes.masked_fill(self.edit.editable, mask).expand(self.num_images, -1, -1).contiguous()

    def remarks(self) -> list[str]:
        """What must be said of its settings."""
        return remarks_on_guidance(self.guidance_scale, self.label)


class Request(Protocol):
    """What both samplers draw: an `ImageRequest`, or another that speaks of something else than a class."""

    @property
    def num_images(self) -> int: ...

    @property
    def seed(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def guidance_scale(self) -> float: ...

    @property
    def edit(self) -> Edit | None: ...

    def what(self) -> dict[str, Any]: ...

    def start(self, opened: Opened) -> Tensor: ...

    def remarks(self) -> list[str]: ...


class ImageRun(Run):
    """A run that draws images; arguments as of `Run`."""

    tensor = "latents"

    def __init__(self, title: str, opened: Opened, choice: Choice, request: Request) -> None:
        self.request = request
        super().__init__(title, opened, choice, request.steps, request.start(opened), request.remarks())

    def call(self, callback_on_step_end: Any) -> Any:
        """Draw the codes; they are decoded when they are shown."""
        request = self.request
        seeds = range(request.seed, request.seed + request.num_images)
        return self.pipe(
            **request.what(),
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            num_images_per_prompt=request.num_images,
            latents=self.start,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="latent",
            callback_on_step_end=callback_on_step_end,
        )

    def pictures(self) -> list[Image.Image]:
        """The images as they are now; outside a painted part each pixel is that of the image given."""
        pixels, edit = self.pipe.decode_latents(self.record.tokens.to(self.pipe.device)), self.request.edit
        if edit is not None:
            pixels = keep_pixels(pixels, edit.pixels, edit.editable)
        return self.pipe.image_processor.postprocess(pixels, "pil")

    def view(self) -> str:
        pictures = self.pictures()
        small = pictures[0].width <= _PIXELATED
        whole_sheet = sheet(pictures, gap=max(1, pictures[0].width // 28))
        return as_html(whole_sheet, f"images of {self.title}, step {self.record.step}", small, with_loss=True)

    def heat_map(self, num_steps: int) -> str:
        return as_html(history_sheet(self.record.history, num_steps), f"heat map of {self.title}")


def image_runs(opened: Opened, choices: Sequence[Choice], request: Request) -> list[ImageRun]:
    """A run for each choice, titled A, B, ...; errors as of `Run`."""
    return [ImageRun(title, opened, choice, request) for title, choice in zip("AB", choices, strict=True)]
