"""MAUVE is the number of the authors' package on the same features, and says what it cannot take."""

from __future__ import annotations

import numpy as np
import pytest

from hf_maskdiff.evaluation.mauve import mauve

pytest.importorskip("faiss", reason='faiss, for MAUVE, is not installed: pip install -e ".[mauve]"')


@pytest.mark.parametrize(
    ("samples", "reference", "width", "shift"),
    [(100, 100, 8, 0.5), (80, 130, 40, 0.2), (30, 25, 16, 0.0), (60, 60, 8, 3.0)],
)
def test_the_reference_package_s_number(samples: int, reference: int, width: int, shift: float) -> None:
    reference_package = pytest.importorskip("mauve", reason='mauve-text is not installed: pip install -e ".[test]"')
    rng = np.random.default_rng(samples)
    p = rng.normal(size=(samples, width)).astype(np.float32)
    q = (rng.normal(size=(reference, width)) + shift).astype(np.float32)
    expected = reference_package.compute_mauve(p_features=p, q_features=q, verbose=False).mauve
    assert mauve(p, q) == pytest.approx(expected, rel=1e-4)
    buckets = reference_package.compute_mauve(p_features=p, q_features=q, num_buckets=5, seed=3, verbose=False).mauve
    assert mauve(p, q, num_buckets=5, seed=3) == pytest.approx(buckets, rel=1e-4)


def test_equal_sets_and_sets_far_apart() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=(2, 200, 8))
    assert mauve(p, p) == pytest.approx(1, abs=1e-6)
    assert mauve(p, q) > 0.9
    assert mauve(p, q + 10) < 0.1


@pytest.mark.parametrize(("first", "second"), [((30, 8), (30, 9)), ((30,), (30, 8))])
def test_features_of_another_network(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="of one network"):
        mauve(np.zeros(first), np.zeros(second))


def test_too_few() -> None:
    with pytest.raises(ValueError, match="at least 20 samples on each side, got 30 and 19"):
        mauve(np.zeros((30, 8)), np.zeros((19, 8)))
