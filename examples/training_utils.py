"""Shared by the training programs: arguments, batches that can be resumed, checkpoints that survive a kill."""

from __future__ import annotations

import argparse
import itertools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from tqdm.auto import tqdm

from hf_maskdiff.sets.processes import leave_at_exit

CHECKPOINT_PREFIX = "checkpoint-"
NUM_KEPT_CHECKPOINTS = 2


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", help="data set on the Hub, such as ylecun/mnist or karpathy/tiny_shakespeare")
    parser.add_argument(
        "--data_dir", help="instead: folder with IDX files, with one sub-folder of images per class, or texts"
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--batch_size", type=int, default=128, help="per process")
    parser.add_argument("--weight_decay", type=float, default=0.01)
    parser.add_argument("--max_seconds", type=float, help="stop after so long, if that is before the last step")
    parser.add_argument("--warmup_steps", type=int, default=200)
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mixed_precision", choices=("no", "bf16", "fp16"), default="no")
    parser.add_argument("--checkpointing_steps", type=int, default=500)
    parser.add_argument("--resume_from_checkpoint", help='"latest", or the path of a checkpoint')


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the program with the sentence alone where the data cannot be used: no line of code is at fault."""
    try:
        yield
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def make_accelerator(args: argparse.Namespace) -> Accelerator:
    """The processes of `accelerate launch`, or this one."""
    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=not torch.cuda.is_available())
    leave_at_exit()
    return accelerator


def index_batches(
    num_examples: int, batch_size: int, start_step: int, max_steps: int, seed: int, accelerator: Accelerator
) -> Iterator[tuple[int, Tensor, torch.Generator]]:
    """Yields `(step, indices, generator)`: the examples that this process reads in a step, and its source of noise.

    Both depend only on the seed, the process and the step, so a resumed run continues as if it had never stopped,
    without skipping through batches. Every epoch is a new permutation, cut into full batches (the rest is dropped).
    """
    total = batch_size * accelerator.num_processes
    per_epoch = num_examples // total
    if per_epoch == 0:
        most = num_examples // accelerator.num_processes
        raise ValueError(f"`batch_size` must be at most {most}, the examples per process, got {batch_size}.")
    epoch, permutation = -1, torch.empty(0)
    for step in range(start_step, max_steps):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            permutation = torch.randperm(num_examples, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
        start = step % per_epoch * total + batch_size * accelerator.process_index
        noise_seed = (seed * 1_000_003 + step) * accelerator.num_processes + accelerator.process_index
        generator = torch.Generator(accelerator.device).manual_seed(noise_seed)
        yield step, permutation[start : start + batch_size].to(accelerator.device), generator


class Clock:
    """How much of a training is done: the greater of its shares of `--max_train_steps` and of `--max_seconds`."""

    def __init__(self, args: argparse.Namespace) -> None:
        if args.max_seconds is not None and args.max_seconds <= 0:
            raise ValueError(f"`max_seconds` must be above 0, got {args.max_seconds}. Leave it out to use all steps.")
        self.warmup_steps, self.max_steps, self.max_seconds = args.warmup_steps, args.max_train_steps, args.max_seconds
        self.started: float | None = None
        self.share_of_seconds = 0.0  # when the last batch was taken, the same in all processes

    def learning_rate(self, step: int) -> float:
        """The share of the highest learning rate: it rises for `--warmup_steps` and then falls as a cosine."""
        if step < self.warmup_steps:
            return step / self.warmup_steps
        done = max((step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps), self.share_of_seconds)
        return 0.5 + 0.5 * math.cos(math.pi * min(done, 1.0))

    def is_over(self, accelerator: Accelerator) -> bool:
        """Whether the seconds since the first call are over, on the main process's clock; it starts with that call.

        Called before each step by all processes: learning rates of their own would let their weights drift apart.
        """
        if self.max_seconds is None:
            return False
        self.started = self.started or time.monotonic()
        share = (time.monotonic() - self.started) / self.max_seconds
        if accelerator.num_processes > 1:
            share = float(broadcast(torch.tensor(share, device=accelerator.device)))
        self.share_of_seconds = share
        return share >= 1


def training_batches(
    name: str,
    num_examples: int,
    start: int,
    args: argparse.Namespace,
    accelerator: Accelerator,
    clock: Clock,
    keep: Callable[[int], object] | None = None,
) -> tqdm:
    """`index_batches` from step `start` to the last step or second, with a progress bar and checkpoints.

    Args:
        keep: given the number of steps done, every `--checkpointing_steps` and after the last one; by default
            `save_checkpoint`.
    """
    if keep is None:
        keep = partial(save_checkpoint, accelerator, args.output_dir)
    batches = index_batches(num_examples, args.batch_size, start, args.max_train_steps, args.seed, accelerator)
    in_time = itertools.takewhile(lambda _: not clock.is_over(accelerator), batches)
    kept = _kept(in_time, start, args.checkpointing_steps, keep)
    return tqdm(kept, desc=name, initial=start, total=args.max_train_steps, disable=not accelerator.is_main_process)


def _kept(
    batches: Iterable[tuple[int, Tensor, torch.Generator]], start: int, every: int, keep: Callable[[int], object]
) -> Iterator[tuple[int, Tensor, torch.Generator]]:
    """The batches; whoever asks for the next one has done the step of the last one."""
    done = start
    for batch in batches:
        yield batch
        done = batch[0] + 1
        if done % every == 0:
            keep(done)
    if done > start and done % every:
        keep(done)


def make_optimizer(
    weights: Iterable[nn.Parameter], args: argparse.Namespace, clock: Clock, betas: tuple[float, float] = (0.9, 0.98)
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """AdamW, and the clock's schedule of the learning rate.

    Do not prepare the schedule with accelerate: it would take one step per process.
    """
    optimizer = torch.optim.AdamW(weights, args.learning_rate, betas=betas, weight_decay=args.weight_decay)
    return optimizer, LambdaLR(optimizer, clock.learning_rate)


def checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(output_dir.glob(f"{CHECKPOINT_PREFIX}*"), key=lambda path: int(path.name.rpartition("-")[2]))


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int) -> None:
    """Write to a temporary folder and rename it, so that every folder named `checkpoint-*` is complete."""
    final = output_dir / f"{CHECKPOINT_PREFIX}{step}"
    partial = output_dir / f"partial-{final.name}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        # A folder of this name exists only if the run was resumed from an older checkpoint; it has the same content.
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for old in checkpoints(output_dir)[:-NUM_KEPT_CHECKPOINTS]:
            shutil.rmtree(old)


def load_checkpoint(accelerator: Accelerator, output_dir: Path, resume_from_checkpoint: str | None) -> int:
    """Restores everything registered with `accelerator`, and returns the number of steps already done."""
    if accelerator.is_main_process:
        for partial in output_dir.glob(f"partial-{CHECKPOINT_PREFIX}*"):
            shutil.rmtree(partial)
    found = checkpoints(output_dir)
    if resume_from_checkpoint is None:
        if found:
            raise ValueError(
                f"`output_dir` must hold no checkpoints of an earlier run, got {found[-1]}. "
                "Pass --resume_from_checkpoint latest to go on from there, or another --output_dir."
            )
        return 0
    if resume_from_checkpoint == "latest":
        if not found:
            accelerator.print(f"No checkpoint in {output_dir}: starting from the beginning.")
            return 0
        path = found[-1]
    else:
        path = Path(resume_from_checkpoint)
        if path not in checkpoints(path.parent):
            raise ValueError(
                f"`resume_from_checkpoint` must be 'latest' or a folder {CHECKPOINT_PREFIX}STEP, got {str(path)!r}."
            )
    accelerator.load_state(str(path))
    accelerator.print(f"Resumed from {path}.")
    return int(path.name.rpartition("-")[2])
