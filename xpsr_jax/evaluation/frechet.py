"""Fréchet distance between two sets of feature vectors (FID), from statistics that can be merged.

Several processes or runs can each compute the statistics of their own images. Merged, they are the statistics of all
images.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class FeatureStatistics:
    """The statistics of a set of feature vectors that the distance needs, in float64.

    Attributes:
        count: number of vectors.
        mean: mean of the vectors.
        scatter: sum of the outer products of the vectors' differences from the mean.
    """

    count: int
    mean: Float[np.ndarray, "d"]
    scatter: Float[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> "FeatureStatistics":
        """The statistics of these vectors. Raises ValueError unless they have the shape (n, d) with n > 0."""
        if features.ndim != 2 or len(features) == 0:
            raise ValueError(f"Features must have the shape (n, d) with n > 0, not {features.shape}.")
        features = features.astype(np.float64)
        mean = features.mean(axis=0)
        return cls(len(features), mean, (features - mean).T @ (features - mean))

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """The statistics of both sets together (Chan, Golub and LeVeque, 1983)."""
        count = self.count + other.count
        difference = other.mean - self.mean
        mean = self.mean + difference * (other.count / count)
        between = np.outer(difference, difference) * (self.count * other.count / count)
        return type(self)(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """The unbiased covariance. Raises ValueError for fewer than two vectors."""
        if self.count < 2:
            raise ValueError("A covariance needs at least two feature vectors.")
        return self.scatter / (self.count - 1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|mean a − mean b|² + tr(A + B − 2 (A B)^½) of the covariances A and B (Heusel et al., 2017).

    The trace of the root is the sum of the square roots of the eigenvalues of A^½ B A^½. This matrix is symmetric. So
    no complex numbers occur, even if there are fewer images than features and the covariances are singular.

    Raises ValueError for features of different widths, or for fewer than two vectors.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"Features of different widths cannot be compared: {a.mean.size} and {b.mean.size}.")
    covariance_a, covariance_b = a.covariance, b.covariance
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root @ covariance_b @ root)
    trace_of_root = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    distance = np.sum((a.mean - b.mean) ** 2) + np.trace(covariance_a) + np.trace(covariance_b) - 2 * trace_of_root
    return max(0.0, float(distance))
