"""Spoken words of a pipeline, judged by a classifier: Frechet distance, accuracy, variance; a bed of `beds.py`."""

from __future__ import annotations

from typing import Any

import torch
from images import variance_within
from passes import generators_from, open_pipeline, partial_caching
from samplers import shared_config
from torch import Tensor

from hf_maskdiff import MaskedDiffusionAudioPipeline
from hf_maskdiff.evaluation.audio_data import load_labelled_clips
from hf_maskdiff.evaluation.frechet import feature_statistics, frechet_distance
from hf_maskdiff.evaluation.word_classifier import WordClassifier


class Bench:
    """The pipeline, its `word_classifier` and real clips.

    Args:
        pipeline: folder.
        data_dir: with `test.npz`, see examples/render_speech.py.
        number: of clips of a seed, at most half of the real ones.
        batch_size: clips that are drawn and decoded together.
    """

    def __init__(self, pipeline: str, data_dir: str, number: int, batch_size: int) -> None:
        self.number, self.batch_size = number, batch_size
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pipe = open_pipeline(MaskedDiffusionAudioPipeline, pipeline).to(device)
        judge = WordClassifier.from_pretrained(pipeline, subfolder="word_classifier", use_safetensors=True)
        self.judge, self.shared = judge.to(device), shared_config(self.pipe.scheduler)
        self.audios, self.labels, _, self.rate = load_labelled_clips("test", data_dir)
        if len(self.audios) < 2 * number:
            raise ValueError(
                f"`number` must be at most {len(self.audios) // 2}, half of the real clips, got {number}. Pass fewer."
            )

    def real(self, seed: int) -> tuple[Tensor, Tensor]:
        """Two disjoint random sets of real clips for a seed, as indices."""
        order = torch.randperm(len(self.audios), generator=torch.Generator().manual_seed(seed))
        return order[: self.number], order[self.number : 2 * self.number]

    def reference(self, seed: int, decoded: bool) -> dict[str, float]:
        """Measures of real clips, or of these through the codec and back."""
        others = self.real(seed)[1]
        clips = self.audios[others].float() / 32768
        if decoded:
            codes = self.pipe.encode_audio(clips[:, None], self.rate)
            clips = self.pipe.decode_codes(codes)[:, 0, : clips.shape[1]].cpu()
        return self.judged(clips, self.labels[others], seed)

    def judged(self, clips: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
        """Frechet distance to the seed's real clips, share of clips read as their label, variance within a word."""
        real = self.real(seed)[0]
        _, expected = self.judge.read(self.audios[real])
        classes, features = self.judge.read(clips)
        distance = frechet_distance(*feature_statistics(expected), *feature_statistics(features))
        variance = variance_within(features, labels) / (variance_within(expected, self.labels[real]) or 1.0)
        accuracy = (classes == labels).double().mean().item()
        return {"frechet": distance, "accuracy": accuracy, "within-class variance": variance}

    def drawn(self, scheduler: Any, num_substeps: int, steps: int, seed: int, **call: Any) -> tuple[Tensor, Tensor]:
        """A clip for each label of the seed's real clips, and the labels."""
        self.pipe.scheduler, labels = scheduler, self.labels[self.real(seed)[0]]
        generators, made = generators_from(seed * self.number, self.number), []
        seconds = self.audios.shape[1] / self.rate
        with partial_caching(self.pipe.transformer, num_substeps):
            for start in range(0, self.number, self.batch_size):
                rows = slice(start, start + self.batch_size)
                call |= {"num_inference_steps": steps, "generator": generators[rows], "audio_length_in_s": seconds}
                made.append(self.pipe(class_labels=labels[rows], **call).audios[:, 0].cpu())
        return torch.cat(made), labels
