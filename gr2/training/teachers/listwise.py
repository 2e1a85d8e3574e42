"""An additive listwise model: a candidate's score is a sum of functions of one column each, so each has a share.

With z_e the standardised column e and k_e its knot, the 90 % quantile of z_e,

    score(c) = sum_e f_e(c)      f_e(c) = a_e z_e + b_e max(z_e - k_e, 0)

The loss is sum_r -log softmax(scores of list r)[target] + RIDGE |(a, b)|^2 / 2, minimised by Newton's method; it is
convex, so that the fit has no seed and no epochs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ListwiseModel", "fit_listwise"]

RIDGE = 1.0
STEPS, TOLERANCE = 50, 1e-8
KNOT = 0.9
BATCH = 2048  # lists whose terms are held at once


@dataclass(frozen=True)
class ListwiseModel:
    """`mean`, `scale` and `knot` (E,) float64 of the columns, and `weights` (E, 2): a and b."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    knot: NDArray[np.float64]
    weights: NDArray[np.float64]

    def terms(self, columns: NDArray[np.float32]) -> NDArray[np.float64]:
        """(R, K, E) float64: f_e of each candidate, from columns (R, K, E)."""
        basis = _basis(columns, self.mean, self.scale, self.knot)
        shares: NDArray[np.float64] = (basis * self.weights.T[:, None, None]).sum(0)
        return shares


def fit_listwise(columns: NDArray[np.float32], valid: NDArray[np.bool_], label: NDArray[np.integer]) -> ListwiseModel:
    """The model of R lists: columns (R, K, E), valid (R, K) and label (R,), the target's place in each list.

    Without lists its weights are 0, and it keeps the incoming order.
    """
    width = columns.shape[2]
    if not len(columns):
        return ListwiseModel(np.zeros(width), np.ones(width), np.zeros(width), np.zeros((width, 2)))
    known = columns[valid].astype(np.float64)
    mean, scale = known.mean(0), known.std(0)
    scale = np.where(scale > 1e-6, scale, 1.0)
    knot = np.quantile((known - mean) / scale, KNOT, axis=0)
    weights = np.zeros(2 * width)
    for _ in range(STEPS):
        gradient, hessian = RIDGE * weights, RIDGE * np.eye(2 * width)
        for first in range(0, len(columns), BATCH):
            rows = slice(first, first + BATCH)
            basis = np.concatenate(list(_basis(columns[rows], mean, scale, knot)), -1)  # (B, K, 2E)
            slope, curvature = _derivatives(basis, valid[rows], label[rows], weights)
            gradient, hessian = gradient + slope, hessian + curvature
        step = np.linalg.solve(hessian, gradient)
        length = float(np.abs(step).max())
        weights = weights - step / max(1.0, length)
        if length < TOLERANCE:
            break
    return ListwiseModel(mean, scale, knot, weights.reshape(2, width).T)


def _basis(
    columns: NDArray[np.float32], mean: NDArray[np.float64], scale: NDArray[np.float64], knot: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(2, R, K, E)."""
    standard = (columns - mean) / scale
    return np.stack([standard, np.maximum(standard - knot, 0)])


def _derivatives(
    basis: NDArray[np.float64], valid: NDArray[np.bool_], label: NDArray[np.integer], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gradient and Hessian of the listwise loss at `weights`, summed over the lists."""
    scores = np.where(valid, basis @ weights, -np.inf)
    share = np.exp(scores - scores.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    mean = (share[..., None] * basis).sum(1)
    centred = ((basis - mean[:, None]) * np.sqrt(share)[..., None]).reshape(-1, basis.shape[2])
    return (mean - basis[np.arange(len(basis)), label]).sum(0), centred.T @ centred
