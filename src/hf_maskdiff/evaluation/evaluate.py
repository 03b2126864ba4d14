"""Judge folders of samples, or a pipeline: the arguments, which measures they ask for, and the report.

`examples/evaluate.py` and `hf-maskdiff evaluate` are these functions in this order.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from hf_maskdiff.generation import add_arguments as add_generate_arguments
from hf_maskdiff.generation import add_sampling_arguments
from hf_maskdiff.generation import run as generate
from hf_maskdiff.parallel import cost_of, start_processes
from hf_maskdiff.published import open_tokenizer
from hf_maskdiff.published.malformed import refusing, settings_of

from .frechet import Statistics, feature_statistics
from .image_features import INCEPTION_LAYERS, ClassifierNetwork, FeatureNetwork, InceptionNetwork, read_features
from .image_metrics import frechet_with_error, inception_score, load_statistics, require_enough, save_statistics
from .mauve import mauve
from .mauve import require_enough as require_enough_texts
from .ngram import CharacterNGram
from .report import Measure, Report, SetResult, mean_and_error, rows_of
from .samples import ImageSamples, Samples, TextSamples, load_samples
from .text_metrics import Reading, distinct_n, read_texts, sentence_entropy

DISTINCT = (1, 2, 4)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every argument of the program."""
    add = parser.add_argument
    add("samples", nargs="*", help="folders of images, of .txt files or of `hf-maskdiff generate`, or Hub data sets")
    add("--reference", help="real samples, in any of these forms; for images also an .npz with mu and sigma")
    add("--max_reference", type=int, help="how many of them, at random; default: all")
    add("--output_dir", type=Path, help="for report.md, .json and .png, and the sets of --pipeline")
    add("--eval_batch_size", type=int, default=32, help="samples that a network or judge reads at a time")
    add("--device", help="of networks and judges; default: the GPU where there is one")
    images = parser.add_argument_group("images: Frechet distance (with --reference) and Inception score")
    add = images.add_argument
    add("--network", default="inception", help='"inception" (needs hf-maskdiff[fid]), or the folder of a classifier')
    add("--inception_weights", help="torch-fidelity's file, where it cannot be downloaded")
    add("--inception_layer", type=int, choices=INCEPTION_LAYERS, default=2048, help="2048 is FID")
    add("--image_size", type=int, help="judge squares of this side, cut from the middle of resized images")
    add("--save_statistics", type=Path, metavar="FILE.npz", help="keep mu and sigma of the only set, as a reference")
    texts = parser.add_argument_group("texts: entropy and distinct n-grams, beside")
    add = texts.add_argument
    add("--judge", help="a causal language model for perplexity and, with --reference, MAUVE: gpt2-large, say")
    add("--judge_tokenizer", help="where it is not the judge's own")
    add("--ngram", metavar="TEXTS", help="texts in any of these forms, on which a judge of 6-grams is fitted")
    add("--max_length", type=int, help="tokens of a text that a judge reads at most")
    making = parser.add_argument_group("a pipeline instead of folders: its samples are made first, as by `generate`")
    add = making.add_argument
    add("--pipeline", help="folder or Hub id of the pipeline")
    add("--num_samples", type=int, help="of a set")
    add("--num_seeds", type=int, default=3, help="sets, for error bars; their seeds count from --seed on")
    add_sampling_arguments(parser)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise `ValueError` for what cannot work, before anything is loaded."""
    if bool(args.samples) == bool(args.pipeline):
        raise ValueError(
            f"pass either folders of samples or --pipeline, got {args.samples} and {args.pipeline!r}. "
            "`hf-maskdiff evaluate out/digits` judges a folder."
        )
    if args.pipeline and (args.output_dir is None or args.num_samples is None):
        raise ValueError(
            f"--pipeline needs --num_samples and --output_dir, where the samples are kept, got {args.num_samples} and "
            f"{args.output_dir}. Pass both."
        )
    for name in ("num_seeds", "eval_batch_size", "image_size", "max_reference"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}. Pass a positive number.")
    if args.output_dir is not None and find_spec("matplotlib") is None:
        raise ValueError('a report has a picture, which needs matplotlib. Run `pip install "hf-maskdiff[evaluation]"`.')
    inside = [
        one for one in args.samples if args.output_dir and args.output_dir.resolve().is_relative_to(Path(one).resolve())
    ]
    if inside:
        raise ValueError(
            f"--output_dir must not lie among the samples, where report.png would be one, got {str(args.output_dir)!r} "
            f"in {inside[0]!r}. Pass another folder."
        )
    if args.save_statistics is not None and len(args.samples) != 1:
        raise ValueError(f"--save_statistics keeps those of one set, got {len(args.samples)} sets. Pass one folder.")
    if args.save_statistics is not None and args.save_statistics.suffix != ".npz":
        raise ValueError(f"--save_statistics must name a file that ends in .npz, got {str(args.save_statistics)!r}.")
    twice = [one for one in args.samples if args.samples.count(one) > 1]
    if twice:
        raise ValueError(f"a set counts once, got {twice[0]!r} {len(twice)} times. Pass each folder once.")
    if args.samples and args.num_samples is not None:
        raise ValueError(f"--num_samples is for --pipeline, got {args.num_samples} with folders. Leave it out.")
    try:
        torch.device(args.device or "cpu")
    except RuntimeError as error:
        raise ValueError(f"--device must be one of torch's, such as cpu or cuda:0, got {args.device!r}.") from error


def make_sets(args: argparse.Namespace) -> list[Path]:
    """A pipeline's sets, one a seed, in `output_dir`; what is there is not made again."""
    parser = argparse.ArgumentParser()
    add_generate_arguments(parser)
    making = vars(parser.parse_args(["--pipeline", args.pipeline, "--num_samples", "1", "--output_dir", ""]))
    making = {name: getattr(args, name, default) for name, default in making.items()}
    seeds = range(args.seed, args.seed + args.num_seeds)
    folders = {seed: args.output_dir / f"seed-{seed}" for seed in seeds}
    threads = torch.get_num_threads()
    made = [
        generate(argparse.Namespace(**making | {"seed": seed, "output_dir": str(folder)}))
        for seed, folder in folders.items()
    ]
    torch.set_num_threads(threads)  # which `generate` lowers on a CPU
    return made


