import numpy as np
import pytest
import scipy.linalg

from xpsr_jax.evaluation.frechet import FeatureStatistics, frechet_distance


def features(seed, count, width=12, scale=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) * scale + shift


def test_merged_statistics_are_those_of_all_vectors():
    table = features(0, 100, shift=1e3)
    whole = FeatureStatistics.of(table)
    pieces = [FeatureStatistics.of(piece) for piece in np.split(table, [1, 30, 31])]
    for order in (pieces, pieces[::-1]):
        merged = order[0]
        for piece in order[1:]:
            merged = merged.merge(piece)
        assert merged.count == 100
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-14)
        np.testing.assert_allclose(merged.covariance, np.cov(table, rowvar=False), rtol=1e-10, atol=1e-10)


def test_the_distance_equals_its_definition():
    a, b = features(1, 200), features(2, 150, scale=2, shift=3)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    of_a, of_b = FeatureStatistics.of(a), FeatureStatistics.of(b)
    assert frechet_distance(of_a, of_b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(of_b, of_a) == pytest.approx(expected, rel=1e-10)


def test_known_distances():
    a = features(3, 50)
    assert frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(a + 2)) == pytest.approx(12 * 4, rel=1e-9)
    # In one dimension: (difference of means)² + (difference of standard deviations)².
    x = a[:, :1]
    assert frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(3 * x)) == pytest.approx(
        4 * x.mean() ** 2 + 4 * x.var(ddof=1), rel=1e-9
    )


def test_fewer_vectors_than_features_stay_real():
    a, b = features(4, 5, width=40), features(5, 6, width=40)
    # The error comes from roots of eigenvalues near 0.
    assert frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(a)) < 1e-4
    assert 0 < frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b)) < np.inf


def test_invalid_statistics_are_refused():
    with pytest.raises(ValueError, match=r"not \(0, 4\)"):
        FeatureStatistics.of(np.zeros((0, 4)))
    one = FeatureStatistics.of(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(one, one)
    with pytest.raises(ValueError, match="different widths cannot be compared: 4 and 5"):
        frechet_distance(one, FeatureStatistics.of(np.zeros((2, 5))))
