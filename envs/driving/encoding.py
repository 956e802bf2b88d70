"""Plans as actions in [-1, 1]: coefficients of a whitened smooth basis, or poses standardised one by one.

A plan is taken as its difference from a base, driving along the route at the present speed: 24 numbers standardised by
the training set's moments. The basis are the principal components that explain EXPLAINED of their variance, scaled to
unit variance: noise in a policy's coefficients then moves the whole plan smoothly, instead of each pose by itself,
which costs comfort. Each number is divided by the largest of the training set, so that every training action is within
the limits that `envs.dataset` clips actions to, and samplers that clip to [-1, 1] cut nothing.

Coefficients of the basis are drawn back to DEVIATIONS first: a few plans have 20, and divided by those most actions
would be within 0.1 of 0, next to a sampler's noise of deviation 1. A drawn-back plan is another plan, and its reward is
the score of what its action decodes to.
"""

from dataclasses import dataclass

import numpy as np

from envs.driving.vehicle import KNOTS
from envs.transitions import ACTION_LIMIT

EXPLAINED = 0.995
DEVIATIONS = 3.0
KINDS = ("basis", "zscore")


@dataclass(frozen=True, eq=False)
class Encoding:
    """decode(a) = base + mean + ((a * bound) @ basis) * std, shaped [8, 3], where base is the plan along the route.

    mean, std [24]; basis [A, 24]: rows are orthogonal; inverse [24, A]: maps back to coefficients; bound [A].
    """

    mean: np.ndarray
    std: np.ndarray
    basis: np.ndarray
    inverse: np.ndarray
    bound: np.ndarray

    @classmethod
    def fit(cls, plans: np.ndarray, bases: np.ndarray, kind: str = "basis") -> "Encoding":
        """The encoding of training plans [N, 8, 3] with their bases [N, 8, 3]; kind is one of KINDS."""
        residuals = (plans - bases).reshape(len(plans), -1)
        mean, std = residuals.mean(axis=0), residuals.std(axis=0)
        std = np.where(std > 1e-6, std, 1.0)
        if kind == "zscore":
            basis = inverse = np.eye(residuals.shape[1])
            largest = np.abs((residuals - mean) / std).max(axis=0)
        else:
            basis, inverse = _principal_components((residuals - mean) / std)
            largest = np.minimum(np.abs((residuals - mean) / std @ inverse).max(axis=0), DEVIATIONS)
        return cls(mean, std, basis, inverse, largest / ACTION_LIMIT)

    @property
    def action_dim(self) -> int:
        return len(self.bound)

    def encode(self, plans: np.ndarray, bases: np.ndarray) -> np.ndarray:
        """Actions [..., A] within ±ACTION_LIMIT of plans and their bases [..., 8, 3].

        The basis keeps what it spans of a plan, drawn back to the bounds.
        """
        residuals = (plans - bases).reshape(*plans.shape[:-2], -1)
        actions = ((residuals - self.mean) / self.std) @ self.inverse / self.bound
        return np.clip(actions, -ACTION_LIMIT, ACTION_LIMIT)

    def decode(self, actions: np.ndarray, bases: np.ndarray) -> np.ndarray:
        """Plans [..., 8, 3] of actions [..., A]."""
        residuals = self.mean + (actions * self.bound) @ self.basis * self.std
        return bases + residuals.reshape(*actions.shape[:-1], KNOTS, 3)


def _principal_components(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(basis [A, D], inverse [D, A]) of standardised values [N, D], whitened; signs make the largest entry positive."""
    variances, vectors = np.linalg.eigh(values.T @ values / len(values))
    variances, vectors = np.maximum(variances[::-1], 0.0), vectors[:, ::-1]
    count = int(np.searchsorted(np.cumsum(variances) / variances.sum(), EXPLAINED)) + 1
    vectors, scales = vectors[:, :count], np.sqrt(variances[:count])
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[largest, np.arange(count)])
    return (vectors * scales).T, vectors / scales
