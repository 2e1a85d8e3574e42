"""The additive model against a general optimiser, and its shares."""

from __future__ import annotations

import numpy as np
import torch

from gr2.training.teachers.listwise import RIDGE, fit_listwise

ROWS, WIDTH, COLUMNS = 400, 6, 3


def lists(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Column 0 tells the target, column 1 only where it is large, column 2 is noise."""
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(ROWS, WIDTH, COLUMNS)).astype(np.float32)
    valid = np.arange(WIDTH) < rng.integers(2, WIDTH + 1, ROWS)[:, None]
    truth = columns[..., 0] + 3 * np.maximum(columns[..., 1] - 1.2, 0) + rng.gumbel(size=valid.shape) / 2
    return columns, valid, np.where(valid, truth, -np.inf).argmax(1)


def loss(weights: torch.Tensor, basis: torch.Tensor, valid: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    scores = (basis @ weights).masked_fill(~valid, -torch.inf)
    return torch.nn.functional.cross_entropy(scores, label, reduction="sum") + RIDGE * (weights**2).sum() / 2


def test_the_fit_is_the_minimum_of_the_loss() -> None:
    columns, valid, label = lists()
    model = fit_listwise(columns, valid, label)
    standard = (columns - model.mean) / model.scale
    basis = torch.from_numpy(np.concatenate([standard, np.maximum(standard - model.knot, 0)], -1))
    weights = torch.from_numpy(model.weights.T.reshape(-1).copy()).requires_grad_()
    loss(weights, basis, torch.from_numpy(valid), torch.from_numpy(label)).backward()
    assert weights.grad is not None
    assert weights.grad.abs().max() < 1e-6


def test_it_ranks_lists_that_it_has_not_seen() -> None:
    model = fit_listwise(*lists(0))
    columns, valid, label = lists(1)
    terms = model.terms(columns)
    scores = np.where(valid, terms.sum(-1), -np.inf)
    assert (scores.argmax(1) == label).mean() > 0.6
    assert np.abs(terms[..., 2]).mean() < 0.2 * np.abs(terms[..., 0]).mean()


def test_a_column_that_matters_only_where_it_is_large_is_used_there() -> None:
    columns, valid, label = lists()
    model = fit_listwise(columns, valid, label)
    probe = np.zeros((1, 3, COLUMNS), dtype=np.float32)
    probe[0, :, 1] = (-1.0, 1.0, 3.0)
    low, middle, high = model.terms(probe)[0, :, 1]
    assert high - middle > 3 * abs(middle - low)


def test_without_lists_nothing_is_preferred() -> None:
    model = fit_listwise(np.zeros((0, 4, 2), np.float32), np.zeros((0, 4), np.bool_), np.zeros(0, np.int64))
    assert not model.terms(np.ones((2, 4, 2), np.float32)).any()
