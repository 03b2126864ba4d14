"""Sets of images and texts from a pipeline: the arguments, the loading and placement, and what a sample is.

`examples/generate_dataset.py` and `hf-maskdiff generate` are these functions in this order.
"""

from __future__ import annotations

import argparse
import inspect
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Features, Image, Value
from huggingface_hub import DatasetCard, create_repo, upload_folder
from torch import Tensor

from . import __version__
from .models import PartialCacheConfig
from .parallel import HIDDEN, Source, generate, on_main_process, start_processes, write_atomically
from .pipelines import MaskedDiffusionTextPipeline, MaskGITPipeline, MDLMPipeline
from .pipelines.transformers_tasks import Repository, _load_scheduler

CPU_BLOCK_SIZE = 16
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_PROGRAM = ("command", "run", "prompt_file", "scheduler_config")  # what they say stands in `prompts`, `scheduler`
# What decides where and how fast samples are made, and not which.
_NOT_IN_THE_SET = (
    "output_dir",
    "batch_size",
    "device_map",
    "model_cpu_offload",
    "group_offload",
    "push_to_hub",
    "private",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every argument of the program."""
    add = parser.add_argument
    add("--pipeline", required=True, help="folder or Hub id of the pipeline")
    add("--num_samples", type=int, required=True)
    add("--output_dir", required=True, help="new or empty, or a set that was stopped: it is completed")
    add_sampling_arguments(parser)
    add("--push_to_hub", metavar="REPO", help="upload the finished set, with a card")
    add("--private", action="store_true", help="for a repository that is new")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """How samples are made, whatever becomes of them."""
    add = parser.add_argument
    add("--seed", type=int, default=0, help="the base seed: sample i depends on it and on i")
    add("--batch_size", type=int, default=64, help="samples between two writes; on a GPU, those made together")
    add("--block_size", type=int, help=f"samples made together; default: {CPU_BLOCK_SIZE} on a CPU, a batch on a GPU")
    add("--shard_size", type=int, default=1024, help="samples of a file, rounded up to whole blocks")
    sampling = parser.add_argument_group("sampling; what is not given is the pipeline's own")
    add = sampling.add_argument
    add("--scheduler", help="class of a scheduler, or folder or Hub id of a preset")
    add("--scheduler_config", nargs="+", default=[], metavar="KEY=VALUE", help="of the scheduler: choice_temperature=4")
    add("--num_inference_steps", type=int)
    add("--guidance_scale", type=float)
    add("--num_substeps", type=int, default=1, help="groups of a step, by partial caching; 1 is without")
    add("--class_labels", type=int, nargs="+", metavar="ID", help="images: the classes in turn; default: all")
    add("--decode_chunk_size", type=int, default=8, help="images: how many are decoded at a time")
    add("--prompt_file", type=Path, help="texts: a prompt a line, in turn; default: none")
    add("--max_new_tokens", type=int, help="texts: tokens after the prompt")
    placement = parser.add_argument_group("placement")
    where = placement.add_mutually_exclusive_group()
    where.add_argument("--device_map", help="as for `from_pretrained`: cuda, cpu, or balanced, on all GPUs")
    where.add_argument("--model_cpu_offload", action="store_true", help="components on the GPU one at a time")
    where.add_argument("--group_offload", action="store_true", help="layers on the GPU one at a time")
    add = placement.add_argument
    add("--dtype", choices=DTYPES, default="float32")
    add("--compile", action="store_true", help="compile the transformer")
    add("--num_threads", type=int, default=1, help="of a process on a CPU; launch one process a core")


def check_arguments(args: argparse.Namespace) -> None:
    """Raise `ValueError` for numbers that cannot work, before anything is loaded."""
    names = (
        "num_samples",
        "batch_size",
        "block_size",
        "shard_size",
        "num_substeps",
        "decode_chunk_size",
        "num_threads",
    )
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}. Pass a positive number.")


def read_prompts(path: Path | None) -> list[str] | None:
    """The lines of a file; `ValueError` where one of them is no prompt."""
    if path is None:
        return None
    prompts = path.read_text(encoding="utf-8").splitlines()
    blank = next((number for number, line in enumerate(prompts, 1) if not line.strip()), None)
    if not prompts or blank is not None:
        found = "an empty file" if blank is None else f"nothing in line {blank}"
        raise ValueError(
            f"`prompt_file` must hold a prompt a line, got {found} of {str(path)!r}. Fill it, or leave it out."
        )
    return prompts


def load_pipeline(args: argparse.Namespace, state: PartialState) -> Any:
    """The pipeline as the arguments want it: scheduler, place, dtype, partial caching, compilation."""
    device = torch.device("cpu") if state.device.type == "cpu" else state.device
    loading = {"dtype": DTYPES[args.dtype]} | ({"device_map": args.device_map} if args.device_map else {})
    repository = Repository(args.pipeline, {}, loading)
    try:
        pipe = repository.open(MaskGITPipeline, MDLMPipeline, MaskedDiffusionTextPipeline)
    except NotImplementedError as error:  # diffusers' word for a map that it does not know
        raise ValueError(f"`device_map` must be one that diffusers knows, got {args.device_map!r}: {error}.") from error
    if args.scheduler is not None:
        pipe.register_modules(scheduler=_load_scheduler(args.scheduler, pipe.scheduler.config))
    if args.scheduler_config:
        settings = scheduler_settings(args.scheduler_config, type(pipe.scheduler))
        pipe.register_modules(scheduler=pipe.scheduler.from_config(pipe.scheduler.config, **settings))
    if args.num_substeps > 1:  # a text pipeline has a cache of its own, whatever its model
        cached = pipe if hasattr(pipe, "enable_cache") else pipe.transformer
        cached.enable_cache(PartialCacheConfig(num_substeps=args.num_substeps))
    if args.compile and getattr(pipe.transformer, "_repeated_blocks", None):
        pipe.transformer.compile_repeated_blocks(fullgraph=True, dynamic=True)
    elif args.compile:
        pipe.transformer.compile(dynamic=True)
    if args.model_cpu_offload:
        pipe.enable_model_cpu_offload(device=device)
    elif args.group_offload:
        modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
        whole = [name for name, part in modules.items() if not getattr(part, "_supports_group_offloading", True)]
        pipe.enable_group_offload(device, offload_type="leaf_level", exclude_modules=whole)
    elif not args.device_map:
        pipe.to(device)
    return pipe


def scheduler_settings(pairs: Sequence[str], scheduler: type) -> dict[str, Any]:
    """Settings as `key=value`, the value as JSON writes it, or a word.

    Example:
        >>> scheduler_settings(["choice_temperature=4", "masking_schedule=linear"], MomentScheduler)
        {'choice_temperature': 4, 'masking_schedule': 'linear'}

    Raises:
        ValueError: a key that the scheduler does not have.
    """
    known = set(inspect.signature(scheduler).parameters)
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in known:
            raise ValueError(
                f"`scheduler_config` must be key=value pairs with the keys of {scheduler.__name__}, {sorted(known)}, "
                f"got {pair!r}."
            )
        try:
            settings[key] = json.loads(value)
        except json.JSONDecodeError:
            settings[key] = value
    return settings


class PassCounter:
    """Counts all the work of a model, by what its calls read: a row costs as much without a mask as with some.

    Args:
        model: whose first tensor argument is the tokens, `(batch_size, ...)`.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.calls: list[tuple[int, int]] = []
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    @torch.compiler.disable
    def _count(self, _: torch.nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        tokens = next(value for value in (*inputs, *options.values()) if isinstance(value, Tensor))
        self.calls.append((tokens.shape[0], tokens[0].numel()))

    def take(self) -> float:
        """Passes since the last time, over all rows; the longest call of them was a full pass."""
        length = max((length for _, length in self.calls), default=1)
        passes = sum(rows * positions for rows, positions in self.calls) / length
        self.calls.clear()
        return passes


class ImageSource:
    """Images of classes: PNG bytes, label, codes."""

    features = Features(
        index=Value("int64"), seed=Value("int64"), label=Value("int64"), image=Image(), tokens=[Value("int32")]
    )

    def __init__(self, pipe: MaskGITPipeline, args: argparse.Namespace, call: dict[str, Any]) -> None:
        self.pipe, self.call, self.decode_chunk_size = pipe, call, args.decode_chunk_size
        self.counter, self.passes = PassCounter(pipe.transformer), 0.0
        num_classes = pipe.transformer.config.num_classes
        # A model without classes draws images without labels.
        labels = pipe.get_label_ids(args.class_labels) if args.class_labels else range(num_classes)
        self.labels: list[int | None] = [*labels] or [None]

    def sample(self, indices: range, seeds: Sequence[int]) -> dict[str, Sequence[Any]]:
        labels = [self.labels[i % len(self.labels)] for i in indices]
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        which = {"num_images_per_prompt": len(labels)} if labels[0] is None else {"class_labels": labels}
        codes = self.pipe(**which, **self.call, generator=generator, output_type="latent").images
        self.passes += self.counter.take()
        images = torch.cat([self._decode(chunk) for chunk in codes.split(self.decode_chunk_size)])
        self.pipe.maybe_free_model_hooks()
        return {"label": labels, "tokens": codes.flatten(1).cpu().tolist(), "image": list(images)}

    def _decode(self, codes: Tensor) -> Tensor:
        """In chunks of one size: how many images are decoded together decides their last bits."""
        padded = torch.cat([codes, codes[-1:].expand(self.decode_chunk_size - len(codes), *codes.shape[1:])])
        return self.pipe.decode_latents(padded)[: len(codes)].float().cpu()

    def encode(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        pictures = self.pipe.image_processor.postprocess(torch.stack(columns["image"]), "pil")
        return {**columns, "image": [{"bytes": _png(picture), "path": None} for picture in pictures]}


def _png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


class TextSource:
    """Texts, after prompts or free: text, prompt, token ids."""

    features = Features(
        index=Value("int64"), seed=Value("int64"), prompt=Value("string"), text=Value("string"), tokens=[Value("int32")]
    )

    def __init__(self, pipe: MaskedDiffusionTextPipeline, args: argparse.Namespace, call: dict[str, Any]) -> None:
        self.pipe, self.counter, self.passes = pipe, PassCounter(pipe.transformer), 0.0
        self.call = call | ({} if args.max_new_tokens is None else {"max_new_tokens": args.max_new_tokens})
        self.prompts = args.prompts or [None]

    def sample(self, indices: range, seeds: Sequence[int]) -> dict[str, Sequence[Any]]:
        prompts = [self.prompts[i % len(self.prompts)] for i in indices]
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        which = {"num_return_sequences": len(prompts)} if prompts[0] is None else {"prompt": prompts}
        made = self.pipe(**which, **self.call, generator=generator)
        self.passes += self.counter.take()
        return {"prompt": prompts, "text": made.texts, "tokens": [ids.tolist() for ids in made.sequences]}

    def encode(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return columns


def source_of(pipe: Any, args: argparse.Namespace) -> Source:
    """What makes samples of a pipeline: texts where it has a tokenizer, else images."""
    writes = "tokenizer" in pipe.components
    for name in ("class_labels",) if writes else ("prompt_file", "max_new_tokens"):
        if getattr(args, name) is not None:
            raise ValueError(
                f"`{name}` must be left out for a pipeline of {'texts' if writes else 'images'}, got "
                f"{getattr(args, name)!r}. Leave it out, or pass another `pipeline` than {args.pipeline!r}."
            )
    wanted = {"num_inference_steps": args.num_inference_steps, "guidance_scale": args.guidance_scale}
    call = {name: value for name, value in wanted.items() if value is not None}
    return (TextSource if writes else ImageSource)(pipe, args, call)


def configuration_of(args: argparse.Namespace, pipe: Any) -> dict[str, Any]:
    """What decides the samples and the files: a stopped set is completed with the same, or not at all."""
    settings = {name: value for name, value in vars(args).items() if name not in (*_NOT_IN_THE_SET, *_PROGRAM)}
    scheduler = {"_class_name": type(pipe.scheduler).__name__}
    scheduler |= {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    return settings | {"scheduler": scheduler}


def run(args: argparse.Namespace) -> Path:
    """The program: makes the set that the arguments say, or what is missing of it; returns its folder."""
    check_arguments(args)
    state = start_processes()
    args.device = state.device.type
    if args.device == "cpu":  # how many threads share a product decides its last bits
        torch.set_num_threads(args.num_threads)
    args.block_size = args.block_size or (CPU_BLOCK_SIZE if args.device == "cpu" else args.batch_size)
    args.shard_size = -(-args.shard_size // args.block_size) * args.block_size
    args.prompts = read_prompts(args.prompt_file)
    pipe = load_pipeline(args, state)
    source, configuration = source_of(pipe, args), configuration_of(args, pipe)
    if args.push_to_hub is not None:  # at the start: who may not write to it learns that now
        on_main_process(lambda: make_repository(args.push_to_hub, args.private), state)
    folder = generate(
        source,
        args.output_dir,
        configuration,
        base_seed=args.seed,
        batch_size=args.batch_size,
        state=state,
    )
    on_main_process(lambda: finish(folder, configuration, args.push_to_hub), state)
    return folder


def finish(folder: Path, configuration: dict[str, Any], repo_id: str | None) -> None:
    """Give a finished set its card, unless somebody wrote one, and upload it where that is asked for."""
    card = folder / "README.md"
    if not card.exists():
        content = CARD.format(version=__version__, configuration=json.dumps(configuration, indent=2))
        write_atomically(card, content.encode())
    print(f"{folder}: open it with `datasets.load_dataset({str(folder)!r})`, read {card}")
    if repo_id is not None:
        with _said_clearly(repo_id):
            DatasetCard.load(card).validate(repo_type="dataset")
            upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=folder, ignore_patterns=[f"{HIDDEN}/*"])
        print(f"{folder}: uploaded to the data set {repo_id} of the Hub")


def make_repository(repo_id: str, private: bool) -> None:
    """A data set of the Hub, unless it is there."""
    with _said_clearly(repo_id):
        create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)


@contextmanager
def _said_clearly(repo_id: str) -> Iterator[None]:
    """What the network, the Hub and its client raise, of which there are many kinds, as one."""
    try:
        yield
    except Exception as error:
        raise OSError(
            f"`push_to_hub` must name a data set of the Hub that you may write to, got {repo_id!r}: {error}. Sign in "
            "with `hf auth login`, and run the same command again: what is finished is kept."
        ) from error


CARD = """\
---
tags:
- synthetic
- masked-diffusion
configs:
- config_name: default
  data_files: "*.parquet"
---

# Samples of a masked diffusion model

Made by hf-maskdiff {version}. Sample `index` was drawn with `torch.Generator().manual_seed(seed)`; `tokens` are what
the model wrote: the codes of an image, or the ids of a text.

```json
{configuration}
```
"""
