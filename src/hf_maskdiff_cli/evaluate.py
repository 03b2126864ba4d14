"""`hf-maskdiff evaluate`: its arguments, and which of them it refuses before networks and samples are loaded."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .checks import require_path_or_repository, require_positive
from .generate import add_sampling_arguments, check_sampling_arguments, read_prompts
from .names import IMAGES, TEXTS, did_you_mean, did_you_mean_folder
from .samples import (
    kind_of_samples,
    kind_of_saved_pipeline,
    require_judged,
    require_one_kind,
    require_reference_kind,
)
from .set_folder import require_set_folder

INCEPTION_LAYERS = (64, 192, 768, 2048)
# What a network reads at a time: 16 squares of 4096 pixels a side, 3 GiB in float32. The system kills a process whose
# images need more than there is, and nothing is said.
_MOST_PIXELS = 2**28
_FOR_THE_OTHER_KIND = {
    IMAGES: ("judge", "judge_tokenizer", "ngram", "max_length"),
    TEXTS: ("image_size", "inception_weights", "save_statistics"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare every argument of the command."""
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
    add(
        "--num_seeds",
        type=int,
        default=3,
        help="number of sets, for error bars; their seeds are --seed, --seed + 1, ...",
    )
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> Any:
    """Check the arguments, judge the samples that they name, print the table, and return the report.

    On several processes all of them make samples, and the first one judges: the others return None.

    Returns:
        `hf_maskdiff.evaluation.report.Report`, or None.

    Raises:
        ValueError, OSError, ImportError: see `check_arguments` and `hf_maskdiff.evaluation.evaluate.judge_all`.
    """
    check_arguments(args)
    args.prompts = read_prompts(args.prompt_file) if args.pipeline else None
    from hf_maskdiff.evaluation.evaluate import judge_all

    return judge_all(args)


def set_folders(args: argparse.Namespace) -> dict[int, Path]:
    """Where the sets of a pipeline are made, by their seeds."""
    return {seed: args.output_dir / f"seed-{seed}" for seed in range(args.seed, args.seed + args.num_seeds)}


# --- what is refused --------------------------------------------------------------------------------------------------


def check_arguments(args: argparse.Namespace) -> None:
    """Raise `ValueError` for arguments that cannot work, before anything is loaded."""
    _check_what_is_judged(args)
    require_positive(args, ("num_seeds", "eval_batch_size", "image_size", "max_reference"))
    _check_pixels(args)
    _check_output_dir(args)
    _check_statistics(args)
    kind = _kind_of_pipeline(args) if args.pipeline else _kind_of_folders(args.samples)
    if kind is not None:
        require_options_of(kind, args)
    _check_references(kind, args)
    _check_networks(kind, args)


def _check_what_is_judged(args: argparse.Namespace) -> None:
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
    if args.samples and args.num_samples is not None:
        raise ValueError(f"--num_samples is for --pipeline, got {args.num_samples} with folders. Leave it out.")


def _check_pixels(args: argparse.Namespace) -> None:
    if args.image_size is not None and args.image_size**2 * args.eval_batch_size > _MOST_PIXELS:
        raise ValueError(
            f"`image_size` must leave a batch at most {_MOST_PIXELS} pixels, got {args.eval_batch_size} images of "
            f"{args.image_size} x {args.image_size}. Networks read at most 299 a side: pass a smaller --image_size, or "
            "a smaller --eval_batch_size."
        )


def _check_output_dir(args: argparse.Namespace) -> None:
    if args.output_dir is None:
        return
    if find_spec("matplotlib") is None:
        raise ValueError('a report has a picture, which needs matplotlib. Run `pip install "hf-maskdiff[evaluation]"`.')
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise ValueError(f"--output_dir must be a folder, got the file {str(args.output_dir)!r}. Pass another one.")
    inside = [one for one in args.samples if args.output_dir.resolve().is_relative_to(Path(one).resolve())]
    if inside:
        raise ValueError(
            f"--output_dir must not lie among the samples, where report.png would be one, got {str(args.output_dir)!r} "
            f"in {inside[0]!r}. Pass another folder."
        )


