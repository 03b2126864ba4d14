"""The loop that trains a transformer of codes of a class, for grids of images and of audio alike."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor
from training_utils import Clock, load_checkpoint, make_optimizer, training_batches

from hf_maskdiff import MaskGITScheduler


def add_denoiser_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hidden_size", type=int, default=128)
    parser.add_argument("--num_layers", type=int, default=6)
    parser.add_argument("--num_attention_heads", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--label_dropout", type=float, default=0.1, help="share of rows trained without their class")
    parser.add_argument("--masking_schedule", default="cosine")
    parser.add_argument("--compile", action="store_true", help="compile the blocks: nearly twice as fast on a CPU")
    parser.add_argument("--max_train_steps", type=int, default=4000)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--ema_decay", type=float, default=0.999, help="decay of the averaged weights, which are saved")


def masked_loss(logits: Tensor, codes: Tensor, masked: Tensor, codebook_size: int) -> Tensor:
    """Mean cross entropy of the masked positions, in nats; a column for the mask itself is never predicted.

    Args:
        logits: `(batch_size, height * width, codebook_size)`, or with one column more.
        codes, masked: int64 and bool `(batch_size, height, width)`.
    """
    targets = codes.masked_fill(~masked, -100).flatten()
    total = F.cross_entropy(logits[..., :codebook_size].flatten(0, 1).float(), targets, reduction="sum")
    return total / masked.sum().clamp(min=1)


@torch.no_grad()
def evaluate(model: Any, scheduler: MaskGITScheduler, codes: Tensor, labels: Tensor, seed: int) -> float:
    """Mean loss over evenly spaced times in (0, 1), with the same masks in every evaluation."""
    model.eval()
    generator = torch.Generator(codes.device).manual_seed(seed)
    times = (torch.randperm(len(codes), generator=generator, device=codes.device) + 0.5) / len(codes)
    total, count = 0.0, 0
    for rows, classes, t in zip(codes.split(500), labels.split(500), times.split(500), strict=True):
        sample = scheduler.add_noise(rows, t, generator)
        masked = sample == scheduler.config.mask_token_id
        num_masked = int(masked.sum())
        logits = model(sample, class_labels=classes).sample
        total += masked_loss(logits, rows, masked, scheduler.config.codebook_size).item() * num_masked
        count += num_masked
    return total / count


def train_denoiser(
    name: str,
    model: Any,
    scheduler: MaskGITScheduler,
    codes: Tensor,
    labels: Tensor,
    args: argparse.Namespace,
    accelerator: Accelerator,
    clock: Clock,
) -> Any:
    """The model with averaged weights, trained to fill in codes of a class.

    Args:
        name: of the progress bar.
        model: a denoiser with `num_classes` in its configuration that takes `class_labels`.
        scheduler: that of sampling, which masks here.
        codes: int64 `(num_examples, height, width)`, on the device.
        labels: int64 `(num_examples,)`, on the device.
    """
    device, no_class, codebook_size = codes.device, model.config.num_classes, scheduler.config.codebook_size
    if device.type == "cpu":
        # With so few tokens, plain matrix products are faster there than the fused kernel: by 1.4 times per step.
        model.set_attention_backend("_native_math")
    if args.compile:
        model.compile_repeated_blocks()
    ema = EMAModel(model.parameters(), decay=args.ema_decay, foreach=True)
    optimizer, schedule = make_optimizer(model.parameters(), args, clock)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(ema, schedule)
    start = load_checkpoint(accelerator, args.output_dir, args.resume_from_checkpoint)
    ema.to(device)

    model.train()
    progress = training_batches(name, len(codes), start, args, accelerator, clock)
    for step, indices, generator in progress:
        rows, classes = codes[indices], labels[indices]
        times, drop = torch.rand(2, len(rows), generator=generator, device=device)
        classes = torch.where(drop < args.label_dropout, no_class, classes)
        # Training uses the same scheduler as sampling.
        sample = scheduler.add_noise(rows, times, generator)
        masked = sample == scheduler.config.mask_token_id
        loss = masked_loss(model(sample, class_labels=classes).sample, rows, masked, codebook_size)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ema.step(accelerator.unwrap_model(model).parameters())
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")

    trained = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    ema.copy_to(trained.parameters())
    return trained
