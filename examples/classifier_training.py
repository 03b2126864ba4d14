"""Shared by the programs that train a classifier for evaluation: arguments and the loop."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm


def add_classifier_arguments(parser: argparse.ArgumentParser, batch_size: int, max_train_steps: int) -> None:
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--batch_size", type=int, default=batch_size)
    parser.add_argument("--max_train_steps", type=int, default=max_train_steps)
    parser.add_argument("--learning_rate", type=float, default=4e-3)
    parser.add_argument("--feature_size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)


def train_classifier(
    name: str,
    model: Any,
    labels: Tensor,
    batch_of: Callable[[Tensor], Tensor],
    test: tuple[Tensor, Tensor],
    args: argparse.Namespace,
) -> float:
    """Trains, saves, and returns the accuracy on the test split.

    Args:
        name: of the progress bar.
        model: returns `logits`, and has `read` for a whole split.
        labels: of the training split, int64 `(num_examples,)`, on the device.
        batch_of: what the model is given of the examples at these indices, int64 `(batch_size,)`.
        test: inputs of `read`, and their labels.
    """
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.max_train_steps)
    model.train()
    progress = tqdm(range(args.max_train_steps), desc=name)
    for step in progress:
        chosen = torch.randint(len(labels), (args.batch_size,), device=labels.device)
        loss = F.cross_entropy(model(batch_of(chosen)).logits, labels[chosen])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")

    model.eval()
    inputs, expected = test
    accuracy = (model.read(inputs)[0] == expected).double().mean().item()
    model.save_pretrained(args.output_dir)
    print(f"test accuracy {accuracy:.4f}, saved in {args.output_dir}")
    return accuracy
