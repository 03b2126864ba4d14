"""Judges: the measures of a set of images, and of a set of texts."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from hf_maskdiff.devices import is_out_of_memory
from hf_maskdiff.hub_access import require_hub
from hf_maskdiff.published import open_tokenizer
from hf_maskdiff_cli.errors import one_line
from hf_maskdiff_cli.evaluate import is_statistics, require_options_of
from hf_maskdiff_cli.names import IMAGES, TEXTS
from hf_maskdiff_cli.samples import require_reference_kind

from .frechet import Statistics, feature_statistics
from .image_features import ClassifierNetwork, FeatureNetwork, InceptionNetwork, read_features
from .image_metrics import frechet_with_error, inception_score, load_statistics, require_enough, save_statistics
from .mauve import mauve
from .mauve import require_enough as require_enough_texts
from .ngram import CharacterNGram
from .report import Measure, mean_and_error
from .samples import ImageSamples, TextSamples, load_samples
from .text_metrics import Reading, distinct_n, read_texts, sentence_entropy

DISTINCT = (1, 2, 4)


class ImageJudge:
    """Frechet distance and Inception score of sets of images, in the features of one network.

    Args:
        args: arguments of `hf-maskdiff evaluate`, which give the network, the reference and the sizes.
        device: the device that the network runs on.
        smallest: number of samples in the smallest set to be judged.

    Raises:
        ValueError: the network or the reference does not fit, or there are too few samples for its features.
        ImportError: the Inception network needs torch-fidelity, which is not installed.
    """

    def __init__(self, args: argparse.Namespace, device: str, smallest: int) -> None:
        self.batch_size, self.image_size, self.save_to = args.eval_batch_size, args.image_size, args.save_statistics
        self.network: FeatureNetwork
        if args.network == "inception":
            self.network = InceptionNetwork(args.inception_weights, args.inception_layer, device)
        else:
            self.network = ClassifierNetwork(args.network, device)
        self.reference: Statistics | None = None
        self.settings: dict[str, Any] = {"network": self.network.name, "image size": self.image_size or "as it is"}
        self.legend = {}
        if args.reference is not None:
            require_enough(smallest, self.network.num_features)  # before hours of sampling
            self.reference = self._statistics(args.reference, args.max_reference)
            self.legend["Frechet distance"] = (
                f"in {self.network.num_features} features, from {args.reference}; error: jackknife over tenths of the "
                "samples. Its bias depends on the number of samples: compare equal numbers only"
            )
        self.legend["Inception score"] = "of the network's classes; error: standard deviation over 10 splits"

    def _read(self, samples: ImageSamples) -> tuple[Tensor, Tensor]:
        return read_features(self.network, samples, self.batch_size, self.image_size)

    def _statistics(self, reference: str, limit: int | None) -> Statistics:
        if is_statistics(reference):
            statistics = load_statistics(reference)
            if len(statistics[0]) != self.network.num_features:
                raise ValueError(
                    f"the reference must be of the same network, got {len(statistics[0])} features in {reference!r} "
                    f"and {self.network.num_features} of {self.network.name}. Make it with --save_statistics."
                )
            return statistics
        samples: Any = load_samples(reference, limit)
        require_reference_kind(IMAGES, samples.kind, reference)
        require_enough(samples.count, self.network.num_features)
        return feature_statistics(self._read(samples)[0])

    def __call__(self, samples: Any) -> dict[str, Measure]:
        features, logits = self._read(samples)
        if self.save_to is not None:
            save_statistics(self.save_to, features)
        score: dict[str, Measure] = {}
        if self.reference is not None:
            score["Frechet distance"] = frechet_with_error(features, self.reference)
        return score | {"Inception score": inception_score(logits)}


class TextJudge:
    """Likelihood of sets of texts under the requested judges, always together with entropy and distinct n-grams.

    Args:
        args: arguments of `hf-maskdiff evaluate`, which give the judges, the reference and the lengths.
        device: the device that the judge runs on.
        smallest: number of samples in the smallest set to be judged.

    Raises:
        ValueError: the judge or the reference does not fit, or there are too few samples for MAUVE.
        ImportError: MAUVE needs faiss, which is not installed.
    """

    def __init__(self, args: argparse.Namespace, device: str, smallest: int) -> None:
        self.batch_size, self.max_length = args.eval_batch_size, args.max_length
        self.settings: dict[str, Any] = {"judge": args.judge, "max_length": args.max_length}
        self.model = self.tokenizer = self.ngram = self.reference = None
        self.legend = {}
        if args.judge is not None:
            self.model, self.tokenizer = load_judge(args.judge, args.judge_tokenizer, device)
            self.legend["perplexity"] = f"under {args.judge}, of all tokens but each text's first; error: over texts"
        if args.ngram is not None:
            self.ngram = CharacterNGram(_texts(args.ngram).texts)
            self.legend["nats per character"] = f"under a 6-gram model of {args.ngram}; error: over texts"
        self.legend["entropy"] = "of the tokens in a text, in nats, mean over texts; error: over texts"
        self.legend |= {f"distinct-{n}": f"distinct {n}-grams as a share of all in the set" for n in DISTINCT}
        if args.reference is not None:
            texts = _texts(args.reference, args.max_reference).texts
            require_enough_texts(smallest, len(texts))
            self.reference = self._read(texts).features
            self.legend["MAUVE"] = f"closeness to {len(texts)} texts of {args.reference} in {args.judge}'s features"

    def _read(self, texts: Sequence[str]) -> Reading:
        return read_texts(texts, self.model, self.tokenizer, self.batch_size, self.max_length)

    def __call__(self, samples: Any) -> dict[str, Measure]:
        measures: dict[str, Measure] = {}
        reading = None if self.model is None else self._read(samples.texts)
        if reading is not None:
            found = reading.perplexity
            measures["perplexity"] = (found.perplexity, found.perplexity * found.standard_error)
        if self.ngram is not None:
            nats = [-fmean(self.ngram.log_probs(text)) for text in samples.texts]
            measures["nats per character"] = mean_and_error(nats)
        tokens = self._tokens(samples, reading)
        measures["entropy"] = mean_and_error(sentence_entropy(tokens).tolist())
        for n in DISTINCT:
            measures[f"distinct-{n}"] = (distinct_n([ids for ids in tokens if len(ids) >= n], n), math.nan)
        if reading is not None and self.reference is not None:
            measures["MAUVE"] = (mauve(reading.features, self.reference), math.nan)
        return measures

    def _tokens(self, samples: TextSamples, reading: Reading | None) -> Sequence[Tensor]:
        """The tokens for entropy and distinct n-grams: the set's own if it has any, else the judge's, else characters.

        The report's settings say which were used.
        """
        if samples.tokens is not None:
            kind, tokens = "the set's", samples.tokens
        elif reading is not None:
            kind, tokens = "the judge's", reading.tokens
        else:
            kind, tokens = "characters", [torch.tensor([*map(ord, text)]) for text in samples.texts]
        before = self.settings.setdefault("tokens of entropy", kind)
        if before != kind:
            raise ValueError(
                f"sets in one table must count the same tokens, got {before} and, in {samples.name}, {kind} tokens. "
                "Judge them in two runs."
            )
        return tokens


def load_judge(name: str, tokenizer: str | None, device: str) -> tuple[Any, Any]:
    """Load a causal language model, in float32, and its tokenizer.

    Raises:
        ValueError: `name` is neither a folder nor a repository with such a model.
    """
    from transformers import AutoModelForCausalLM

    try:
        require_hub(name)
        model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False, dtype=torch.float32)
        return model.to(device).eval(), open_tokenizer(tokenizer or name)
    except Exception as error:  # of several libraries, by what is wrong with the files
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"--judge must name a causal language model with its tokenizer, got {name!r}: {one_line(error)}"
        ) from error


def _texts(source: str, limit: int | None = None) -> TextSamples:
    samples: Any = load_samples(source, limit)
    require_reference_kind(TEXTS, samples.kind, source)
    return samples


JUDGES: dict[str, type[ImageJudge] | type[TextJudge]] = {IMAGES: ImageJudge, TEXTS: TextJudge}


def judge_of(kind: str, args: argparse.Namespace, smallest: int) -> ImageJudge | TextJudge:
    """Create the judge that the arguments ask for.

    Args:
        kind: the kind of the samples, `IMAGES` or `TEXTS`.
        args: arguments of `hf-maskdiff evaluate`.
        smallest: number of samples in the smallest set to be judged.

    Raises:
        ValueError: an option is for the other kind of samples; and the errors of the judge.
    """
    require_options_of(kind, args)
    return JUDGES[kind](args, args.device or ("cuda" if torch.cuda.is_available() else "cpu"), smallest)
