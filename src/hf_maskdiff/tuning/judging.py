"""Judges of a search: one number for quality, of which less is better, and one for diversity beside it."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from hf_maskdiff.evaluation.image_metrics import frechet_with_error
from hf_maskdiff.evaluation.judges import ImageJudge, TextJudge
from hf_maskdiff.evaluation.report import mean_and_error
from hf_maskdiff.evaluation.text_metrics import sentence_entropy
from hf_maskdiff.likelihood import Stratified
from hf_maskdiff.pipelines.text_prompts import PromptEncoder
from hf_maskdiff_cli.names import IMAGES

from .front import Score


class Judge(Protocol):
    """Gives a set of samples its score.

    Args:
        quality: what the value is.
        diversity: what the diversity is.
        fewest_samples: that it needs.
        passes: of the model under test, for each sample.
    """

    quality: str
    diversity: str
    fewest_samples: int
    passes: int

    def __call__(self, samples: Any) -> Score:
        """The score of a set."""


class ReferenceImages(ImageJudge):
    """Frechet distance from real images; beside it the variance of features, as a share of the real images'."""

    quality, diversity, passes = "Frechet distance", "variance", 0

    def __init__(self, args: argparse.Namespace, device: str) -> None:
        super().__init__(args, device, 2**62)
        self.fewest_samples = self.network.num_features + self.network.num_features // 9 + 2  # a tenth is left out

    def __call__(self, samples: Any) -> Any:
        """The score of a set of images."""
        assert self.reference is not None
        features = self._read(samples)[0].double().numpy()
        real = float(np.trace(self.reference[1]))
        spread = np.square(features - features.mean(0)).sum(-1) / real  # of each image
        return Score(*frechet_with_error(features, self.reference), *mean_and_error(spread.tolist()))


class JudgedTexts(TextJudge):
    """Perplexity under a causal model, or nats per character under 6-grams; beside it the entropy of each text."""

    diversity, passes, fewest_samples = "entropy", 0, 2

    def __init__(self, args: argparse.Namespace, device: str) -> None:
        super().__init__(args, device, 2**62)
        self.quality = "nats per character" if args.judge is None else "perplexity"

    def __call__(self, samples: Any) -> Any:
        """The score of a set of texts."""
        measures = super().__call__(samples)
        return Score(*measures[self.quality], *measures["entropy"])


class OwnLikelihood:
    """How unlikely the model itself finds its texts, written one token at a time; beside it their entropy.

    A sampler of several tokens in a pass may go wrong in ways that the model would not: this sees it. It does not see
    what the model itself has wrong, and any sharpening looks like a gain: half of the answer is the diversity.

    Args:
        pipe: the text pipeline, without a cache while this is called.
        num_masks: random masks of each text.
        batch_size: rows of a model pass.
    """

    quality, diversity, fewest_samples = "nats per token", "entropy", 2

    def __init__(self, pipe: Any, num_masks: int, batch_size: int) -> None:
        self.pipe, self.passes, self.batch_size = pipe, num_masks, batch_size

    def __call__(self, samples: Any) -> Score:
        """The score of a set of texts."""
        # The tokens that the model wrote: those of the text may be others. Around them what it saw around them.
        before, after = PromptEncoder(
            self.pipe.tokenizer, self.pipe.mask_token_id, self.pipe.denoiser.vocab_size
        ).special_tokens
        rows = [_without(ids.tolist(), before, after) for ids in samples.tokens]
        found = self.pipe.log_likelihood(
            num_samples=self.passes,
            estimator=Stratified(self.passes),
            batch_size=self.batch_size,
            generator=[_generator(ids) for ids in rows],
            input_ids=[[*before, *ids, *after] for ids in rows],
            mask=[[False] * len(before) + [True] * len(ids) + [False] * len(after) for ids in rows],
        )
        nats = (-found.log_likelihoods / found.num_tokens).tolist()
        return Score(*mean_and_error(nats), *mean_and_error(sentence_entropy([*map(torch.tensor, rows)]).tolist()))


def _without(ids: list[int], before: Sequence[int], after: Sequence[int]) -> list[int]:
    """A text's tokens without those that the tokenizer adds around a prompt, which the model was given."""
    start = len(before) if ids[: len(before)] == list(before) else 0
    end = len(ids) - len(after) if after and ids[-len(after) :] == list(after) else len(ids)
    return ids[start:end] or ids


def _generator(ids: list[int]) -> torch.Generator:
    """Of the masks of a text, so that it has the same score wherever it comes up."""
    digest = hashlib.sha256(repr(ids).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def judge_of(args: argparse.Namespace, kind: str, pipe: Any) -> Judge:
    """The judge that the arguments of `hf-maskdiff tune` ask for.

    Args:
        args: checked arguments.
        kind: of the pipeline's samples.
        pipe: the pipeline.
    """
    if args.own_likelihood is not None:
        return OwnLikelihood(pipe, args.own_likelihood, args.eval_batch_size)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return ReferenceImages(args, device) if kind == IMAGES else JudgedTexts(args, device)
