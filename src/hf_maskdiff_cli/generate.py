"""`hf-maskdiff generate`: its arguments, and which of them it refuses before the pipeline is loaded."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from .checks import require_pipeline, require_positive, require_scheduler
from .names import IMAGES, OF_PROMPTS, PIPELINES, SCHEDULERS, SOUNDS, TEXTS, did_you_mean
from .samples import class_of_saved_pipeline
from .set_folder import require_set_folder

CPU_BLOCK_SIZE = 16
DTYPES = ("float32", "float16", "bfloat16")  # names of torch's
_AT_LEAST_1 = (
    "num_samples",
    "batch_size",
    "block_size",
    "shard_size",
    "num_substeps",
    "decode_chunk_size",
    "num_threads",
)
# What a kind of samples has no use for; of images those of classes, and those from text.
_OF_NO_USE_TO = {
    (IMAGES, False): ("prompt_file", "max_new_tokens", "audio_length_in_s"),
    (IMAGES, True): ("class_labels", "max_new_tokens", "audio_length_in_s"),
    (TEXTS, False): ("class_labels", "audio_length_in_s"),
    (SOUNDS, False): ("prompt_file", "max_new_tokens"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare every argument of the command."""
    add = parser.add_argument
    add("--pipeline", required=True, help="folder or Hub id of the pipeline")
    add("--num_samples", type=int, required=True)
    add("--output_dir", required=True, help="new or empty, or a set that was stopped: it is completed")
    add_sampling_arguments(parser)
    add("--verify", action="store_true", help="say how many files of the set are intact; damaged ones are made again")
    add("--push_to_hub", metavar="REPO", help="upload the finished set, with a card")
    add("--private", action="store_true", help="for a repository that is new")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that say how samples are made."""
    add = parser.add_argument
    add("--seed", type=int, default=0, help="the base seed: sample i depends on it and on i")
    add("--batch_size", type=int, default=64, help="samples between two writes; on a GPU, those made together")
    add("--block_size", type=int, help=f"samples made together; default: {CPU_BLOCK_SIZE} on a CPU, a batch on a GPU")
    add("--shard_size", type=int, default=1024, help="samples of a file, rounded up to whole blocks")
    sampling = parser.add_argument_group("sampling; defaults are those of the pipeline")
    add = sampling.add_argument
    add("--scheduler", help=f"{', '.join(SCHEDULERS)}, or folder or Hub id of a preset")
    add("--scheduler_config", nargs="+", default=[], metavar="KEY=VALUE", help="of the scheduler: choice_temperature=4")
    add("--num_inference_steps", type=int)
    add("--guidance_scale", type=float)
    add("--num_substeps", type=int, default=1, help="groups of a step, by partial caching; 1 is without")
    add("--class_labels", type=int, nargs="+", metavar="ID", help="of images or sounds, in turn; default: all")
    add("--decode_chunk_size", type=int, default=8, help="images: how many are decoded at a time")
    prompts = "a file with one prompt on each line, used in turn; for texts the default is none"
    add("--prompt_file", type=Path, help=f"texts, and images that are drawn from text: {prompts}")
    add("--max_new_tokens", type=int, help="texts: tokens after the prompt")
    add("--audio_length_in_s", type=float, help="sounds: seconds of each; default: what the model sees at a time")
    placement = parser.add_argument_group("placement")
    where = placement.add_mutually_exclusive_group()
    where.add_argument("--device_map", help="as for `from_pretrained`: cuda, cpu, or balanced, on all GPUs")
    where.add_argument("--model_cpu_offload", action="store_true", help="components on the GPU one at a time")
    where.add_argument("--group_offload", action="store_true", help="layers on the GPU one at a time")
    add = placement.add_argument
    add("--dtype", choices=DTYPES, default="float32")
    add("--compile", action="store_true", help="compile the transformer")
    add("--num_threads", type=int, default=1, help="threads of each process on a CPU; launch one process per core")


def check_arguments(args: argparse.Namespace) -> None:
    """Raise `ValueError` for arguments that cannot work, before anything is loaded."""
    check_sampling_arguments(args)
    require_set_folder(Path(args.output_dir))


def check_sampling_arguments(args: argparse.Namespace) -> None:
    """Raise `ValueError` for a pipeline, and ways of drawing its samples, that cannot work."""
    require_positive(args, _AT_LEAST_1)
    require_pipeline(args.pipeline)
    if args.scheduler is not None:
        require_scheduler(args.scheduler)
    read_settings(args.scheduler_config)
    name = class_of_saved_pipeline(args.pipeline)
    if name is not None:
        require_arguments_of(name, args)


def run(args: argparse.Namespace) -> Path:
    """Check the arguments, make the set that they describe, or what is missing of it, and return its folder.

    Raises:
        ValueError, OSError: see `check_arguments`, `read_prompts` and `hf_maskdiff.sets.making.make_set`.
    """
    check_arguments(args)
    args.prompts = read_prompts(args.prompt_file)
    from hf_maskdiff.sets.making import make_set

    return make_set(args)


def read_prompts(path: Path | None) -> list[str] | None:
    """The lines of a file of prompts, or None without a file.

    Raises:
        ValueError: the file is empty, or one of its lines is, or it is no text.
    """
    if path is None:
        return None
    try:
        prompts = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"`prompt_file` must be text in UTF-8, got {error} in {str(path)!r}. Save it as UTF-8."
        ) from error
    blank = next((number for number, line in enumerate(prompts, 1) if not line.strip()), None)
    if not prompts or blank is not None:
        found = "an empty file" if blank is None else f"nothing in line {blank}"
        raise ValueError(
            f"`prompt_file` must hold one prompt on each line, got {found} of {str(path)!r}. Fill it, or leave it out."
        )
    return prompts


def read_settings(
    pairs: Sequence[str], scheduler: str = "the scheduler", known: Collection[str] | None = None
) -> dict[str, Any]:
    """Read the settings of a scheduler from `key=value` pairs; a value is JSON, or else a word.

    Example:
        >>> read_settings(["choice_temperature=4", "masking_schedule=linear"])
        {'choice_temperature': 4, 'masking_schedule': 'linear'}

    Args:
        scheduler: what the error calls the scheduler.
        known: the settings that it has; None allows any.

    Raises:
        ValueError: something else than a pair, or a setting that the scheduler does not have.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals or (known is not None and key not in known):
            keys = scheduler if known is None else f"{scheduler}, {sorted(known)}"
            raise ValueError(
                f"`scheduler_config` must be key=value pairs with the keys of {keys}, got {pair!r}. "
                f"{did_you_mean(key, known or ()) or 'Pass for example choice_temperature=4.'}"
            )
        try:
            settings[key] = json.loads(value)
        except json.JSONDecodeError:
            settings[key] = value
    return settings


def require_arguments_of(pipeline: str, args: argparse.Namespace) -> None:
    """Raise `ValueError` if an argument is given that a pipeline has no use for, or none that it needs.

    Args:
        pipeline: the name of its class, one of `PIPELINES`.
    """
    kind, of_prompts = PIPELINES[pipeline], pipeline in OF_PROMPTS
    what = f"{kind} from text" if of_prompts else kind
    for name in _OF_NO_USE_TO[kind, of_prompts]:
        value = getattr(args, name)
        if value is not None:
            raise ValueError(
                f"`{name}` must be left out for a pipeline of {what}, got {value!r}. Leave it out, or pass another "
                f"`pipeline` than {args.pipeline!r}."
            )
    if of_prompts and args.prompt_file is None:
        raise ValueError(
            f"`prompt_file` must be given for a pipeline of {what}, got None. Pass a file with one prompt on each line."
        )
