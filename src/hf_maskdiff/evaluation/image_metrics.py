"""Frechet distance and Inception score of a set of images, with errors."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hf_maskdiff_cli.evaluate import not_statistics

from .frechet import Statistics, feature_statistics, frechet_distance

NUM_GROUPS = 10


def inception_score(logits: Tensor, num_splits: int = 10) -> tuple[float, float]:
    """Sure of each image and different over all: `exp E[KL(p(y | x) || p(y))]`, and its standard deviation over splits.

    Samples are shuffled by a fixed seed and cut into splits, as torch-fidelity does, whose numbers these are.

    Args:
        logits: of a classifier, `(num_samples, num_classes)`, any float dtype.
        num_splits: 10 is what published numbers use.

    Returns:
        mean and standard deviation over the splits: what the field writes as "IS a +- b".

    Raises:
        ValueError: fewer samples than splits.

    Source: Salimans et al., arXiv 1606.03498.
    """
    if len(logits) < num_splits:
        raise ValueError(
            f"the Inception score needs at least one sample a split, {num_splits}, got {len(logits)}. Pass more."
        )
    order = np.random.RandomState(2020).permutation(len(logits))  # torch-fidelity's own
    log_p = logits.double()[torch.from_numpy(order)].log_softmax(-1)
    edges = [split * len(logits) // num_splits for split in range(num_splits + 1)]
    scores = [_score(log_p[start:stop]) for start, stop in pairwise(edges)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(log_p: Tensor) -> float:
    p, log_mean = log_p.exp(), log_p.exp().mean(0).log()
    return torch.where(p > 0, p * (log_p - log_mean), 0.0).sum(-1).mean().exp().item()


def frechet_with_error(features: ArrayLike, reference: Statistics, num_groups: int = NUM_GROUPS) -> tuple[float, float]:
    """Frechet distance of a set from a reference, and the standard error that drawing the set again would show.

    The error is the delete-a-group jackknife's: the spread of the distances without each tenth of the samples. It knows
    nothing of the reference's own sampling error, nor of the bias that few samples add.

    Args:
        features: `(num_samples, num_features)`.
        reference: of the other side, as `feature_statistics` gives them.

    Raises:
        ValueError: not more samples than features: the covariance would be singular, and the distance mean little.
    """
    features = np.asarray(features, dtype=np.float64)
    count, width = features.shape
    require_enough(count, width)
    distance = frechet_distance(*feature_statistics(features), *reference)
    group = np.random.default_rng(0).permutation(count) % num_groups
    without = [
        frechet_distance(*feature_statistics(features[group != number]), *reference) for number in range(num_groups)
    ]
    spread = (num_groups - 1) / num_groups * np.square(np.subtract(without, np.mean(without))).sum()
    return distance, sqrt(spread)


def require_enough(count: int, width: int) -> None:
    """Raise `ValueError` where a set is too small for a Frechet distance in that many features."""
    if count <= width:
        raise ValueError(
            f"the Frechet distance in {width} features needs more samples than that, got {count}. Pass more samples, "
            "or a network with fewer features."
        )


def load_statistics(path: str | Path) -> Statistics:
    """Mean and covariance of a file that holds them as `mu` and `sigma`, as the field's `.npz` references do.

    Raises:
        ValueError: another file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return (
                np.asarray(arrays["mu"], dtype=np.float64).reshape(-1),
                np.asarray(arrays["sigma"], dtype=np.float64),
            )
    except (OSError, KeyError, ValueError) as error:
        raise not_statistics(path, error) from error


def save_statistics(path: str | Path, features: ArrayLike) -> None:
    """Write mean and covariance as `mu` and `sigma`, and how many samples they are of as `count`."""
    mean, covariance = feature_statistics(features)
    count: NDArray[np.int64] = np.array(len(np.asarray(features)))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, mu=mean, sigma=covariance, count=count)
