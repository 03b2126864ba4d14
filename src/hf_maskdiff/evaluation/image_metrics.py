"""Frechet distance and Inception score of a set of images, with errors."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hf_maskdiff_cli.evaluate import not_statistics

from .frechet import Statistics, feature_statistics, frechet_distance

NUM_GROUPS = 10


def inception_score(logits: Tensor, num_splits: int = 10) -> tuple[float, float]:
    """Inception score, high if images are clear and varied: `exp E[KL(p(y | x) || p(y))]`, and its spread over splits.

    Samples are shuffled with a fixed seed and divided into splits as in torch-fidelity, so the numbers are the same.

    Args:
        logits: a classifier's logits, `(num_samples, num_classes)`, any float dtype.
        num_splits: published numbers use 10.

    Returns:
        Mean and standard deviation over the splits, which papers write as "IS a +- b".

    Raises:
        ValueError: there are fewer samples than splits.

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
    """Frechet distance of a set from a reference, and its standard error due to the sampling of the set.

    The error is that of the delete-a-group jackknife: the spread of the distances with one tenth of the samples left
    out at a time. It includes neither the reference's own sampling error nor the bias due to few samples.

    Args:
        features: `(num_samples, num_features)`.
        reference: statistics of the reference, as returned by `feature_statistics`.

    Raises:
        ValueError: there are no more samples than features, so the covariance would be singular.
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
    """Raise `ValueError` if a set is too small for a Frechet distance in `width` features."""
    if count <= width:
        raise ValueError(
            f"the Frechet distance in {width} features needs more samples than that, got {count}. Pass more samples, "
            "or a network with fewer features."
        )


def load_statistics(path: str | Path) -> Statistics:
    """Read mean and covariance from a file that holds them as `mu` and `sigma`, as published `.npz` references do.

    Raises:
        ValueError: the file has another format.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mean = np.asarray(arrays["mu"], dtype=np.float64).reshape(-1)
            covariance = np.asarray(arrays["sigma"], dtype=np.float64)
        if covariance.shape != (len(mean), len(mean)):
            raise ValueError(f"`mu` is of {len(mean)} features, and `sigma` of the shape {covariance.shape}")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError("there are values in it that are not finite")
        return mean, covariance
    except (OSError, KeyError, ValueError, EOFError, BadZipFile) as error:
        raise not_statistics(path, error) from error


def save_statistics(path: str | Path, features: ArrayLike) -> None:
    """Write mean and covariance as `mu` and `sigma`, and the number of samples as `count`."""
    mean, covariance = feature_statistics(features)
    count: NDArray[np.int64] = np.array(len(np.asarray(features)))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, mu=mean, sigma=covariance, count=count)
