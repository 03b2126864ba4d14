"""`hf-maskdiff tune`: its arguments, and which of them it refuses before anything is loaded."""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .checks import require_pipeline, require_positive
from .evaluate import INCEPTION_LAYERS, is_statistics, not_statistics
from .generate import DTYPES, read_prompts
from .names import OF_PROMPTS, SCHEDULERS, TEXTS, did_you_mean
from .samples import class_of_saved_pipeline, form_of, kind_of_saved_pipeline, require_judged

SAMPLERS = (
    "ConfidenceScheduler",
    "HaltonScheduler",
    "HybridScheduler",
    "MaskGITScheduler",
    "MomentScheduler",
    "UniformScheduler",
)
# Arguments that decide what a search finds; those of the pipeline's samples are in the description of its sets.
DECIDING = (
    *("passes", "samplers", "choice_temperatures", "num_substeps", "thresholds", "vary", "max_passes", "max_seconds"),
    "factor",
    *("finalists", "num_seeds", "min_diversity", "seed", "reference", "max_reference", "network", "inception_layer"),
    *("image_size", "judge", "judge_tokenizer", "ngram", "max_length", "own_likelihood"),
)
_WITH_OPTIONS = ("choice_temperature", "threshold")
_FOR_THE_OTHER_KIND = {True: ("reference", "image_size"), False: ("judge", "ngram", "own_likelihood", "max_length")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare every argument of the command."""
    add = parser.add_argument
    add("--pipeline", required=True, help="folder or Hub id of the pipeline")
    add("--output_dir", type=Path, required=True, help="new, or that of a search that was stopped: it goes on")
    budget = parser.add_mutually_exclusive_group(required=True)
    add = budget.add_argument
    add("--max_passes", type=float, help="budget: model passes, each sample's counted for itself")
    add("--max_seconds", type=float, help="budget: seconds of making samples, all processes together; about")
    space = parser.add_argument_group("what is searched")
    add = space.add_argument
    add("--passes", type=int, nargs="+", default=[4, 8, 16], help="levels: the best is sought at each of them")
    add("--samplers", nargs="+", default=list(SAMPLERS), metavar="SCHEDULER")
    add(
        "--choice_temperatures",
        type=_temperature,
        nargs="+",
        default=[None, 2.0, 4.0, 8.0, 16.0],
        metavar="ALPHA",
        help='"none" is without, for samplers that can be',
    )
    add("--num_substeps", type=int, nargs="+", default=[1, 2], metavar="R", help="groups of a step, by partial caching")
    add("--thresholds", type=float, nargs="+", default=[0.8, 0.95], help="for samplers that have one")
    more = "a further setting and what is tried of it, for samplers that have it, such as min_distance=1,3"
    add("--vary", type=_variation, nargs="+", metavar="SETTING=VALUES", help=more)
    add("--factor", type=int, default=3, help="one candidate in so many goes on to the next round")
    add("--finalists", type=int, default=1, help="of each level, judged again on new seeds")
    add("--num_seeds", type=int, default=3, help="sets of new seeds")
    add("--min_diversity", type=float, default=0.9, help="share of the model's own that a choice must keep; 0: none")
    images = parser.add_argument_group("judge of images: Frechet distance")
    add = images.add_argument
    add("--reference", help="real images: a folder, a set, a data set of the Hub, or an .npz with mu and sigma")
    add("--max_reference", type=int)
    add("--network", default="inception", help='"inception" (needs hf-maskdiff[fid]), or the folder of a classifier')
    add("--inception_weights")
    add("--inception_layer", type=int, choices=INCEPTION_LAYERS, default=2048)
    add("--image_size", type=int)
    texts = parser.add_argument_group("judge of texts: one of these")
    add = texts.add_argument
    add("--judge", help="a causal language model, for perplexity")
    add("--judge_tokenizer")
    add("--ngram", metavar="TEXTS", help="texts on which a judge of 6-grams is fitted")
    add("--own_likelihood", type=int, metavar="MASKS", help="the model itself, by so many random masks of each text")
    add("--max_length", type=int)
    making = parser.add_argument_group("making samples")
    add = making.add_argument
    add("--seed", type=int, default=0)
    add("--batch_size", type=int, default=64)
    add("--block_size", type=int)
    add("--eval_batch_size", type=int, default=32)
    add("--guidance_scale", type=float)
    add("--class_labels", type=int, nargs="+", metavar="ID")
    add("--prompt_file", type=Path)
    add("--max_new_tokens", type=int)
    add("--device_map")
    add("--dtype", choices=DTYPES, default="float32")
    add("--num_threads", type=int, default=1, help="threads of each process on a CPU")
    add("--device", help="of networks and judges")


def _temperature(word: str) -> float | None:
    return None if word == "none" else float(word)


def _variation(word: str) -> tuple[str, list[Any]]:
    """A setting and its values: numbers, true, false and null as in JSON, anything else as a word."""
    name, _, values = word.partition("=")
    if not name.isidentifier() or not values or name in _WITH_OPTIONS:
        raise argparse.ArgumentTypeError(
            f"must be a setting without an option of its own and its values, got {word!r}. Pass min_distance=1,3, say."
        )
    return name, [_value(one) for one in values.split(",")]


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def run(args: argparse.Namespace) -> Any:
    """Check the arguments, search, and return what was found.

    Raises:
        ValueError, OSError, ImportError: see `check_arguments` and `hf_maskdiff.tuning.search.tune`.
    """
    check_arguments(args)
    args.prompts = read_prompts(args.prompt_file)
    args.save_statistics = None  # which the judge of images can
    from hf_maskdiff.tuning.search import tune

    return tune(args)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise `ValueError` for arguments that cannot work, before anything is loaded."""
    positive = ("max_passes", "max_seconds", "finalists", "num_seeds", "batch_size", "block_size", "eval_batch_size")
    require_positive(
        args, (*positive, "own_likelihood", "num_threads", "max_new_tokens", "image_size", "max_reference")
    )
    for name in ("passes", "num_substeps"):
        values = getattr(args, name)
        if min(values) < 1 or len(set(values)) < len(values):
            raise ValueError(f"`{name}` must be different numbers of at least 1, got {values}. Pass 4 8 16, say.")
    if args.factor < 2:
        raise ValueError(f"`factor` must be at least 2, got {args.factor}. Pass 3: one in three goes on.")
    if not 0 <= args.min_diversity <= 1:
        raise ValueError(f"`min_diversity` must be a share in [0, 1], got {args.min_diversity}. Pass 0.9, or 0.")
    unknown = next((name for name in args.samplers if name not in SCHEDULERS), None)
    if unknown is not None:
        hint = did_you_mean(unknown, SCHEDULERS) or "Check the spelling."
        raise ValueError(f"`samplers` must be of {', '.join(SCHEDULERS)}, got {unknown!r}. {hint}")
    if args.output_dir.exists() and not args.output_dir.is_dir():
        raise ValueError(f"--output_dir must be a folder, got the file {str(args.output_dir)!r}. Pass another one.")
    if find_spec("matplotlib") is None:
        raise ValueError('a search has a picture, which needs matplotlib. Run `pip install "hf-maskdiff[evaluation]"`.')
    require_pipeline(args.pipeline)
    _check_judge(args)


def _check_judge(args: argparse.Namespace) -> None:
    kind, name = kind_of_saved_pipeline(args.pipeline), class_of_saved_pipeline(args.pipeline)
    if name in OF_PROMPTS:
        raise ValueError(
            f"`pipeline` must make texts, or images of classes, got {args.pipeline!r}, which draws from text. Pass "
            "another one."
        )
    if kind is not None:
        require_judged(kind)
        for name in _FOR_THE_OTHER_KIND[kind == TEXTS]:
            if getattr(args, name) is not None:
                raise ValueError(f"--{name} is not for {kind}, got {getattr(args, name)!r}. Leave it out.")
        asked = (args.judge, args.ngram, args.own_likelihood) if kind == TEXTS else (args.reference,)
        given = [one for one in asked if one is not None]
        if len(given) != 1:
            rule = "one of --judge, --ngram and --own_likelihood" if kind == TEXTS else "--reference"
            raise ValueError(f"a search needs one judge, for {kind} {rule}, got {given}. Pass it.")
    for source in (args.reference, args.ngram):
        if is_statistics(source):
            if not Path(source).exists():
                raise not_statistics(source, "there is no such file")
        elif source is not None:
            form_of(source)