def _check_statistics(args: argparse.Namespace) -> None:
    if args.save_statistics is None:
        return
    if len(args.samples) != 1:
        raise ValueError(f"--save_statistics keeps those of one set, got {len(args.samples)} sets. Pass one folder.")
    if args.save_statistics.suffix != ".npz":
        raise ValueError(f"--save_statistics must name a file that ends in .npz, got {str(args.save_statistics)!r}.")


def _kind_of_pipeline(args: argparse.Namespace) -> str | None:
    """What a pipeline makes, where it lies on this machine; its other arguments are checked on the way."""
    check_sampling_arguments(args)
    for folder in set_folders(args).values():
        require_set_folder(folder)
    return kind_of_saved_pipeline(args.pipeline)


def _kind_of_folders(samples: list[str]) -> str | None:
    """What the folders hold, where their files' names tell it."""
    twice = [one for one in samples if samples.count(one) > 1]
    if twice:
        raise ValueError(f"a set counts once, got {twice[0]!r} {len(twice)} times. Pass each folder once.")
    kinds = {kind for kind in map(kind_of_samples, samples) if kind is not None}
    require_one_kind(kinds, samples)
    return kinds.pop() if kinds else None


def require_options_of(kind: str, args: argparse.Namespace) -> None:
    """Raise `ValueError` if an option for images was given with texts, or the other way round.

    Args:
        kind: of the samples, `IMAGES` or `TEXTS`.
    """
    require_judged(kind)
    for name in _FOR_THE_OTHER_KIND[kind]:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} is not for {kind}, got {getattr(args, name)!r}. Leave it out.")
    if kind == TEXTS and args.reference is not None and args.judge is None:
        raise ValueError("a reference of texts serves MAUVE, which needs --judge. Pass one, gpt2-large say.")
    if kind == IMAGES and is_statistics(args.reference) and args.max_reference is not None:
        raise ValueError(
            f"--max_reference is not for statistics, got {args.max_reference} with {args.reference!r}. Leave it out."
        )


def is_statistics(reference: str | None) -> bool:
    """Whether a reference of images is a file of mean and covariance, rather than the images."""
    return reference is not None and reference.endswith(".npz")


def _check_references(kind: str | None, args: argparse.Namespace) -> None:
    sources = [source for source in (args.reference, args.ngram) if source is not None]
    if kind != TEXTS and is_statistics(args.reference):
        if not Path(args.reference).exists():
            raise not_statistics(args.reference, "there is no such file")
        sources.remove(args.reference)
    for source in sources:
        found = kind_of_samples(source)
        if kind is not None and found is not None:
            require_reference_kind(kind, found, source)


def not_statistics(path: str | Path, reason: object) -> ValueError:
    """The error for a file that does not hold a reference's mean and covariance."""
    return ValueError(
        f"a reference file must be an .npz with `mu` and `sigma`, got {str(path)!r}: {reason}. Write one with "
        "--save_statistics, or pass a folder of images."
    )


def _check_networks(kind: str | None, args: argparse.Namespace) -> None:
    for name in ("judge", "judge_tokenizer") if kind == TEXTS else ("judge", "judge_tokenizer", "network"):
        value = getattr(args, name)
        if value is not None:
            require_path_or_repository(f"--{name}", value)
    if kind != TEXTS and args.network != "inception" and "/" not in args.network and not Path(args.network).exists():
        hint = did_you_mean(args.network, ["inception"]) or did_you_mean_folder(args.network) or "Check the spelling."
        raise ValueError(
            '--network must be "inception", a folder that exists, or a repository of the Hub as `owner/name`, got '
            f"{args.network!r}. {hint}"
        )
    if args.inception_weights is not None and args.network == "inception":
        require_inception_weights(args.inception_weights)


def require_inception_weights(path: str | Path) -> None:
    """Raise `ValueError` if there is no file of Inception's weights at a path."""
    if not Path(path).is_file():
        raise ValueError(f"the Inception weights must be a file, got {str(path)!r}. Check the path.")
