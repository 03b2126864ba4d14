"""What the audio pipeline returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers.utils import BaseOutput
from torch import Tensor


@dataclass
class MaskedDiffusionAudioPipelineOutput(BaseOutput):
    """Output of `MaskedDiffusionAudioPipeline`.

    Args:
        audios: waveforms, float32 `(batch_size, channels, num_samples)`, a tensor or an array as `output_type` says;
            None for `output_type="codes"`.
        codes: what they were decoded from, int64 `(batch_size, num_codebooks, num_frames)`.
    """

    audios: Any
    codes: Tensor
