"""Frechet distance between two sets of features, in float64 and without cancellation errors."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Statistics = tuple[NDArray[np.float64], NDArray[np.float64]]


def feature_statistics(features: ArrayLike) -> Statistics:
    """Mean and covariance of a set of features: all that `frechet_distance` needs.

    Args:
        features (`ArrayLike` of shape `(num_samples, num_features)`): any real dtype; a tensor must be on the CPU.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: float64 mean of shape `(num_features,)` and float64 covariance of shape
        `(num_features, num_features)`, normalised by `num_samples - 1`.

    Raises:
        ValueError: if `features` is not two-dimensional, has fewer than two rows, or is not finite.
    """
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2:
        raise ValueError(
            f"`features` must have the shape (num_samples, num_features), got {features.shape}. "
            "Flatten each sample's features into one row."
        )
    if len(features) < 2:
        raise ValueError(f"`features` must hold at least 2 samples, got {len(features)}. Pass more samples.")
    if not np.isfinite(features).all():
        raise ValueError("`features` must be finite, got NaN or infinite values. Check the images and the network.")
    mean = features.mean(axis=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_distance(mean1: ArrayLike, covariance1: ArrayLike, mean2: ArrayLike, covariance2: ArrayLike) -> float:
    r"""Squared Wasserstein-2 distance of two Gaussians: the formula of the FID, for the features of any network.

    $$ |\mu_1 - \mu_2|^2 + \mathrm{tr}\left(C_1 + C_2 - 2 (C_1 C_2)^{1/2}\right) $$

    The trace is computed as `min over orthogonal O of |A - B O|^2`, where `A A^T = C_1` and `B B^T = C_2` come from
    symmetric eigendecompositions and O from one singular value decomposition (Bhatia, Jain, Lim, "On the
    Bures-Wasserstein distance between positive definite matrices", arXiv 1712.01504). Since it is a sum of squares, it
    is never negative, it is 0 to rounding for equal inputs, and covariances may be singular.

    The estimate has a bias that depends on the number of samples: compare only distances from equal numbers of samples.

    Args:
        mean1, mean2 (`ArrayLike` of shape `(num_features,)`): as `feature_statistics` returns them.
        covariance1, covariance2 (`ArrayLike` of shape `(num_features, num_features)`): symmetric, positive
            semi-definite.

    Returns:
        `float`: the distance in squared units of the features, at least 0.

    Raises:
        ValueError: if shapes differ, a value is not finite, or a covariance is not symmetric and positive
            semi-definite (to rounding).
    """
    mean1, root1 = _validate_and_factor("1", mean1, covariance1)
    mean2, root2 = _validate_and_factor("2", mean2, covariance2)
    if mean1.shape != mean2.shape:
        raise ValueError(
            f"both sides must have the same number of features, got {mean1.shape[0]} and {mean2.shape[0]}. "
            "Compute both statistics with the same network."
        )
    left, _, right = np.linalg.svd(root2.T @ root1)
    return float(np.square(mean1 - mean2).sum() + np.square(root1 - root2 @ (left @ right)).sum())


def _validate_and_factor(side: str, mean: ArrayLike, covariance: ArrayLike) -> Statistics:
    mean, covariance = np.asarray(mean, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"`mean{side}` must have the shape (num_features,) and `covariance{side}` (num_features, num_features), "
            f"got {mean.shape} and {covariance.shape}. Pass the two results of `feature_statistics`."
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"`mean{side}` and `covariance{side}` must be finite, got NaN or infinite values.")
    tolerance = 1e-10 * np.abs(covariance).max(initial=0.0)
    if np.abs(covariance - covariance.T).max(initial=0.0) > tolerance:
        raise ValueError(f"`covariance{side}` must be symmetric. Pass the second result of `feature_statistics`.")
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    if values.min(initial=0.0) < -tolerance:
        raise ValueError(
            f"`covariance{side}` must be positive semi-definite, got the eigenvalue {values.min():.3g}. "
            "Pass the second result of `feature_statistics`."
        )
    # Eigenvalues at rounding level are zeros with noise; their square roots would raise this noise to 1e-8.
    noise = np.finfo(np.float64).eps * len(values) * values.max(initial=0.0)
    return mean, vectors * np.sqrt(np.where(values > noise, values, 0.0))