# --- what is measured -------------------------------------------------------------------------------------------------


class ImageJudge:
    """Frechet distance and Inception score in the features of one network.

    Args:
        smallest: samples of the smallest set that it will judge.
    """

    what, not_its_own = "images", ("judge", "judge_tokenizer", "ngram", "max_length")

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
            require_enough(smallest, self.network.num_features)  # before hours are spent
            self.reference = self._statistics(args.reference, args.max_reference)
            self.legend["Frechet distance"] = (
                f"in the {self.network.num_features} features, from {args.reference}; error: jackknife over tenths of "
                "the samples. Biased by the number of samples: compare equal ones"
            )
        self.legend["Inception score"] = "of the network's classes; error: standard deviation over 10 splits"

    def _read(self, samples: ImageSamples) -> tuple[Tensor, Tensor]:
        return read_features(self.network, samples, self.batch_size, self.image_size)

    def _statistics(self, reference: str, limit: int | None) -> Statistics:
        if reference.endswith(".npz"):
            statistics = load_statistics(reference)
            if len(statistics[0]) != self.network.num_features:
                raise ValueError(
                    f"the reference must be of the same network, got {len(statistics[0])} features in {reference!r} "
                    f"and {self.network.num_features} of {self.network.name}. Make it with --save_statistics."
                )
            if limit is not None:
                raise ValueError(
                    f"--max_reference is not for statistics, got {limit} with {reference!r}. Leave it out."
                )
            return statistics
        samples = load_samples(reference, limit)
        if not isinstance(samples, ImageSamples):
            raise ValueError(f"the reference of images must be images, got texts in {reference!r}.")
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
    """Likelihood under the judges that were asked for, never without entropy and distinct n-grams.

    Args:
        smallest: samples of the smallest set that it will judge.
    """

    what, not_its_own = "texts", ("image_size", "inception_weights", "save_statistics")

    def __init__(self, args: argparse.Namespace, device: str, smallest: int) -> None:
        self.batch_size, self.max_length = args.eval_batch_size, args.max_length
        self.settings: dict[str, Any] = {"judge": args.judge, "max_length": args.max_length}
        self.model = self.tokenizer = self.ngram = self.reference = None
        self.legend = {}
        if args.judge is not None:
            self.model, self.tokenizer = load_judge(args.judge, args.judge_tokenizer, device)
            self.legend["perplexity"] = f"under {args.judge}, over all tokens but each text's first; error: over texts"
        if args.ngram is not None:
            self.ngram = CharacterNGram(_texts(args.ngram).texts)
            self.legend["nats a character"] = f"under 6-grams of {args.ngram}; error: over texts"
        self.legend["entropy"] = "of a text's tokens, in nats, mean over texts; error: over texts"
        self.legend |= {f"distinct-{n}": f"share of the set's {n}-grams of tokens that differ" for n in DISTINCT}
        if args.reference is not None:
            if self.model is None:
                raise ValueError("a reference of texts serves MAUVE, which needs --judge. Pass one, gpt2-large say.")
            texts = _texts(args.reference, args.max_reference).texts
            require_enough_texts(smallest, len(texts))
            self.reference = self._read(texts).features
            self.legend["MAUVE"] = f"nearness to {len(texts)} texts of {args.reference} in {args.judge}'s features"

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
            measures["nats a character"] = mean_and_error(nats)
        tokens = self._tokens(samples, reading)
        measures["entropy"] = mean_and_error(sentence_entropy(tokens).tolist())
        for n in DISTINCT:
            measures[f"distinct-{n}"] = (distinct_n([ids for ids in tokens if len(ids) >= n], n), math.nan)
        if reading is not None and self.reference is not None:
            measures["MAUVE"] = (mauve(reading.features, self.reference), math.nan)
        return measures

    def _tokens(self, samples: TextSamples, reading: Reading | None) -> Sequence[Tensor]:
        """The set's own; else the judge's; else characters. The settings say which."""
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
    """A causal language model and its tokenizer, in float32.

    Raises:
        ValueError: neither a folder nor a repository with such a model.
    """
    from transformers import AutoModelForCausalLM

    try:
        with refusing(f"config.json in {name!r}", "Fetch it again.", passed=(RuntimeError, MemoryError)):
            model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False, dtype=torch.float32)
        return model.to(device).eval(), open_tokenizer(tokenizer or name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--judge must name a causal language model with its tokenizer, got {name!r}: {str(error).splitlines()[0]}"
        ) from error


