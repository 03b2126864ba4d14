"""Sets of images and texts from a pipeline: the arguments, the loading and placement, and what a sample is.

`examples/generate_dataset.py` and `hf-maskdiff generate` are these functions in this order.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Features, Image, Value
from huggingface_hub import DatasetCard, create_repo, upload_folder
from torch import Tensor

from . import __version__
from .models import PartialCacheConfig
from .parallel import HIDDEN, Source, generate, start_processes
from .pipelines import MaskedDiffusionTextPipeline, MaskGITPipeline, MDLMPipeline
from .pipelines.transformers_tasks import Repository, _load_scheduler

CPU_BLOCK_SIZE = 8
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_PROGRAM = ("command", "run", "prompt_file")  # `prompts` are what the file holds
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
    add("--seed", type=int, default=0, help="the base seed: sample i depends on it and on i")
    add("--batch_size", type=int, default=64, help="samples between two writes; on a GPU, those made together")
    add("--block_size", type=int, help=f"samples made together; default: {CPU_BLOCK_SIZE} on a CPU, a batch on a GPU")
    add("--shard_size", type=int, default=1024, help="samples of a file, rounded up to whole blocks")
    sampling = parser.add_argument_group("sampling; what is not given is the pipeline's own")
    add = sampling.add_argument
    add("--scheduler", help="class of a scheduler, or folder or Hub id of a preset")
    add("--num_inference_steps", type=int)
    add("--guidance_scale", type=float)
    add("--num_substeps", type=int, default=1, help="groups of a step, by partial caching; 1 is without")
    add("--class_labels", type=int, nargs="+", metavar="ID", help="images: the classes in turn; default: all")
    add("--decode_chunk_size", type=int, default=CPU_BLOCK_SIZE, help="images: how many are decoded at a time")
    add("--prompt_file", type=Path, help="texts: a prompt a line, in turn; default: none")
    add("--max_new_tokens", type=int, help="texts: tokens after the prompt")
    placement = parser.add_argument_group("placement")
    where = placement.add_mutually_exclusive_group()
    where.add_argument("--device_map", help="as for `from_pretrained`: balanced, cpu, cuda")
    where.add_argument("--model_cpu_offload", action="store_true", help="components on the GPU one at a time")
    where.add_argument("--group_offload", action="store_true", help="layers on the GPU one at a time")
    add = placement.add_argument
    add("--dtype", choices=DTYPES, default="float32")
    add("--compile", action="store_true", help="compile the transformer")
    add("--num_threads", type=int, default=1, help="of a process on a CPU; launch one process a core")
    add("--push_to_hub", metavar="REPO", help="upload the finished set, with a card")
    parser.add_argument("--private", action="store_true", help="for a repository that is new")


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


def load_pipeline(args: argparse.Namespace, state: PartialState) -> Any:
    """The pipeline as the arguments want it: scheduler, place, dtype, partial caching, compilation."""
    device = torch.device("cpu") if state.device.type == "cpu" else state.device
    loading = {"dtype": DTYPES[args.dtype]} | ({"device_map": args.device_map} if args.device_map else {})
    repository = Repository(args.pipeline, {}, loading)
    pipe = repository.open(MaskGITPipeline, MDLMPipeline, MaskedDiffusionTextPipeline)
    if args.scheduler is not None:
        pipe.register_modules(scheduler=_load_scheduler(args.scheduler, pipe.scheduler.config))
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


class ImageSource:
    """Images of classes: PNG bytes, label, codes."""

    features = Features(
        index=Value("int64"), seed=Value("int64"), label=Value("int64"), image=Image(), tokens=[Value("int32")]
    )

    def __init__(self, pipe: MaskGITPipeline, args: argparse.Namespace, call: dict[str, Any]) -> None:
        self.pipe, self.call, self.decode_chunk_size = pipe, call, args.decode_chunk_size
        num_classes = pipe.transformer.config.num_classes
        # A model without classes draws images without labels.
        labels = pipe.get_label_ids(args.class_labels) if args.class_labels else range(num_classes)
        self.labels: list[int | None] = [*labels] or [None]

    def sample(self, indices: range, seeds: Sequence[int]) -> dict[str, Sequence[Any]]:
        labels = [self.labels[i % len(self.labels)] for i in indices]
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        which = {"num_images_per_prompt": len(labels)} if labels[0] is None else {"class_labels": labels}
        codes = self.pipe(**which, **self.call, generator=generator, output_type="latent").images
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
        self.pipe = pipe
        self.call = call | ({} if args.max_new_tokens is None else {"max_new_tokens": args.max_new_tokens})
        self.prompts = args.prompts or [None]

    def sample(self, indices: range, seeds: Sequence[int]) -> dict[str, Sequence[Any]]:
        prompts = [self.prompts[i % len(self.prompts)] for i in indices]
        generator = [torch.Generator().manual_seed(seed) for seed in seeds]
        which = {"num_return_sequences": len(prompts)} if prompts[0] is None else {"prompt": prompts}
        made = self.pipe(**which, **self.call, generator=generator)
        return {"prompt": prompts, "text": made.texts, "tokens": [ids.tolist() for ids in made.sequences]}

    def encode(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return columns


def source_of(pipe: Any, args: argparse.Namespace) -> Source:
    """What makes samples of a pipeline: texts where it has a tokenizer, else images."""
    wanted = {"num_inference_steps": args.num_inference_steps, "guidance_scale": args.guidance_scale}
    call = {name: value for name, value in wanted.items() if value is not None}
    return (TextSource if "tokenizer" in pipe.components else ImageSource)(pipe, args, call)


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
    args.prompts = args.prompt_file.read_text(encoding="utf-8").splitlines() if args.prompt_file else None
    pipe = load_pipeline(args, state)
    configuration = configuration_of(args, pipe)
    folder = generate(
        source_of(pipe, args),
        args.output_dir,
        configuration,
        base_seed=args.seed,
        batch_size=args.batch_size,
        state=state,
    )
    if state.is_main_process:
        finish(folder, configuration, args.push_to_hub, args.private)
        print(f"{folder}: open it with `datasets.load_dataset({str(folder)!r})`, read {folder / 'README.md'}")
    state.wait_for_everyone()
    return folder


def finish(folder: Path, configuration: dict[str, Any], repo_id: str | None, private: bool) -> None:
    """Give a finished set its card, unless somebody wrote one, and upload it where that is asked for."""
    card = folder / "README.md"
    if not card.exists():
        card.write_text(CARD.format(version=__version__, configuration=json.dumps(configuration, indent=2)))
    if repo_id is not None:
        DatasetCard.load(card).validate(repo_type="dataset")
        create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=folder, ignore_patterns=[f"{HIDDEN}/*"])


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
