"""Inception score and the error of a Frechet distance, by definition and by drawing sets again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.special import log_softmax

from hf_maskdiff.evaluation.frechet import feature_statistics
from hf_maskdiff.evaluation.image_metrics import (
    frechet_with_error,
    inception_score,
    load_statistics,
    save_statistics,
)


def test_inception_score_by_its_definition() -> None:
    logits = np.random.default_rng(0).normal(size=(57, 6)) * 3
    log_p = log_softmax(logits, axis=1)[np.random.RandomState(2020).permutation(57)]
    scores = []
    for split in range(10):
        part = log_p[split * 57 // 10 : (split + 1) * 57 // 10]
        mean = np.exp(part).mean(0)
        scores.append(np.exp(np.mean([(np.exp(row) * (row - np.log(mean))).sum() for row in part])))
    assert inception_score(torch.tensor(logits)) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-10)


def test_inception_score_of_certain_and_of_equal_classes() -> None:
    certain = 1000 * torch.eye(10).repeat(30, 1)
    assert inception_score(certain, num_splits=1)[0] == pytest.approx(10)
    assert inception_score(torch.zeros(20, 10)) == pytest.approx((1.0, 0.0))
    assert inception_score(1000 * torch.eye(10)[:1].repeat(20, 1))[0] == pytest.approx(1)
    with pytest.raises(ValueError, match="at least one sample per split, 10, got 9"):
        inception_score(torch.zeros(9, 10))


def test_the_distance_is_that_of_an_independent_square_root() -> None:
    rng = np.random.default_rng(1)
    p, q = rng.normal(size=(200, 9)), rng.normal(size=(300, 9)) * 1.3 + 0.2
    (m1, c1), (m2, c2) = ((x.mean(0), np.cov(x, rowvar=False)) for x in (p, q))
    expected = np.square(m1 - m2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet_with_error(p, feature_statistics(q))[0] == pytest.approx(expected, rel=1e-4)


def test_the_jackknife_s_error_is_what_drawing_again_shows() -> None:
    """300 sets of 500 samples: the spread of their distances is known to 4 %, the mean jackknife to about 2 %."""
    rng = np.random.default_rng(2)
    reference = feature_statistics(rng.normal(size=(5000, 6)))
    scale = np.linspace(0.7, 1.4, 6)
    found = np.array([frechet_with_error(rng.normal(size=(500, 6)) * scale + 0.2, reference) for _ in range(300)])
    spread = found[:, 0].std(ddof=1)
    assert np.sqrt(np.square(found[:, 1]).mean()) == pytest.approx(spread, rel=0.2)


def test_not_more_samples_than_features() -> None:
    with pytest.raises(ValueError, match="in 8 features needs more samples than that, got 8"):
        frechet_with_error(np.random.default_rng(0).normal(size=(8, 8)), (np.zeros(8), np.eye(8)))


def test_statistics_survive_a_file(tmp_path: Path) -> None:
    features = np.random.default_rng(3).normal(size=(20, 4))
    save_statistics(tmp_path / "x.npz", features)
    for loaded, expected in zip(load_statistics(tmp_path / "x.npz"), feature_statistics(features), strict=True):
        np.testing.assert_array_equal(loaded, expected)
    np.savez(tmp_path / "pickle.npz", mu=np.array([object()]), sigma=np.eye(1))
    with pytest.raises(ValueError, match="`mu` and `sigma`"):
        load_statistics(tmp_path / "pickle.npz")
