"""The prior learns what helps, ignores padding, and the weights of the parts are the optimum of their loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from gr2.errors import Gr2Error
from gr2.models.scoring import Parts
from gr2.training.student.prior import LEAST_PATH, START, combine_parts, fit_prior


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def make_features(rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lists of six whose fourth column tells the target in two of three."""
    rank = np.arange(6, dtype=np.float32)
    base = np.stack([np.ones(6), 1 / (1 + rank), np.log2(1 + rank), np.zeros(6)], 1).astype(np.float32)
    features = np.tile(base, (rows, 1, 1))
    label = rng.integers(0, 6, rows)
    features[:, :, 3] = 100 + 5 * rng.normal(size=(rows, 6))
    told = rng.random(rows) < 2 / 3
    features[np.flatnonzero(told), label[told], 3] += 20
    return features, np.ones((rows, 6), dtype=np.bool_), np.eye(6)[label]


def test_prior_learns_a_column_of_any_scale() -> None:
    rng = np.random.default_rng(0)
    prior = fit_prior(*make_features(1500, rng), hidden=8, epochs=6, seed=0)
    features, _, weight = make_features(300, rng)
    with torch.no_grad():
        chosen = prior(torch.from_numpy(features)).argmax(1).numpy()
    assert (chosen == weight.argmax(1)).mean() > 0.6


def test_without_lists_the_prior_keeps_the_incoming_order() -> None:
    features, valid, weight = make_features(0, np.random.default_rng(0))
    prior = fit_prior(features, valid, weight, hidden=8, epochs=6, seed=0)
    order = make_features(1, np.random.default_rng(1))[0]
    with torch.no_grad():
        scores = prior(torch.from_numpy(order))[0]
    assert torch.argsort(-scores).tolist() == list(range(6))


def test_the_same_seed_gives_the_same_prior_and_leaves_the_random_state() -> None:
    features = make_features(300, np.random.default_rng(0))
    state = torch.get_rng_state()
    first, second = (fit_prior(*features, hidden=8, epochs=2, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)


def loss(weights: np.ndarray, parts: Parts, valid: np.ndarray, weight: np.ndarray) -> float:
    scores = np.where(valid, weights[0] * parts.path + weights[1] * parts.prior + weights[2] * parts.head, -np.inf)
    peak = scores.max(1)
    normaliser = peak + np.log(np.exp(scores - peak[:, None]).sum(1))
    losses = weight * np.where(valid, normaliser[:, None] - scores, 0.0)
    return float(losses.sum() + ((weights - START) ** 2).sum() / 2)


def test_weights_minimise_the_loss() -> None:
    rng = np.random.default_rng(2)
    label = rng.integers(0, 4, 200)
    valid = np.ones((200, 5), dtype=np.bool_)
    valid[:, 4] = rng.random(200) < 0.5
    signal = np.eye(5)[label] * 1.5
    parts = Parts(*((rng.normal(size=(200, 5)) + signal * share).astype(np.float32) for share in (0.5, 1.0, 0.7)))
    weight = np.eye(5)[label]
    weight[rng.random(200) < 0.3, 2] = 3.0  # a second positive, of a higher grade
    expected = minimize(loss, np.array(START), args=(parts, valid, weight), method="BFGS", tol=1e-9).x
    np.testing.assert_allclose(combine_parts(parts, valid, weight), expected[1:] / expected[0], rtol=1e-3)


def test_a_path_that_misleads_keeps_the_least_weight() -> None:
    rng = np.random.default_rng(3)
    label = rng.integers(0, 5, 200)
    right = (np.eye(5)[label] * 2).astype(np.float32)
    parts = Parts(-right, right + rng.normal(size=(200, 5)).astype(np.float32), np.zeros((200, 5), dtype=np.float32))
    prior, head = combine_parts(parts, np.ones((200, 5), dtype=np.bool_), np.eye(5)[label])
    assert prior > 1 / LEAST_PATH / 10
    assert head == pytest.approx(START[2] / LEAST_PATH, rel=1e-6)


@pytest.mark.filterwarnings("ignore:overflow|invalid value:RuntimeWarning")
def test_features_that_no_prior_can_take_are_refused() -> None:
    features, valid, weight = make_features(300, np.random.default_rng(0))
    features[:, :, 3] *= np.float32(1e36)
    with pytest.raises(Gr2Error, match="the prior's weights are not finite"):
        fit_prior(features, valid, weight, hidden=8, epochs=1, seed=0)
