"""MAUVE: compares two sets of texts in a language model's features, and counts both kinds of error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

SEED = 25
NUM_WEIGHTS = 25
SCALE = 5.0
MINIMUM = 20


def mauve(features: ArrayLike, reference: ArrayLike, num_buckets: int | None = None, seed: int = SEED) -> float:
    """Closeness of samples to real texts, in (0, 1]; it falls if samples are unlike real texts, or lack some kinds.

    The features of both sides are normalised, reduced to 90 % of their variance and clustered by k-means, which gives
    two histograms p and q. `exp(-5 KL)` of p and of q to their mixtures are the coordinates of a curve; the result is
    the area under it. It depends on the number of samples and buckets: compare only equal numbers, preferably
    thousands of samples.

    Args:
        features: features of the samples, `(num_samples, num_features)`; papers use gpt2-large's last hidden state at a
            text's last token.
        reference: features of real texts, `(num_reference, num_features)`.
        num_buckets: number of clusters; None takes a tenth of the smaller side's number of samples.
        seed: seed of the k-means; the reference package uses 25.

    Raises:
        ImportError: faiss is not installed.
        ValueError: a side has fewer than 20 samples, or shapes are wrong.

    Source: Pillutla et al., arXiv 2102.01454. Settings are those of the authors' package `mauve-text`, and so are the
    results for the same features.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError('MAUVE needs faiss. Run `pip install "hf-maskdiff[mauve]"`.') from error
    p, q = np.asarray(features, dtype=np.float32), np.asarray(reference, dtype=np.float32)
    if p.ndim != 2 or q.ndim != 2 or p.shape[1] != q.shape[1]:
        raise ValueError(
            f"MAUVE needs features (num_samples, num_features) of one network, got {p.shape} and {q.shape}."
        )
    require_enough(len(p), len(q))
    buckets = num_buckets or max(2, round(min(len(p), len(q)) / 10))
    points = _principal_components(_unit(np.concatenate([q, p])))
    settings = {"niter": 500, "nredo": 5, "update_index": True, "seed": seed + 2, "min_points_per_centroid": 1}
    kmeans = faiss.Kmeans(points.shape[1], buckets, **settings)
    kmeans.train(points)
    bucket = kmeans.index.search(points, 1)[1][:, 0]
    q_share, p_share = (np.bincount(part, minlength=buckets) / len(part) for part in np.split(bucket, [len(q)]))
    return _area(p_share, q_share)


def require_enough(num_samples: int, num_reference: int) -> None:
    """Raise `ValueError` if there are too few samples for clustering."""
    if min(num_samples, num_reference) < MINIMUM:
        raise ValueError(
            f"MAUVE needs at least {MINIMUM} samples on each side, got {num_samples} and {num_reference}. Pass more."
        )


def _unit(points: NDArray[Any]) -> NDArray[Any]:
    length = np.linalg.norm(points, axis=1, keepdims=True)
    return points / np.where(length == 0, np.float32(1), length)


def _principal_components(points: NDArray[np.float32], share: float = 0.9) -> NDArray[np.float32]:
    """Coordinates along the first principal directions that together hold this share of the variance."""
    centred = points.astype(np.float64) - points.mean(0, dtype=np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    values, vectors = values[::-1], vectors[:, ::-1]
    number = int(np.argmax(values.cumsum() / values.sum() >= share)) + 1
    return np.ascontiguousarray(centred @ vectors[:, :number], dtype=np.float32)


def _area(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Area under the curve `(exp(-5 KL(q || r)), exp(-5 KL(p || r)))` over mixtures r, by trapezoids in both axes."""
    mixtures = [w * p + (1 - w) * q for w in np.linspace(1e-6, 1 - 1e-6, NUM_WEIGHTS)]
    curve = np.exp([[-SCALE * _kl(q, r), -SCALE * _kl(p, r)] for r in mixtures])
    x, y = np.concatenate([[[1.0, 0.0]], curve, [[0.0, 1.0]]]).T
    along_x, along_y = np.argsort(x), np.argsort(y)
    return (_trapezoids(x[along_x], y[along_x]) + _trapezoids(y[along_y], x[along_y])) / 2


def _trapezoids(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    return float((np.diff(x) * (y[1:] + y[:-1])).sum() / 2)


def _kl(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    held = p > 0
    return float((p[held] * np.log(p[held] / q[held])).sum())
