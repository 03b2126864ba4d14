"""Runs of a pipeline of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .opening import Opened
from .requests import guidance_of, seed_of, steps_of, whole
from .runs import Run
from .samplers import Choice
from .token_text import coloured, filled_in, pieces

MOST_NEW_TOKENS = 1024


@dataclass(frozen=True)
class TextRequest:
    """What both samplers write.

    Args:
        prompt: a text to go on from or to fill in, a chat, or None to write freely.
        max_new_tokens: None for as many as there is room for, or for the places marked in the prompt alone.
        seed: of the text.
        steps: of each sampler that has them.
        guidance_scale: as of the pipeline.
    """

    prompt: Any
    max_new_tokens: int | None
    seed: int
    steps: int
    guidance_scale: float

    @classmethod
    def of(
        cls, text: str, is_chat: bool, max_new_tokens: Any, seed: Any, steps: Any, guidance_scale: Any
    ) -> TextRequest:
        """Of what the page's controls hold; no text is written on freely, 0 new tokens are as many as fit.

        Raises:
            ValueError: a number out of range.
        """
        prompt = ([{"role": "user", "content": text}] if is_chat else text) if text else None
        new = whole("New tokens", max_new_tokens, 0, MOST_NEW_TOKENS) or None
        return cls(prompt, new, seed_of(seed), steps_of(steps), guidance_of(guidance_scale))

    def start(self, opened: Opened) -> Tensor:
        """Ids to start from, int64 `(1, length)`.

        Raises:
            ValueError: a prompt that cannot be read, or that leaves no room.
        """
        (sequence,) = opened.pipe.prepare_sequences(self.prompt, None, None, self.max_new_tokens, None)
        return sequence.ids[None]


class TextRun(Run):
    """A run that writes a text; arguments as of `Run`."""

    tensor = "sequences"

    def __init__(self, title: str, opened: Opened, choice: Choice, request: TextRequest) -> None:
        self.request = request
        super().__init__(title, opened, choice, request.steps, request.start(opened))

    def call(self, callback_on_step_end: Any) -> Any:
        """Write the text."""
        request = self.request
        return self.pipe(
            request.prompt,
            num_inference_steps=request.steps,
            max_new_tokens=request.max_new_tokens,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="ids",
            callback_on_step_end=callback_on_step_end,
        )

    def view(self) -> str:
        return filled_in(self._pieces(), self._history(), self.record.step)

    def heat_map(self, num_steps: int) -> str:
        return coloured(self._pieces(), self._history(), num_steps)

    def _history(self) -> list[int]:
        return self.record.history[0].tolist()

    def _pieces(self) -> list[str]:
        tokenizer = self.pipe.tokenizer

        def decode(ids: list[int]) -> str:
            return str(tokenizer.decode(ids, skip_special_tokens=True))

        return pieces(decode, self.record.tokens[0].tolist(), self.pipe.mask_token_id)


def text_runs(opened: Opened, choices: Sequence[Choice], request: TextRequest) -> list[TextRun]:
    """A run for each choice, titled A, B, ...; errors as of `Run`."""
    return [TextRun(title, opened, choice, request) for title, choice in zip("AB", choices, strict=True)]
