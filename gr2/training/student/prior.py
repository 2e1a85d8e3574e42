"""Fitting what does not need the transformer: the prior on cross-fitted lists, and the weights of a score's parts."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from gr2.errors import Gr2Error
from gr2.features import SCORE_FEATURES
from gr2.models.scoring import Parts
from gr2.models.student import MASKED, Prior

__all__ = ["combine_parts", "fit_prior"]

BATCH = 256
LEARNING_RATE = 3e-3
LEAST_STEPS = 300  # a few lists take more passes
SCORELESS = 0.1  # share of the lists shown without scores, so that requests without scores rank sensibly, too
# Where the weights of path, prior and head stand before any validation list is seen.
START = (0.05, 1.0, 0.05)
LEAST_PATH = 0.02


def fit_prior(
    features: NDArray[np.float32],
    valid: NDArray[np.bool_],
    weight: NDArray[np.floating],
    *,
    hidden: int,
    epochs: int,
    seed: int,
    dropout: float = 0.0,
) -> Prior:
    """A prior that minimises the listwise loss - sum_k weight_k log softmax(prior)_k, the mean over R lists.

    features (R, K, F), valid (R, K), weight (R, K): what a candidate's place at the top is worth, 0 in the padding. It
    is trained on standardised columns, with `dropout` on its hidden units, and the standardisation is then folded into
    its weights. Without lists it is the untrained prior, which keeps the incoming order. Raises Gr2Error if the columns
    are too large to be fitted.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prior = Prior(features.shape[2], hidden, dropout)
        if not len(features) or not epochs:
            return prior
        columns = features[valid]
        mean, scale = columns.mean(0), columns.std(0)
        scale = np.where(scale > 1e-6, scale, 1.0).astype(np.float32)
        rows = torch.from_numpy((features - mean) / scale)
        none = torch.from_numpy((-mean / scale)[: len(SCORE_FEATURES)])
        with torch.no_grad():
            prior.linear.weight *= torch.from_numpy(scale)
        optimiser = torch.optim.AdamW(prior.parameters(), lr=LEARNING_RATE)
        epochs = max(epochs, math.ceil(LEAST_STEPS * BATCH / len(rows)) if len(rows) >= BATCH else LEAST_STEPS)
        steps = epochs * math.ceil(len(rows) / BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        worth, hide = torch.from_numpy(weight.astype(np.float32)), torch.from_numpy(~valid)
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(len(rows)), BATCH):
                shown = rows[batch].clone()
                shown[torch.rand(len(batch)) < SCORELESS, :, : len(none)] = none
                loss = F.cross_entropy(prior(shown).masked_fill(hide[batch], MASKED), worth[batch])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
        _fold(prior.eval(), mean, scale)
        if not all(bool(weights.isfinite().all()) for weights in prior.parameters()):
            raise Gr2Error("the prior's weights are not finite: are the lists' scores and features too large?")
    return prior


def _fold(prior: Prior, mean: NDArray[np.float32], scale: NDArray[np.float32]) -> None:
    """Make `prior` of raw columns what it was of standardised ones, but for a constant, which no order depends on."""
    with torch.no_grad():
        prior.linear.weight /= torch.from_numpy(scale)
        prior.up.weight /= torch.from_numpy(scale)
        prior.up.bias.sub_(prior.up.weight @ torch.from_numpy(mean))


def combine_parts(parts: Parts, valid: NDArray[np.bool_], weight: NDArray[np.floating]) -> tuple[float, float]:
    """The weights of prior and head in units of the path log-likelihood, fitted on R lists that hold their target.

    `weight` (R, K) is as in `fit_prior`. Minimises over w = (path, prior, head)
    - sum_rk weight_rk log softmax(w . parts)_rk + |w - START|^2 / 2 by Newton's method; the path's weight is at least
    `LEAST_PATH`. An order depends on the ratios only, so the result is w / w_path.
    """
    x = np.stack([parts.path, parts.prior, parts.head], -1).astype(np.float64)  # (R, K, 3)
    weights = np.array(START)
    free = np.ones(3, dtype=np.bool_)
    for _ in range(2):
        weights = _newton(x, valid, weight, weights, free)
        if weights[0] >= LEAST_PATH:
            break
        weights[0], free[0] = LEAST_PATH, False
    return float(weights[1] / weights[0]), float(weights[2] / weights[0])


def _newton(
    x: NDArray[np.float64],
    valid: NDArray[np.bool_],
    worth: NDArray[np.floating],
    weights: NDArray[np.float64],
    free: NDArray[np.bool_],
) -> NDArray[np.float64]:
    lists = worth.sum(1)
    weights = weights.copy()
    for _ in range(50):
        scores = np.where(valid, x @ weights, -np.inf)
        share = np.exp(scores - scores.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        mean = (share[..., None] * x).sum(1)
        centred = x - mean[:, None]
        gradient = lists @ mean - np.einsum("rk,rki->i", worth, x) + weights - START
        hessian = np.einsum("rk,rki,rkj->ij", lists[:, None] * share, centred, centred) + np.eye(3)
        step = np.zeros(3)
        step[free] = np.linalg.solve(hessian[np.ix_(free, free)], gradient[free])
        length = np.abs(step).max()
        weights -= step / max(1.0, length)
        if length < 1e-9:
            break
    return weights
