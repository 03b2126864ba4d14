"""The Frechet distance against closed forms, an independent matrix square root, and inputs that break naive code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.stats import ortho_group

from hf_maskdiff.evaluation.frechet import feature_statistics, frechet_distance

RNG = np.random.default_rng(0)


def random_gaussian(dim: int, rank: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    root = RNG.normal(size=(dim, rank or 2 * dim))
    return RNG.normal(size=dim), root @ root.T


def test_statistics_are_mean_and_unbiased_covariance() -> None:
    features = RNG.normal(size=(50, 7)).astype(np.float32)
    mean, covariance = feature_statistics(torch.tensor(features))
    assert mean.dtype == covariance.dtype == np.float64
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-12, atol=1e-14)


def test_statistics_keep_their_digits_far_from_the_origin() -> None:
    features = RNG.normal(size=(200, 3))
    shifted = feature_statistics(features + 1e6)[1]
    np.testing.assert_allclose(shifted, feature_statistics(features)[1], atol=1e-8)


def test_one_dimension() -> None:
    distance = frechet_distance([1.0], [[4.0]], [3.5], [[9.0]])
    assert distance == pytest.approx(2.5**2 + (2 - 3) ** 2, rel=1e-14)


def test_commuting_covariances() -> None:
    basis = ortho_group.rvs(6, random_state=1)
    values1, values2 = RNG.uniform(0, 3, 6), RNG.uniform(0, 3, 6)
    mean1, mean2 = RNG.normal(size=(2, 6))
    expected = ((mean1 - mean2) ** 2).sum() + ((np.sqrt(values1) - np.sqrt(values2)) ** 2).sum()
    covariance1, covariance2 = ((basis * values) @ basis.T for values in (values1, values2))
    assert frechet_distance(mean1, covariance1, mean2, covariance2) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dim", [2, 5, 64])
def test_against_an_independent_matrix_square_root(dim: int) -> None:
    (mean1, covariance1), (mean2, covariance2) = random_gaussian(dim), random_gaussian(dim)
    root = sqrtm(covariance1 @ covariance2)
    expected = ((mean1 - mean2) ** 2).sum() + np.trace(covariance1 + covariance2 - 2 * root.real)
    assert frechet_distance(mean1, covariance1, mean2, covariance2) == pytest.approx(expected, rel=1e-9)


def test_symmetric_and_unchanged_by_rotation() -> None:
    (mean1, covariance1), (mean2, covariance2) = random_gaussian(8), random_gaussian(8, rank=3)
    distance = frechet_distance(mean1, covariance1, mean2, covariance2)
    rotation = ortho_group.rvs(8, random_state=2)
    rotated = [(rotation @ m, rotation @ c @ rotation.T) for m, c in ((mean1, covariance1), (mean2, covariance2))]
    assert frechet_distance(mean2, covariance2, mean1, covariance1) == pytest.approx(distance, rel=1e-12)
    assert frechet_distance(*rotated[0], *rotated[1]) == pytest.approx(distance, rel=1e-10)


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_equal_inputs_give_zero_to_rounding_whatever_the_rank(rank: int) -> None:
    mean, covariance = random_gaussian(10, rank)
    assert 0 <= frechet_distance(mean, covariance, mean, covariance) <= 1e-24 * np.trace(covariance)


def test_orthogonal_singular_covariances() -> None:
    covariance1, covariance2 = np.diag([1.0, 2.0, 0.0, 0.0]), np.diag([0.0, 0.0, 3.0, 0.5])
    assert frechet_distance(np.zeros(4), covariance1, np.zeros(4), covariance2) == pytest.approx(6.5, rel=1e-14)


def test_a_tiny_distance_is_not_lost_beside_a_large_trace() -> None:
    # tr C1 + tr C2 - 2 tr sqrt would leave 1e-16 * 4e6: all digits of 1e-12 gone.
    scale = 1e3
    distance = frechet_distance([0.0], [[scale**2]], [0.0], [[(scale + 1e-6) ** 2]])
    assert distance == pytest.approx(1e-12, rel=1e-3)


def test_samples_of_one_law_come_closer_with_their_number() -> None:
    few, many = (
        frechet_distance(*feature_statistics(RNG.normal(size=(n, 16))), *feature_statistics(RNG.normal(size=(n, 16))))
        for n in (100, 10_000)
    )
    assert many < few / 20


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros(5), r"shape \(num_samples, num_features\), got \(5,\)"),
        (np.zeros((1, 5)), "at least 2 samples, got 1"),
        (np.array([[0.0, np.nan], [1.0, 2.0]]), "must be finite"),
        (np.array([[0.0, np.inf], [1.0, 2.0]]), "must be finite"),
    ],
)
def test_statistics_reject_what_has_none(features: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        feature_statistics(features)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(2), np.eye(2), np.zeros(3), np.eye(3)), "same number of features, got 2 and 3"),
        ((np.zeros(2), np.eye(3), np.zeros(2), np.eye(2)), r"`covariance1` \(num_features, num_features\), got"),
        ((np.zeros(2), np.eye(2), np.array([0, np.nan]), np.eye(2)), "`mean2` and `covariance2` must be finite"),
        ((np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]), np.zeros(2), np.eye(2)), "`covariance1` must be symmetric"),
        ((np.zeros(2), np.eye(2), np.zeros(2), np.diag([1.0, -1.0])), "`covariance2` must be positive semi-definite"),
    ],
)
def test_distance_rejects_what_is_no_gaussian(arguments: tuple[np.ndarray, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(*arguments)
