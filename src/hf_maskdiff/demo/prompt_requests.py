"""What a pipeline that draws images from text is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .editing import Edit
from .image_runs import MOST_IMAGES
from .opening import Opened
from .requests import guidance_of, seed_of, steps_of, whole


@dataclass(frozen=True)
class PromptRequest:
    """What both samplers draw.

    Args:
        prompt: what the images shall show.
        negative_prompt: what guidance leads away from.
        num_images: of the prompt.
        seed: of the first image; the others count up.
        steps: of each sampler that has them.
        guidance_scale: as of the pipeline.
    """

    prompt: str
    negative_prompt: str
    num_images: int
    seed: int
    steps: int
    guidance_scale: float
    edit: Edit | None = None

    @classmethod
    def of(
        cls, prompt: Any, negative_prompt: Any, num_images: Any, seed: Any, steps: Any, guidance_scale: Any
    ) -> PromptRequest:
        """Of what the page's controls hold.

        Raises:
            ValueError: no prompt, or a number out of range.
        """
        if not str(prompt or "").strip():
            raise ValueError("“Prompt” must say what to draw, got nothing. Write for example “a red house”.")
        images = whole("Images", num_images, 1, MOST_IMAGES)
        numbers = (images, seed_of(seed), steps_of(steps), guidance_of(guidance_scale))
        return cls(str(prompt), str(negative_prompt or ""), *numbers)

    def what(self) -> dict[str, Any]:
        """Arguments of the call that say what to draw."""
        return {"prompt": self.prompt, "negative_prompt": self.negative_prompt}

    def start(self, opened: Opened) -> Tensor:
        """Codes to start from, int64 `(num_images, height, width)`: all masked."""
        side = opened.pipe.transformer.config.sample_size
        return torch.full((self.num_images, side, side), opened.mask_token_id, device=opened.pipe.device)

    def remarks(self) -> list[str]:
        """What must be said of its settings."""
        if self.negative_prompt and self.guidance_scale <= 1:
            return ["Nothing is guided, so there is nothing to lead away from: “Not to be seen” is not used."]
        return []