def _texts(source: str, limit: int | None = None) -> TextSamples:
    samples = load_samples(source, limit)
    if not isinstance(samples, TextSamples):
        raise ValueError(f"texts are compared with texts, got images in {source!r}.")
    return samples


# --- the run ----------------------------------------------------------------------------------------------------------


JUDGES: dict[type, type[ImageJudge] | type[TextJudge]] = {ImageSamples: ImageJudge, TextSamples: TextJudge}


def kind_of(pipeline: str) -> type[Samples]:
    """What a pipeline makes: texts where it has a tokenizer, or is a model without a pipeline's index."""
    try:
        index = settings_of(f"model_index.json in {pipeline!r}", lambda: DiffusionPipeline.load_config(pipeline))
        return TextSamples if "tokenizer" in index else ImageSamples
    except OSError:
        return TextSamples


def judge_of(kind: type[Samples], args: argparse.Namespace, smallest: int) -> ImageJudge | TextJudge:
    """The judge that the arguments ask for; `ValueError` where some of them are for the other kind of samples."""
    judge = JUDGES[kind]
    for name in judge.not_its_own:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} is not for {judge.what}, got {getattr(args, name)!r}. Leave it out.")
    return judge(args, args.device or ("cuda" if torch.cuda.is_available() else "cpu"), smallest)


def judged(judge: ImageJudge | TextJudge, sets: Sequence[Samples]) -> Report:
    """What a judge finds of sets of its kind."""
    results = []
    for samples in sets:
        cost = cost_of(Path(samples.name))
        results.append(SetResult(samples.name, samples.count, judge(samples), samples.configuration, *cost))
    return Report(rows_of(results), judge.legend, judge.settings | {"versions": _versions()})


def _versions() -> str:
    found = []
    for name in ("hf-maskdiff", "torch", "transformers", "torch-fidelity", "faiss-cpu"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def run(args: argparse.Namespace) -> Report | None:
    """The program; on several processes the samples are made by all and judged by the first, the others return None."""
    check_arguments(args)
    if args.pipeline:
        # The judge first: what it lacks should be known before the samples are made.
        is_first = start_processes().is_main_process
        judge = judge_of(kind_of(args.pipeline), args, args.num_samples) if is_first else None
        folders = make_sets(args)
        if judge is None:
            return None
        sets = [load_samples(folder) for folder in folders]
    else:
        sets = [load_samples(folder) for folder in args.samples]
        kinds = {type(samples) for samples in sets}
        if len(kinds) != 1:
            raise ValueError(f"sets in one table must be all images or all texts, got {args.samples}.")
        judge = judge_of(kinds.pop(), args, min(samples.count for samples in sets))
    report = judged(judge, sets)
    print(report.table())
    if args.output_dir is not None:
        report.save(args.output_dir)
    return report
