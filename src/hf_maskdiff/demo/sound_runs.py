"""Runs of a pipeline of sounds."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hf_maskdiff.evaluation.mel import FLOOR, log_mel
from hf_maskdiff.wav_files import wav

from .frames import as_html
from .heat_map import grid_picture
from .opening import Opened
from .requests import guidance_of, remarks_on_guidance, seed_of, steps_of, whole
from .runs import Run
from .samplers import Choice

MOST_SOUNDS = 4
_WINDOW, _BANDS = 256, 64  # of the spectrogram shown
_WIDTH = 504  # pixels of a heat map, at least


@dataclass(frozen=True)
class SoundRequest:
    """What both samplers draw: sounds as long as the model sees at a time.

    Args:
        label: class id, or None for a sound of no class.
        num_sounds: of the class.
        seed: of the first sound; the others count up.
        steps: of each sampler that has them.
        guidance_scale: as of the pipeline.
    """

    label: int | None
    num_sounds: int
    seed: int
    steps: int
    guidance_scale: float

    @classmethod
    def of(cls, label: Any, num_sounds: Any, seed: Any, steps: Any, guidance_scale: Any) -> SoundRequest:
        """Of what the page's controls hold.

        Raises:
            ValueError: a number out of range.
        """
        sounds = whole("Sounds", num_sounds, 1, MOST_SOUNDS)
        return cls(label, sounds, seed_of(seed), steps_of(steps), guidance_of(guidance_scale))

    def start(self, opened: Opened) -> Tensor:
        """Codes to start from, int64 `(num_sounds, num_codebooks, num_frames)`: masks."""
        pipe = opened.pipe
        num_frames = round(pipe.chunk_length_s * pipe.frame_rate)
        shape = (self.num_sounds, pipe.num_codebooks, num_frames)
        return torch.full(shape, opened.mask_token_id, device=pipe.device)

    def remarks(self) -> list[str]:
        """What must be said of its settings."""
        return remarks_on_guidance(self.guidance_scale, self.label)


class SoundRun(Run):
    """A run that draws sounds; arguments as of `Run`."""

    tensor = "codes"

    def __init__(self, title: str, opened: Opened, choice: Choice, request: SoundRequest) -> None:
        self.request = request
        super().__init__(title, opened, choice, request.steps, request.start(opened), request.remarks())

    def call(self, callback_on_step_end: Any) -> Any:
        """Draw the codes; they are decoded when they are shown."""
        request = self.request
        seeds = range(request.seed, request.seed + request.num_sounds)
        labels = {} if request.label is None else {"class_labels": [request.label] * request.num_sounds}
        return self.pipe(
            **labels,
            codes=self.start,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="codes",
            callback_on_step_end=callback_on_step_end,
        )

    def view(self) -> str:
        """The sounds as they are now, to play and to see; where a code is missing there is silence."""
        audios, rate = self.pipe.decode_codes(self.record.tokens).cpu(), self.pipe.sampling_rate
        said = f"of {self.title}, step {self.record.step}"
        parts = []
        for audio in audios:
            data = base64.b64encode(wav(audio, rate)).decode()
            picture = as_html(spectrogram(audio, rate), f"spectrogram {said}", pixelated=True)
            source = f'style="width: 100%" src="data:audio/wav;base64,{data}"'  # else it covers what is beside it
            parts.append(f'<audio controls title="sound {said}" {source}></audio>{picture}')
        return "".join(parts)

    def heat_map(self, num_steps: int) -> str:
        """A picture for each sound: a row for each codebook, a column for each frame."""
        pictures = (grid_picture(one, num_steps, _WIDTH) for one in self.record.history)
        return "".join(as_html(picture, f"heat map of {self.title}", pixelated=True) for picture in pictures)


def spectrogram(audio: Tensor, sampling_rate: int) -> Image.Image:
    """A grey picture of a waveform `(channels, num_samples)`: high above low, loud is dark."""
    levels = log_mel(audio.mean(0, keepdim=True), sampling_rate, _WINDOW, _BANDS)[0].flip(0)
    floor = torch.tensor(FLOOR).log10()
    grey = 255 * (levels / floor).clamp(0, 1)
    return Image.fromarray(grey.round().to(torch.uint8).numpy())


def sound_runs(opened: Opened, choices: Sequence[Choice], request: SoundRequest) -> list[SoundRun]:
    """A run for each choice, titled A, B, ...; errors as of `Run`."""
    return [SoundRun(title, opened, choice, request) for title, choice in zip("AB", choices, strict=True)]
